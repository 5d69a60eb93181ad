"""Option: how a field of `mixopt.spec.StudySpec` is told and given, wherever a user meets it."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

# The headings that options stand under.
POOL = "The pool"
DATA = "Data"
CHOICE = "The choice"
SEARCH = "The search"
RUN = "The run"
WORKERS = "Workers"

# Commands that have an option.
ONLY_SEARCH = ("search",)
ONLY_COMPARE = ("compare",)
RUNS = ("search", "compare")
SCORING = (*RUNS, "evaluate", "diagnose")
OPENING = (*RUNS, "inspect", "diagnose")
EVERY = (*SCORING, "inspect")


@dataclass(frozen=True)
class Option:
    """What stands beside a field's type and default.

    Attributes:
        help: One sentence or more, without the default.
        panel: The heading that it stands under.
        commands: Those that have it.
        common: Whether ``--help`` shows it where there are too many for one page.
        flag: Its name as a flag, where that is not its key.
        metavar: What the flag takes, where the type does not say it.
        default: What the default means, where the value itself does not say it.
        otherwise: The help in commands in which the option means something else, with the default if that is another.
    """

    help: str
    panel: str
    commands: tuple[str, ...]
    common: bool = False
    flag: str = ""
    metavar: str | None = None
    default: str = ""
    otherwise: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Described:
    """One option, as it is given.

    Attributes:
        key: In TOML files, with a dot below a table.
        flag: On the command line, such as ``--greedy-rule``.
        parameter: In Python: the flag as a name.
        kind: What the command line reads: one of str, int, float, bool, Path, or list for several texts.
        default: As shown; empty where there is none.
        option: The rest.
    """

    key: str
    flag: str
    parameter: str
    kind: type
    default: str
    option: Option

    def help_of(self, command: str) -> str:
        """Its help in a command."""
        text = self.option.otherwise.get(command, self.option.help)
        return f"{text} (default: {self.default})" if self.default and "(default: " not in text else text


def described(model: type[BaseModel]) -> list[Described]:
    """Every option of a model, in order; those of a table within it stand in its place."""
    return list(_described(model, ""))


def _described(model: type[BaseModel], table: str) -> Iterator[Described]:
    for name, each in model.model_fields.items():
        if isinstance(each.annotation, type) and issubclass(each.annotation, BaseModel):
            yield from _described(each.annotation, f"{name}.")
            continue
        option = next(item for item in each.metadata if isinstance(item, Option))
        key = each.alias or name
        yield Described(
            key=f"{table}{key}",
            flag=f"--{(option.flag or key).replace('_', '-')}",
            # A keyword of Python cannot name a parameter: the field's own name has an underscore there.
            parameter=option.flag or name,
            kind=_kind(each.annotation),
            default=_told(each, option),
            option=option,
        )


def _kind(annotation: Any) -> type:
    """What the command line reads for a field's type: pydantic reads the rest, and tells all problems at once."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = {_kind(part) for part in get_args(annotation) if part is not type(None)}
        return list if list in kinds else kinds.pop()
    if get_origin(annotation) in (tuple, dict):
        return list
    return annotation if annotation in (int, float, bool, Path) else str


def _told(each: FieldInfo, option: Option) -> str:
    if option.default or each.is_required() or each.default in (None, ()) or each.default_factory is not None:
        return option.default
    return ("yes" if each.default else "no") if isinstance(each.default, bool) else str(each.default)
