"""What methods saw on the way: a panel for each curve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from textwrap import fill
from typing import TYPE_CHECKING

from mixopt.reporting.plots.drawing import COLOURS, GROUND, MARKS, WIDTH, Drawing, columns, grid, or_gap
from mixopt.reporting.schema import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 2
PANELS = 24  # more are in report.json
TITLE = 34  # letters in a line of a panel's title
# What the axes of a curve are, where they are not a number that the method varied (or steps) and the metric.
AXES = {"loss": ("epoch", "loss"), "ratio": ("tensor", "ratio")}


@dataclass(frozen=True)
class _Panel:
    """One plot of what a method saw: lines by name, and points of the first one that the method did not take."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    refused: Sequence[tuple[float, float]]


def curves(report: Report) -> Drawing | None:
    """What methods saw on the way, a panel for each of the first `PANELS` curves; None where there is none."""
    panels = list(islice(_curves(report), PANELS))
    if not panels:
        return None

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        for axes, panel in zip(grid(figure, len(panels), COLUMNS), panels, strict=True):
            axes.set_title(fill(panel.title, TITLE), fontsize=8)
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            if not any(x % 1 for points in panel.lines.values() for x, _ in points):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for (name, points), colour, mark in zip(panel.lines.items(), cycle(COLOURS), cycle(MARKS), strict=False):
                axes.plot(*columns(points), f"{mark}-", color=colour, markersize=4, linewidth=1, label=name)
            axes.plot(*columns(panel.refused), "o", color=COLOURS[0], markersize=4, markerfacecolor=GROUND)
            if len(panel.lines) > 1:
                axes.legend(fontsize=7)

    text = f"Panels: {', '.join(panel.title for panel in panels)}."
    return Drawing("curves", "What the methods saw on the way", text, WIDTH, 2.1 * -(-len(panels) // COLUMNS), draw)


def _curves(report: Report) -> Iterator[_Panel]:
    for row in report.made:
        for name, points in row.curves.items():
            if len(points) < 2:
                continue
            swept = "x" in points[0]
            x_label, y_label = AXES.get(name, (name if swept else "step", report.metric))
            lines = {name: [(point.get("x", step), point["value"]) for step, point in enumerate(points, start=1)]}
            if row.sweep:
                lines = {"selection": [(point.x, or_gap(point.search)) for point in row.sweep]}
                lines |= {
                    split: [(point.x, or_gap(point.test[split])) for point in row.sweep] for split in report.tests
                }
            refused = [
                (step, point["value"]) for step, point in enumerate(points, start=1) if not point.get("added", True)
            ]
            yield _Panel(f"{row.name}: {name}", x_label, y_label, lines, refused)
