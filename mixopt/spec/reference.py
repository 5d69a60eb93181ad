"""The option reference, made of the options themselves."""

from __future__ import annotations

from mixopt.spec.option import Described, described
from mixopt.spec.study import StudySpec

HEAD = """# Every option

A flag of the commands named at its end; a key of pool.toml and study.toml, named after the flag where that has another
name; and a keyword in Python. A flag wins over study.toml, which wins over pool.toml; paths in a file are relative
to it. In a TOML file, what can be repeated is a list, NAME=FILE a table, and in `[data]`, `search` and `validation` are
one key.
"""


def option_reference() -> str:
    """A page of Markdown that lists every option by panel."""
    panels: dict[str, list[str]] = {}
    for each in described(StudySpec):
        panels.setdefault(each.option.panel, []).append(_entry(each))
    return "\n".join([HEAD, *(part for panel, entries in panels.items() for part in (f"## {panel}\n", *entries))])


def _entry(each: Described) -> str:
    key = "" if each.key == each.flag[2:] else f" (key `{each.key}`)"
    flag = f"{each.flag} {each.option.metavar}" if each.option.metavar else each.flag
    lines = [f"- `{flag}`{key}: {each.help_of(each.option.commands[0])} *{', '.join(each.option.commands)}*"]
    lines += [f"  In {command}: {each.help_of(command)}" for command in each.option.otherwise]
    return "\n".join(lines).replace("<", "\\<") + "\n"  # no HTML
