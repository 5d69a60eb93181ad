"""In distribution against each shift: every checkpoint, row and trial a point, sweeps as curves, and the front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mixopt.reporting.diagnosis import Diagnosis
from mixopt.reporting.plots.drawing import (
    COLOURS,
    GROUND,
    INK,
    LINE,
    PALE,
    WIDTH,
    Drawing,
    columns,
    mixes,
    named_points,
    or_gap,
)
from mixopt.reporting.rows import split_shown
from mixopt.reporting.schema import MadeRow, Report
from mixopt.values.metrics import metric_named
from mixopt.values.samples import VALIDATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
# So many rows have their names beside the picture; of more, those on the front, the best and the references.
NAMED = 18


def pairs_of(report: Report) -> list[tuple[str, str]]:
    """The splits to draw against each other: the first test split against each other one, else selection against it."""
    splits = [split for split in report.tests if report.metric_of(split) == report.metric]
    return [(splits[0], split) for split in splits[1:]] if splits[1:] else [(VALIDATION, split) for split in splits]


def shift(report: Report, diagnosis: Diagnosis | None, across: str, along: str) -> Drawing:
    """One split against another.

    Args:
        report: The report.
        diagnosis: Has checkpoints and trials; None leaves them out.
        across: The split on the horizontal axis.
        along: The split on the vertical axis.
    """
    rows = {row.name: _place(row, report, across, along) for row in mixes(report)}
    alone, trials = _others(diagnosis, across, along)
    partly = diagnosis is not None and is_part(report, diagnosis, across, along)
    sign = metric_named(report.metric).sign
    single = {row.name for row in report.made if row.models == 1}
    every = [place for name, place in rows.items() if name in single] + ([] if partly else list(alone.values()))
    front = front_of(every, sign)
    named = {name: place for name, place in rows.items() if len(rows) <= NAMED or _is_key(name, place, report, front)}
    height = max(3.4, LINE * len(named) + 0.9)

    def draw(figure: Figure) -> dict[str, str]:
        axes = figure.subplots()
        axes.set_xlabel(f"{report.metric}, {split_shown(across)}")
        axes.set_ylabel(f"{report.metric}, {split_shown(along)}")
        axes.plot(*columns(trials), ".", color=PALE, markersize=3, label="trial", zorder=1)
        for row in report.made:
            if row.sweep:
                _sweep(axes, row, across, along)
        axes.plot(*columns(sorted(front)), "-", color=INK, linewidth=0.8, alpha=0.5, label="front", zorder=1)
        hovered = {}
        for number, (name, place) in enumerate(alone.items()):
            fill = GROUND if partly else COLOURS[5]
            axes.plot(
                *columns([place]), "o", color=COLOURS[5], markerfacecolor=fill, markersize=4, gid=f"c{number}", zorder=2
            )
            hovered[f"c{number}"] = f"{name}: {place[0]:.4f}, {place[1]:.4f}"
        for number, (name, place) in enumerate(rows.items()):
            axes.plot(*columns([place]), "o", color=COLOURS[0], markersize=5, gid=f"r{number}", zorder=3)
            hovered[f"r{number}"] = f"{name}: {place[0]:.4f}, {place[1]:.4f}"
        if report.best in rows:
            _bars(axes, report, across, along)
        named_points(axes, named, report.best, LINE / (height - 0.8))
        return hovered

    best = rows.get(report.best)
    said = f"{report.best} is at {best[0]:.4f} and {best[1]:.4f}" if best else ""
    return Drawing(
        f"shift-{along}",
        f"{split_shown(across)} against {split_shown(along)}",
        f"{len(rows)} rows, {len(alone)} checkpoints and {len(trials)} trials; {said}.",
        WIDTH,
        height,
        draw,
    )


def is_part(report: Report, diagnosis: Diagnosis, *splits: str) -> bool:
    """Whether checkpoints saw less than all of one of these splits."""
    return any(
        diagnosis.samples.get(split, 0) < report.splits[split].samples for split in splits if split != VALIDATION
    )


def front_of(points: Sequence[Point], sign: float) -> list[Point]:
    """The points that no other beats on both splits, without repeats."""

    def beats(one: Point, other: Point) -> bool:
        return one != other and all(sign * (a - b) >= 0 for a, b in zip(one, other, strict=True))

    unique = list(dict.fromkeys(points))
    return [each for each in unique if not any(beats(other, each) for other in unique)]


def _place(row: MadeRow, report: Report, across: str, along: str) -> Point:
    return row.metrics[across][report.metric], row.metrics[along][report.metric]


def _is_key(name: str, place: Point, report: Report, front: Sequence[Point]) -> bool:
    return name in (report.best, "individual", "uniform", "greedy") or place in front


def _others(diagnosis: Diagnosis | None, across: str, along: str) -> tuple[dict[str, Point], list[Point]]:
    """Checkpoints by name, and trials."""
    if diagnosis is None:
        return {}, []
    wanted = {across, along}
    alone = {
        each.name: (each.scores[across], each.scores[along])
        for each in diagnosis.checkpoints
        if wanted <= each.scores.keys()
    }
    tried = [{VALIDATION: each.search, **each.test} for each in diagnosis.trials]
    return alone, [(each[across], each[along]) for each in tried if wanted <= each.keys()]


def _sweep(axes: Axes, row: MadeRow, across: str, along: str) -> None:
    points = [{VALIDATION: point.search, **point.test} for point in row.sweep]
    if all({across, along} <= point.keys() for point in points):
        places = [(or_gap(point[across]), or_gap(point[along])) for point in points]
        axes.plot(*columns(places), "-", color=COLOURS[2], linewidth=1, alpha=0.7, label=row.name, zorder=1)


def _bars(axes: Axes, report: Report, across: str, along: str) -> None:
    """The 95 % intervals of the best row, where samples tell them."""
    row = report.row(report.best)
    x, y = _place(row, report, across, along)
    if across in row.interval and along in row.interval:
        (left, right), (low, high) = row.interval[across], row.interval[along]
        for xs, ys in (([left, right], [y, y]), ([x, x], [low, high])):
            axes.plot(xs, ys, "-", color=COLOURS[1], linewidth=1, zorder=2)
