"""What trackers are given of a run: a report and a search's trials, as names and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixopt.reporting.rows import TrialPoint, best_so_far
from mixopt.reporting.schema import MadeRow, Report
from mixopt.values.samples import VALIDATION

Param = str | int | float | bool


@dataclass(frozen=True)
class RecordedRow:
    """A method.

    Attributes:
        name: The method, or ``method:variant``.
        numbers: ``score/SPLIT`` with ``low/SPLIT`` and ``high/SPLIT``, its 95 % interval, where samples tell one;
            ``cost/evaluations``, ``cost/images``, ``cost/seconds`` and ``ingredients``. Empty where the row failed.
        error: Why it failed; empty where it did not.
    """

    name: str
    numbers: Mapping[str, float]
    error: str = ""


@dataclass(frozen=True)
class CurvePoint:
    """How far a search was after a trial.

    Attributes:
        trial: The trial's number.
        images: Samples that it and all before it were scored on.
        best: What the sampler was told of the best of them.
    """

    trial: int
    images: int
    best: float


@dataclass(frozen=True)
class RunRecord:
    """A finished run, as trackers are given it.

    Attributes:
        name: What the run is called.
        digest: Of its report, in hex; the run is known again by it.
        made: When its report was written, in seconds since 1970.
        seconds: What the run took.
        params: What it was made with, and the best row's name.
        best: The best row.
        rows: Every row, in the table's order.
        curve: Of a search; empty where there is none.
        files: Name to file: the page, report.json, recipe.json, and the model where that was asked for.
    """

    name: str
    digest: str
    made: float
    seconds: float
    params: Mapping[str, Param]
    best: RecordedRow
    rows: tuple[RecordedRow, ...]
    curve: tuple[CurvePoint, ...]
    files: Mapping[str, Path]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the rows' numbers, each once, in order."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.numbers))


def rows_of(report: Report) -> tuple[RecordedRow, ...]:
    """The rows of a report, those that failed too."""
    return tuple(
        RecordedRow(row.name, dict(_numbers(row))) if isinstance(row, MadeRow) else RecordedRow(row.name, {}, row.error)
        for row in report.methods
    )


def params_of(report: Report) -> dict[str, Param]:
    """What a run was made with, by name; what does not apply is left out."""
    found: dict[str, Param | None] = {
        "command": report.command,
        "metric": report.metric,
        "best": report.best,
        "family": report.family,
        "seed": report.seed,
        "sampler": report.sampler,
        "signal": report.signal if report.command == "search" else None,
        "space": report.space.kind if report.space else None,
        "dims": report.space.dims if report.space else None,
        "precision": str(report.precision.get("mode", "")) or None,
        "batchnorm": str(report.batchnorm.get("mode", "")) or None,
        "tuning": report.tuning,
        "finished": report.finished,
        "version": report.version,
        **{f"trials/{state}": count for state, count in (report.trials or {}).items()},
        **{f"samples/{name}": split.samples for name, split in report.splits.items()},
        **{f"select/{name}": weight for name, weight in report.select.items()},
    }
    return {name: value for name, value in found.items() if value is not None}


def curve_of(report: Report, trials: Sequence[TrialPoint]) -> tuple[CurvePoint, ...]:
    """The best trial so far against trials and images, as the page draws it.

    Args:
        report: The report of a search.
        trials: Of `mixopt.study.read_trials`.
    """
    points = (
        CurvePoint(trial.number, seen, value)
        for trial, seen, value in zip(trials, *best_so_far(report.metric, trials), strict=True)
    )
    return tuple(point for point in points if math.isfinite(point.best))


def _numbers(row: MadeRow) -> Iterator[tuple[str, float]]:
    for split, score in {VALIDATION: row.search, **row.select, **row.test}.items():
        yield f"score/{split}", score
        if split in row.interval:
            low, high = row.interval[split]
            yield f"low/{split}", low
            yield f"high/{split}", high
    yield "cost/evaluations", row.evaluations
    yield "cost/images", row.images
    yield "cost/seconds", row.seconds
    yield "ingredients", row.ingredients
