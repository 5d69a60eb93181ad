"""Several runs on one page: seeds, samplers or pools side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mixopt.reporting import plots
from mixopt.reporting.page.parts import Cell, Figures, Fold, Part, Section, Table, TableRow
from mixopt.reporting.page.run import PageRun
from mixopt.reporting.page.sections import checkpoints, greedy
from mixopt.reporting.page.table import every_row
from mixopt.reporting.rows import split_shown
from mixopt.reporting.schema import Report
from mixopt.values.samples import VALIDATION

KEY_ROWS = ("individual", "uniform", "greedy")


def answer_of(runs: Sequence[PageRun]) -> str:
    """How the runs differ, in one sentence: the mean of their best rows' scores, and the range."""
    scores = _scores(runs)
    parts = []
    for split, known in scores.items():
        if len(known) > 1:
            values = list(known.values())
            parts.append(f"{np.mean(values):.4f} on {split_shown(split)} ({min(values):.4f} to {max(values):.4f})")
    metrics = ", ".join(dict.fromkeys(run.report.metric for run in runs))
    return f"Over {len(runs)} runs the best row has on average {metrics} {', '.join(parts)}."


def sections_of(runs: Sequence[PageRun]) -> Iterator[Section]:
    """A table of the runs, their searches in one picture, their mixes beside each other, and each run's own table."""
    yield Section("The runs", [_table(runs)], _differences(runs))
    searched = {run.name: (run.report, run.trials) for run in runs if run.trials}
    if searched:
        yield Section("The searches", [Figures([plots.runs_together(searched)])])
    mixes = [(run, run.diagnosis.mix_of(run.report.best)) for run in runs if run.diagnosis]
    known = [(run, mix) for run, mix in mixes if mix is not None]
    if known:
        limit = max(abs(each) for _, mix in known for line in mix.coefficients for each in line) or 1.0
        drawn = [plots.mix(mix.model_copy(update={"row": f"{run.name}, {mix.row}"}), limit=limit) for run, mix in known]
        yield Section("The mixes", [Figures(drawn, "The colours mean the same in all of them.")])
    for run in runs:
        own = every_row(run)
        parts: list[Part] = [
            *own.parts,
            Fold("Why", [*(checkpoints(run.diagnosis) if run.diagnosis else ()), *greedy(run)]),
        ]
        yield Section(run.name, parts, own.missing)


def _scores(runs: Sequence[PageRun]) -> dict[str, dict[str, float]]:
    """Split to run to the score of its best row, the splits in their order."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        best = run.report.row(run.report.best)
        for split, value in {VALIDATION: best.search, **best.test}.items():
            found.setdefault(split, {})[run.name] = value
    return found


def _table(runs: Sequence[PageRun]) -> Table:
    """A line for each run and row that people compare: the best one, and the usual baselines."""
    splits = list(_scores(runs))
    header = ["run", "row", *map(split_shown, splits), "images", "seconds"]
    lines = []
    for run in runs:
        report = run.report
        wanted = [report.best, *(name for name in KEY_ROWS if name != report.best)]
        for row in (row for name in wanted for row in report.made if row.name == name):
            scores = {VALIDATION: row.search, **row.test}
            cells = [
                Cell(f"{scores[split]:.4f}", "", scores[split]) if split in scores else Cell("-") for split in splits
            ]
            cells += [Cell(f"{row.images:,}", "", row.images), Cell(f"{row.seconds:,.1f}", "", row.seconds)]
            lines.append(TableRow([Cell(run.name), Cell(row.name), *cells], "best" if row.name == report.best else ""))
    return Table(header, lines, range(8, 2 + len(splits)), "★ is a run's best row.")


def _differences(runs: Sequence[PageRun]) -> list[str]:
    """What keeps the runs from being compared number by number."""
    told = []
    reports = [run.report for run in runs]
    if len({report.metric for report in reports}) > 1:
        told.append("the runs have different metrics: their scores are not comparable")
    shared = set.intersection(*(set(report.splits) for report in reports))
    other = [split for split in reports[0].splits if split in shared and len(_prints(reports, split)) > 1]
    if other:
        told.append(f"the runs have different samples as {', '.join(map(split_shown, other))}")
    return told


def _prints(reports: Sequence[Report], split: str) -> set[str]:
    return {report.splits[split].fingerprint for report in reports}
