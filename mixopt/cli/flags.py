"""Options of `mixopt.spec` as flags of a command, and what was given as the options of a verb."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from mixopt.spec import StudySpec
from mixopt.spec.option import Described, described

_MOST_DIGITS = 10
# Commands with too many options for one page: --help shows the common ones.
LONG = ("search", "compare")


def flags_of(command: str) -> list[Parameter]:
    """A parameter for every option that a command has; None means not given, and `mixopt.spec` knows what then."""
    return [_flag(each, command) for each in described(StudySpec) if command in each.option.commands]


def options_of(given: dict[str, Any], command: str) -> dict[str, Any]:
    """The options of a verb, from what the flags of a command were given.

    Raises:
        typer.BadParameter: A text that does not have the form it should.
    """
    flags = {each.parameter: each for each in described(StudySpec) if command in each.option.commands}
    found = {name: _READERS.get(name, _as_given)(given[name], flags[name]) for name in flags}
    if "test" in found:  # two flags are one table
        splits = {"validation": found.pop("data"), "test": found.pop("test")}
        found["data"] = {name: value for name, value in splits.items() if value is not None} or None
    return found


def named(flag: str, values: list[str], form: str) -> dict[str, str]:
    """Values by the name that stands before each, as in NAME=FILE.

    Raises:
        typer.BadParameter: One without a name or a value.
    """
    pairs = [value.partition("=") for value in values]
    if wrong := [name for name, sign, value in pairs if not (name and sign and value)]:
        raise typer.BadParameter(f"{flag} {wrong[0]}: expected {form}")
    return {name: value for name, _, value in pairs}


def _flag(each: Described, command: str) -> Parameter:
    flag = f"{each.flag}/--no-{each.flag[2:]}" if each.kind is bool else each.flag
    kind: Any = list[str] if each.kind is list else each.kind
    flag = typer.Option(
        flag,
        help=each.help_of(command),
        rich_help_panel=each.option.panel,
        show_default=False,
        metavar=each.option.metavar,
        hidden=command in LONG and not each.option.common,
    )
    return Parameter(each.parameter, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, flag])


def _as_given(value: Any, each: Described) -> Any:
    return value


def _named(values: list[str] | None, each: Described) -> dict[str, str] | None:
    return named(each.flag, values, str(each.option.metavar)) if values else None


def _files(values: list[str] | None, each: Described) -> dict[str, Path] | None:
    named = _named(values, each)
    return None if named is None else {name: Path(file) for name, file in named.items()}


def _globs_and_numbers(values: list[str] | None, each: Described) -> list[str | int] | None:
    return [int(value) if _is_number(value) else value for value in values] if values else None


def _is_number(value: str) -> bool:
    return value.isascii() and value.isdecimal() and len(value) < _MOST_DIGITS


_READERS: dict[str, Callable[[Any, Described], Any]] = {
    "ingredients": _globs_and_numbers,
    "select": _named,
    "test": _files,
}
