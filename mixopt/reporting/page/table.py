"""The table of every row, as a page shows it."""

from __future__ import annotations

from mixopt.reporting.diagnosis import Diagnosis, Midpoints
from mixopt.reporting.page.parts import Cell, Section, Table, TableRow, Text
from mixopt.reporting.page.run import PageRun
from mixopt.reporting.rows import split_shown
from mixopt.reporting.schema import MadeRow, Report
from mixopt.values.samples import VALIDATION

# So many splits fit beside each other on a laptop; the others are shown on demand.
FITTING = 6


def every_row(run: PageRun) -> Section:
    """One line per row: scores with small intervals, cost at the right; rows that failed, with why, under it."""
    report = run.report
    splits = [VALIDATION, *report.steering, *report.tests]
    header = ["row", *(_called(report, split) for split in splits), "images", "seconds", "checkpoints"]
    ensembles = any(row.models > 1 for row in report.made)
    header += ["inference"] if ensembles else []
    rows = [TableRow(_cells(row, splits, ensembles), mark_of(report, row)) for row in report.made]
    judged = judging_split(report)
    caption = (
        f"{report.metric}, ± half the width of its 95 % interval. ★ is the best row by samples that chose no row's "
        f"mix; ≈ is not told apart from it on {_called(report, judged)} (paired, 95 %). Images and seconds are all "
        "that a row takes from nothing."
    )
    folded = range(1 + FITTING, 1 + len(splits))
    parts: list[Table | Text] = [Table(header, rows, folded, caption)]
    if report.failures:
        parts.append(Text([f"{row.name} failed: {row.error}" for row in report.failures]))
    return Section("Every row", parts)


def checkpoint_table(diagnosis: Diagnosis) -> Table:
    """One line per checkpoint: scores, distance and angle, and what half-way mixes with it gain on average."""
    splits = list(dict.fromkeys(split for each in diagnosis.checkpoints for split in each.scores))
    header = ["checkpoint", *map(split_shown, splits), "distance", "cosine to base", "mean cosine", "half-way"]
    half_way = mean_gains(diagnosis.midpoints) if diagnosis.midpoints else {}
    rows = [
        TableRow(
            [
                Cell(each.name),
                *(_number(each.scores.get(split), "{:.4f}") for split in splits),
                _number(each.distance, "{:.3g}"),
                _number(each.base_cosine, "{:.4f}"),
                _number(each.mean_cosine, "{:.3f}"),
                _number(half_way.get(each.name), "{:+.4f}"),
            ]
        )
        for each in diagnosis.checkpoints
    ]
    unit = "nats of loss" if diagnosis.midpoints and diagnosis.midpoints.loss_gains else diagnosis.metric
    caption = f"half-way: how much better the mixes half-way to the others are than the two ends, mean, in {unit}."
    return Table(header, rows, range(1 + FITTING, 1 + len(splits)), caption if half_way else "")


def mean_gains(between: Midpoints) -> dict[str, float]:
    """By checkpoint, what mixes half-way to the others gain over the mean of both ends: in nats, where known."""
    found = {}
    for name, line in zip(between.names, between.loss_gains or between.gains, strict=True):
        known = [each for each in line if each is not None]
        if known:
            found[name] = sum(known) / len(known)
    return found


def _number(value: float | None, form: str) -> Cell:
    return Cell("-") if value is None else Cell(form.format(value), "", value)


def judging_split(report: Report) -> str:
    """Where rows are told apart: the first test split, or without any the selection split."""
    return next((split for split in report.tests if report.metric_of(split) == report.metric), VALIDATION)


def mark_of(report: Report, row: MadeRow) -> str:
    """``best``, ``tied`` where the row is not told apart from the best, or nothing."""
    if row.name == report.best:
        return "best"
    best, split = report.row(report.best), judging_split(report)
    known = row.gains.get(report.best, {}).get(split)
    if known is None and row.name in best.gains:
        known = best.gains[row.name].get(split)
    return "tied" if known is not None and known[1] <= 0 <= known[2] else ""


def _called(report: Report, split: str) -> str:
    if split == VALIDATION:
        return split_shown(split)
    measured = report.metric_of(split)
    notes = [measured] if measured != report.metric else []
    notes += ["steers"] if split in report.steering else []
    if split in report.splits and (among := report.splits[split].among):
        notes.append(f"among {among} classes")
    return f"{split} ({', '.join(notes)})" if notes else split


def _cells(row: MadeRow, splits: list[str], ensembles: bool) -> list[Cell]:
    scores = {VALIDATION: row.search, **row.select, **row.test}
    cells = [Cell(row.name)]
    for split in splits:
        ends = row.interval.get(split)
        small = "" if ends is None else "±" + f"{(ends[1] - ends[0]) / 2:.3f}".removeprefix("0")
        cells.append(Cell(f"{scores[split]:.4f}", small, scores[split]))
    cells += [
        Cell(f"{row.images:,}", "", row.images),
        Cell(f"{row.seconds:,.1f}", "", row.seconds),
        Cell(str(row.ingredients), "", row.ingredients),
    ]
    return [*cells, *([Cell(f"{row.models}x", "", row.models)] if ensembles else [])]
