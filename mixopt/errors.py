"""What can go wrong, as the user sees it.

MixoptError
├── SpecError         an option, pool.toml or study.toml
├── CheckpointError   one checkpoint file cannot be read or written
├── PoolError         checkpoints that do not fit together
├── DataError         a split: images, labels, classes
├── ScoreError        a score that is not a number
├── MixError          coefficients that are no mix
└── RunError          the run folder: another study, another process, no space

The command line turns each into one message and exit code 2, as it does what the system says of a disk or a permission;
anything else but an interrupt is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

LISTED = 20
_LONGEST_NAME = 200


class MixoptError(Exception):
    """Bad input or a bad environment; the message says where, what was expected and found, and what to do."""


class SpecError(MixoptError):
    """An option, ``pool.toml`` or ``study.toml`` is wrong."""


class CheckpointError(MixoptError):
    """A checkpoint file cannot be read or written."""


class PoolError(MixoptError):
    """The checkpoints of a pool do not fit together, or not to the model."""


class DataError(MixoptError):
    """A split cannot be used."""


class ScoreError(MixoptError):
    """A score is not finite.

    Attributes:
        group: The layer group held responsible, where one could be named.
    """

    def __init__(self, message: str, group: str | None = None) -> None:
        super().__init__(message)
        self.group = group


class MixError(MixoptError):
    """Coefficients are no mix: a wrong shape, rows that do not sum to 1, columns that do not fit."""


class RunError(MixoptError):
    """The run folder cannot be used."""


@contextmanager
def about(source: str) -> Iterator[None]:
    """Errors of the block say which file they are about, in front."""
    try:
        yield
    except MixoptError as error:
        raise type(error)(f"{source}: {error}") from error


def listing(head: str, problems: Sequence[str], limit: int = LISTED) -> str:
    """One message for several problems: the head, then a line each, cut at ``limit`` with the rest counted."""
    if len(problems) == 1:
        return f"{head}: {problems[0]}"
    lines = [f"{head}, {len(problems)} problems:", *(f"  - {problem}" for problem in problems[:limit])]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)


def names(found: Iterable[str], limit: int = 5) -> str:
    """A short, readable list of names: the first few, the rest counted."""
    every = list(found)
    shown = ", ".join(map(short, every[:limit]))
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"


def short(name: str) -> str:
    """A name as it can be shown: of a very long one, its beginning and end."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME // 2]}...{name[-_LONGEST_NAME // 2 :]}"


def unknown(kind: str, name: str, known: Iterable[str], more: str = "") -> str:
    """The message for a name that is not known, with the nearest one suggested."""
    every = sorted(known)
    near = difflib.get_close_matches(name[:_LONGEST_NAME], every, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {short(repr(name))}{hint} Known: {names(every, LISTED)}{more}"
