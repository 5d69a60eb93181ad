"""A small log-log line chart as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixopt.reporting.plots import COLOURS, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (3.1, 2.6)  # inches of one plot


@dataclass(frozen=True)
class Panel:
    """One plot of the chart.

    Attributes:
        title: Above it.
        x_label: Below it.
        y_label: Beside it.
        x: The places, above 0.
        lines: Name to one value per place; values of 0 or less are left out.
    """

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]


def draw(rows: Sequence[Sequence[Panel]], note: str) -> str:
    """The SVG of rows of panels; the panels of a row share their y axis, a name has one colour throughout.

    Args:
        rows: From top to bottom, equally long.
        note: A line at the foot.
    """
    names = list(dict.fromkeys(name for row in rows for panel in row for name in panel.lines))
    colour = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}

    def on(figure: Figure) -> None:
        from matplotlib.ticker import EngFormatter, FixedLocator, NullFormatter, NullLocator

        for row, plots in zip(rows, figure.subplots(len(rows), len(rows[0]), sharey="row", squeeze=False), strict=True):
            for panel, axes in zip(row, plots, strict=True):
                axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label, xscale="log", yscale="log")
                axes.xaxis.set_major_locator(FixedLocator(panel.x))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
                axes.margins(y=0)
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
                for name, line in panel.lines.items():
                    shown = [value if value > 0 else math.nan for value in line]
                    axes.plot(
                        panel.x, shown, "o-", color=colour[name], markersize=4, linewidth=1.5, label=name, clip_on=False
                    )
            low, high = plots[0].get_ylim()
            plots[0].set_ylim(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)))
        lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        figure.legend(handles=list(lines.values()), loc="outside upper left", ncols=len(lines))
        figure.supxlabel(note, fontsize=8)

    return picture(SIZE[0] * len(rows[0]), SIZE[1] * len(rows) + 0.6, on)
