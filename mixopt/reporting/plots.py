"""The pictures of a report, each an SVG text. The only module that imports matplotlib, when it draws."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle
from textwrap import fill
from typing import TYPE_CHECKING

from mixopt.reporting.rows import TrialPoint
from mixopt.reporting.schema import Front, MadeRow, Report
from mixopt.values.metrics import metric_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, told apart by colour-blind readers too, without their yellow; and two greys.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333", "#999999")
MARKS = "osD^vPX"
PALE = "#bbbbbb"
STYLE = {
    "svg.fonttype": "none",  # text stays text, in the reader's own font
    "svg.hashsalt": "mixopt",
    "text.parse_math": False,
    "font.size": 9,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
}
WIDTH = 8.0  # inches
COLUMNS = 2
TITLE = 60  # letters in a line of a panel's title
# What the axes of a curve are, where they are not a number that the method varied (or steps) and the metric.
AXES = {"loss": ("epoch", "loss"), "ratio": ("tensor", "ratio")}
LINE = 0.17  # inches from one label to the next


@dataclass(frozen=True)
class _Panel:
    """One plot of what a method saw: lines by name, and points of the first one that the method did not take."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    refused: Sequence[tuple[float, float]]


def picture(width: float, height: float, draw: Callable[[Figure], None]) -> str:
    """What a function draws on a figure, as SVG; the same drawing gives the same text.

    Args:
        width: In inches.
        height: In inches.
        draw: Given the figure.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(STYLE, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's font may have it
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    # Groups are not referred to, and pictures on one page must not share ids.
    return re.sub(r'<g id="[^"]*"', "<g", content.getvalue())


def progress(report: Report, trials: Sequence[TrialPoint]) -> str:
    """The best trial so far against the images that trials were scored on, with the other rows as points.

    Args:
        report: The content of report.json.
        trials: Of `mixopt.study.read_trials`, the start first.
    """
    sign = metric_named(report.metric).sign
    images = list(accumulate(trial.images for trial in trials))
    # A trial that was given up early has an estimate for a value, and cannot win.
    values = [float("-inf") if trial.estimated else sign * trial.value for trial in trials]
    best = [sign * value for value in accumulate(values, max)]
    signal = report.signal
    # With more splits that steer, the sampler is told a mean over them, which is not known of the other rows.
    before = [row for row in _mixes(report) if row.name != "search" and not report.select]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(best[0], color="#333333", linestyle="--", linewidth=1, label="the start")
        axes.step(images, best, where="post", color=COLOURS[0], linewidth=2, label="best trial so far")
        looks = zip(cycle(COLOURS[1:6]), cycle(MARKS), strict=False)
        for row, (colour, mark) in zip(before, looks, strict=False):
            place = ([row.images], [row.signals[signal]])
            axes.plot(*place, mark, color=colour, markersize=7, clip_on=False, label=row.name)
        axes.set_xlabel("images scored")
        axes.set_ylabel(f"{signal}, samples that steer")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlim(left=0)
        figure.legend(loc="outside right upper")

    return picture(WIDTH, 3.4, draw)


def tests(report: Report) -> str:
    """Each mix's score on every test split against that on the validation split, named."""
    made = _mixes(report)
    splits = report.tests
    height = max(2.3, LINE * len(made) + 0.9)

    def draw(figure: Figure) -> None:
        for axes, split in zip(_grid(figure, len(splits), 1), splits, strict=True):
            axes.set_xlabel(f"{report.metric}, selection")
            axes.set_ylabel(f"{report.metric_of(split)}, {split}")
            points = {row.name: (row.search, row.test[split]) for row in made}
            _named_points(axes, points, report.best, LINE / (height - 0.8))

    return picture(WIDTH, height * len(splits), draw)


def front(found: Front) -> str:
    """The first two objectives of every trial, with the Pareto front and the trial that was picked."""
    points = [(point, point.values[:2]) for point in found.points]
    on_front = sorted(values for point, values in points if point.on_front)
    picked = [values for point, values in points if point.trial == found.picked]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(*_columns([values for point, values in points if not point.on_front]), "o", color=PALE, label="trial")
        axes.plot(*_columns(on_front), "s-", color=COLOURS[0], linewidth=1, label="on the front")
        axes.plot(*_columns(picked), "*", color=COLOURS[1], markersize=15, label="picked")
        axes.set_xlabel(f"{found.signal}, {found.objectives[0].name}")
        axes.set_ylabel(f"{found.signal}, {found.objectives[1].name}")
        figure.legend(loc="outside right upper")

    return picture(WIDTH, 3.8, draw)


def curves(report: Report) -> str:
    """What methods saw on the way, a panel for each curve; nothing where the report holds none."""
    panels = list(_curves(report))
    if not panels:
        return ""

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        for axes, panel in zip(_grid(figure, len(panels), COLUMNS), panels, strict=True):
            axes.set_title(fill(panel.title, TITLE), fontsize=8)
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            if not any(x % 1 for points in panel.lines.values() for x, _ in points):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for (name, points), colour, mark in zip(panel.lines.items(), cycle(COLOURS), cycle(MARKS), strict=False):
                axes.plot(*_columns(points), f"{mark}-", color=colour, markersize=4, linewidth=1, label=name)
            axes.plot(*_columns(panel.refused), "o", color=COLOURS[0], markersize=4, markerfacecolor="white")
            if len(panel.lines) > 1:
                axes.legend(fontsize=7)

    return picture(WIDTH, 2.4 * -(-len(panels) // COLUMNS), draw)


def _mixes(report: Report) -> list[MadeRow]:
    """The rows that are made of ingredients: the base alone is so far from them that it would push them together."""
    return [row for row in report.made if row.ingredients]


def _grid(figure: Figure, count: int, columns: int) -> list[Axes]:
    """So many plots, row by row, without those left over in the last one."""
    rows = -(-count // columns)
    found = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in found[count:]:
        axes.set_axis_off()
    return found[:count]


def _named_points(axes: Axes, points: Mapping[str, tuple[float, float]], best: str | None, gap: float) -> None:
    """Points whose names stand beside the plot, in the points' order, each with a line to its point.

    Args:
        axes: Where to.
        points: By name.
        best: The name of the one that stands out.
        gap: From one name to the next, as a fraction of the plot's height.
    """
    axes.plot(*_columns(list(points.values())), "o", color=COLOURS[0], markersize=6)
    low, high = axes.get_ylim()
    ranked = sorted(points, key=lambda name: points[name][1])
    places: list[float] = []
    for name in ranked:
        wanted = (points[name][1] - low) / (high - low)
        places.append(max(wanted, places[-1] + gap) if places else wanted)
    limit = 1.0
    for number in reversed(range(len(places))):  # what was pushed out at the top comes down again
        places[number] = min(places[number], limit)
        limit = places[number] - gap
    for name, place in zip(ranked, places, strict=True):
        if name == best:
            axes.plot(*_columns([points[name]]), "D", color=COLOURS[1], markersize=7)
        axes.annotate(
            name,
            points[name],
            (1.06, place),
            textcoords="axes fraction",
            verticalalignment="center",
            fontsize=8,
            fontweight="bold" if name == best else "normal",
            zorder=1,
            arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 2},
        )


def _curves(report: Report) -> Iterator[_Panel]:
    for row in report.made:
        for name, points in row.curves.items():
            if len(points) < 2:
                continue
            swept = "x" in points[0]
            x_label, y_label = AXES.get(name, (name if swept else "step", report.metric))
            lines = {name: [(point.get("x", step), point["value"]) for step, point in enumerate(points, start=1)]}
            if row.sweep:
                lines = {"selection": [(point.x, _or_gap(point.search)) for point in row.sweep]}
                lines |= {
                    split: [(point.x, _or_gap(point.test[split])) for point in row.sweep] for split in report.tests
                }
            refused = [
                (step, point["value"]) for step, point in enumerate(points, start=1) if not point.get("added", True)
            ]
            yield _Panel(f"{row.name}: {name}", x_label, y_label, lines, refused)


def _or_gap(value: float | None) -> float:
    """A point that is not finite is a gap in its line."""
    return math.nan if value is None else value


def _columns(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """The x and the y of points."""
    return [point[0] for point in points], [point[1] for point in points]
