"""The contract of a data source: what it says of a file or folder, and what it gives of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


def _nowhere(number: int) -> str:
    """Where a record stands in a source that says no more than its own name."""
    return ""


def _nothing() -> Sequence[str]:
    """What a source tells of its records that takes them as they are."""
    return ()


@dataclass(frozen=True)
class Reading:
    """How a source is to be read.

    Attributes:
        fields: Role to column of a file of records, a role being one of `mixopt.spec.checks.ROLES`.
        skips: Whether records that cannot be read are left out and counted, instead of an error.
        holdout: The share of the records that is taken, the first of their fixed order; all by default.
        codes: What the names of the source's classes stand for, by name or by number in the model.
        takes_some: Whether some of the model's classes will do, as in a test split.
        restricts: Whether logits are then restricted to those.
        labelled: Whether its labels are read; if not, it need not have any, all are 0, and it has no classes.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    skips: bool = False
    holdout: float | None = None
    codes: Mapping[str, str | int] = field(default_factory=dict)
    takes_some: bool = False
    restricts: bool = True
    labelled: bool = True

    @property
    def key(self) -> str:
        """A text that is another one wherever the records that are taken, or what they are, could be others."""
        # What was decoded before samples could do without labels keeps its key.
        unread = [] if self.labelled else ["unlabelled"]
        return json.dumps([sorted(self.fields.items()), self.skips, self.holdout, *unread])


@dataclass(frozen=True)
class Listing:
    """What a source is made of, before anything is opened.

    Attributes:
        files: Every file that it reads, in an order that follows from their names.
        left_out: What it does not read of what lies there, for the user.
        key: What it depends on beside the files.
    """

    files: tuple[Path, ...]
    left_out: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True)
class Source:
    """An opened source, nothing encoded yet.

    Attributes:
        labels: ``[n]`` int64, in the source's own numbering.
        classes: The name of each label, where the source knows them.
        load: Record number to an image ``[height, width, 3]`` uint8, or to the fields of a record as a dict; raises
            `DataError` where it does not decode.
        where: Record number to its place in the source, such as ``, line 7``, to stand behind the path in messages.
        converted: What was taken as what and what was done to records while they were loaded, for the user; asked once
            all are.
        bad: What is wrong with each record that was left out, where the reading skips those.
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...] | None
    load: Callable[[int], Any]
    where: Callable[[int], str] = _nowhere
    converted: Callable[[], Sequence[str]] = _nothing
    bad: tuple[str, ...] = ()


def no_labels(count: int) -> NDArray[np.int64]:
    """What stands for the labels of a source whose labels are not read, ``[n]``."""
    return np.zeros(count, dtype=np.int64)


class SourceModule(Protocol):
    """The contract of a module in this folder."""

    def matches(self, path: Path) -> bool:
        """Whether this source opens such a path."""

    def files(self, path: Path, reading: Reading) -> Listing:
        """What it reads, and what it leaves out.

        Raises:
            DataError: It is not of the expected form.
        """

    def open_source(self, path: Path, reading: Reading) -> Source:
        """Open it.

        Raises:
            DataError: It is not of the expected form.
        """
