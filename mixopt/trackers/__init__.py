"""Trackers: each puts a finished run where a tool keeps experiments. A newcomer is one file here, found by its name.

The contract is `Tracker`: one run of the tool for one of mixopt's, known again by the digest of its report, so that a
run that is logged twice stands there once. A tracker imports its library when it writes, within `library`, and lets
what that raises become one error with `writing`; the library is an extra of the file's name.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mixopt.errors import RunError, SpecError, unknown
from mixopt.listener import Listener
from mixopt.untrusted import reason_of

if TYPE_CHECKING:
    from mixopt.trackers.record import RunRecord

PROJECT = "mixopt"


@dataclass(frozen=True)
class Place:
    """Where a user wants a run to be logged.

    Attributes:
        project: The project or experiment; None for the tool's own environment variable, or else `PROJECT`.
        logdir: The folder, for a tool that reads one.
    """

    project: str | None
    logdir: Path

    def project_or(self, variable: str) -> str:
        """The project; where none was named, what an environment variable of the tool's says."""
        return self.project or os.environ.get(variable) or PROJECT


@dataclass(frozen=True)
class Logged:
    """Where a run was logged.

    Attributes:
        tracker: The tracker.
        place: The project and store, a web address, or a folder.
        run: The run there: what the tool calls it by.
        was_there: Whether the same report had been logged there before.
    """

    tracker: str
    place: str
    run: str
    was_there: bool


class Tracker(Protocol):
    """The contract of a module here."""

    # Which option says where: the other is refused.
    OPTION: Literal["project", "logdir"]

    def write(self, record: RunRecord, place: Place, listener: Listener) -> Logged:
        """Write a run; one whose report is there already is not written a second time.

        Args:
            record: What is to be written.
            place: Where.
            listener: Told what was left as it is, changed to suit the tool, or is still to be done.

        Raises:
            SpecError: The library is not installed, or told to keep nothing.
            RunError: The tool could not write.
        """


def tracker_names() -> list[str]:
    """Every tracker, by file name."""
    every = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted(every - {"record"})


def tracker_named(name: str) -> Tracker:
    """A tracker by name.

    Raises:
        SpecError: There is none of that name.
    """
    if name not in tracker_names():
        raise SpecError("--to: " + unknown("tracker", name, tracker_names()))
    module: Any = importlib.import_module(f"mixopt.trackers.{name}")
    found: Tracker = module
    return found


@contextmanager
def library(name: str) -> Iterator[None]:
    """Around the import of a tracker's library.

    Raises:
        SpecError: It is not installed; names the extra.
    """
    try:
        yield
    except ImportError as error:
        raise SpecError(
            f"--to {name} needs the library ({reason_of(error)}); install it: pip install 'mixopt[{name}]'"
        ) from error


@contextmanager
def writing(name: str, where: str, cure: str, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what a tracker's library raises while it writes into one error.

    Args:
        name: The tracker.
        where: What it writes to, for messages.
        cure: What to look at.
        also: The library's own exceptions, beside those of files and networks.

    Raises:
        RunError: It could not write.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except kinds as error:
        reason = without_password(reason_of(error))
        raise RunError(f"--to {name}: could not write to {where} ({reason}); {cure}") from error


def without_password(text: str) -> str:
    """A text without the names and passwords of the addresses in it."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)
