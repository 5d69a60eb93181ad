"""The tables of a report, as header and cells."""

from __future__ import annotations

from collections.abc import Sequence

from mixopt.reporting.build import REFERENCES
from mixopt.reporting.schema import Front, MadeRow, Report
from mixopt.values.samples import VALIDATION

Table = tuple[list[str], list[list[str]]]


def table(report: Report, intervals: bool = False, details: bool = False) -> Table:
    """Header and cells of the table that a terminal or a README shows.

    Args:
        report: The report.
        intervals: Show half the width of every score's 95 % interval beside it.
        details: Show images and peak memory as well.
    """
    tests = [*(f"{name} (steers)" for name in report.steering), *(_shown(report, name) for name in report.tests)]
    measured = details and any(row.peak_memory for row in report.made)
    ensembles = any(row.models > 1 for row in report.made)
    header = ["method", "selection", *tests, "evaluations", *(["images"] if details else []), "seconds", "ingredients"]
    header += [*(["peak MB"] if measured else []), *(["inference"] if ensembles else [])]
    cells = []
    for row in report.methods:
        if not isinstance(row, MadeRow):
            cells.append([row.name, *("-" for _ in header[1:])])
            continue
        scores = {VALIDATION: row.search, **row.select, **row.test}
        cells.append(
            [
                row.name,
                *(_score(scores[split], row.interval.get(split) if intervals else None) for split in scores),
                str(row.evaluations),
                *([f"{row.images:,}"] if details else []),
                f"{row.seconds:.1f}",
                str(row.ingredients),
                *([f"{row.peak_memory / 1e6:,.0f}" if row.peak_memory else "-"] if measured else []),
                *([f"{row.models}x"] if ensembles else []),
            ]
        )
    return header, cells


def widths(report: Report) -> dict[str, float]:
    """Column name to half the width of its widest 95 % interval."""
    columns = {VALIDATION: "selection", **{name: name for name in report.tests}}
    return {
        shown: max((_half(row.interval[split]) for row in report.made if split in row.interval), default=0.0)
        for split, shown in columns.items()
    }


def ties(report: Report) -> list[str]:
    """The other rows that score exactly as the best does on the validation split, and are single models too."""
    best = report.row(report.best)
    return [row.name for row in report.made if row is not best and row.models == 1 and row.search == best.search]


def comparisons(report: Report) -> Table:
    """Header and cells of the paired differences against the references, with p-values; see `compared_by`.

    The header alone names ``method`` where the report holds none of the references.
    """
    made = {row.name: row for row in report.made}
    references = [name for name in REFERENCES if name in made]
    splits = [
        split
        for split in (VALIDATION, *report.tests)
        if all(split in row.accuracy_interval and _compared(report) in row.metrics[split] for row in report.made)
    ]
    header = ["method"]
    header += [f"{'selection' if split == VALIDATION else split} - {name}" for name in references for split in splits]
    cells = [
        [row.name, *(_difference(report, row, made[name], split) for name in references for split in splits)]
        for row in report.made
    ]
    return header if splits else ["method"], cells


def compared_by(report: Report) -> str:
    """What the paired differences are of, and by which test: the driving metric, where it was tested."""
    measured = _compared(report)
    return f"difference in {measured}, {'exact McNemar p' if measured == 'accuracy' else 'p of a paired t-test'}"


def front(found: Front) -> Table:
    """Header and cells of the trials on the Pareto front, and of the picked one, which is marked.

    Where no trial was confirmed to be better, the start is picked, on the front or not.
    """
    marks = {True: "picked", False: "picked, not on the front: no trial was confirmed"}
    header = ["trial", *(f"{each.name} (weight {each.weight:g})" for each in found.objectives), ""]
    cells = [
        [
            str(point.trial),
            *(f"{value:.4f}" for value in point.values),
            marks[point.on_front] if point.trial == found.picked else "",
        ]
        for point in found.points
        if point.on_front or point.trial == found.picked
    ]
    return header, cells


def _shown(report: Report, split: str) -> str:
    """A test split's column: another metric than the driving one is named, and so are classes left out."""
    measured, among = report.metric_of(split), report.splits[split].among if split in report.splits else None
    notes = [measured] if measured != report.metric else []
    notes += [f"among {among} classes"] if among else []
    return f"{split} ({', '.join(notes)})" if notes else split


def _compared(report: Report) -> str:
    return report.metric if any(row.paired_p for row in report.made) else "accuracy"


def _difference(report: Report, row: MadeRow, reference: MadeRow, split: str) -> str:
    if row is reference:
        return "-"
    measured = _compared(report)
    gain = row.metrics[split][measured] - reference.metrics[split][measured]
    p = (row.mcnemar_p if measured == "accuracy" else row.paired_p).get(reference.name, {}).get(split)
    return f"{gain:+.4f}" if p is None else f"{gain:+.4f} ({_p_value(p)})"


def _score(value: float, bounds: Sequence[float] | None) -> str:
    return f"{value:.4f}" if bounds is None else f"{value:.4f} ±{_half(bounds):.4f}"


def _half(bounds: Sequence[float]) -> float:
    return (bounds[1] - bounds[0]) / 2


def _p_value(value: float) -> str:
    return "p<0.001" if value < 0.001 else f"p={value:.3f}"
