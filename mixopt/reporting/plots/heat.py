"""Tables of numbers as colours around 0: a mix, and what lies half-way between checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixopt.reporting.diagnosis import Midpoints, RowMix
from mixopt.reporting.plots.drawing import DIVERGING, WIDTH, Drawing, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Numbers stand in the cells of tables no larger than this; others show them by hovering.
WRITTEN = 120
# What is told of half-way mixes: the unit beside the axis, the factor to it, and the form of a number.
_UNITS = {"loss": (", nats", 1.0, "{:+.2f}"), "accuracy": (", points", 100.0, "{:+.1f}"), "score": ("", 1.0, "{:+.3g}")}
LABELLED = 40  # so many names along a side can be read


@dataclass(frozen=True)
class _Table:
    """Numbers with names along both sides.

    Attributes:
        across: Along the top, ``[m]``.
        along: Down the side, ``[n]``.
        values: ``[n][m]``; None is left empty.
        limit: The value of the darkest colour, on both sides of 0.
        form: How a number is written.
        what: What a number is.
    """

    across: Sequence[str]
    along: Sequence[str]
    values: Sequence[Sequence[float | None]]
    limit: float
    form: str
    what: str


def mix(shown: RowMix, limit: float | None = None) -> Drawing:
    """A mix: layer groups down in depth order, checkpoints across, those that are nowhere used left out.

    Args:
        shown: The mix.
        limit: The coefficient of the darkest colour, so that pictures beside each other can be compared; None for the
            largest here.
    """
    used = [place for place in range(len(shown.columns)) if any(line[place] for line in shown.coefficients)]
    values = [[line[place] for place in used] for line in shown.coefficients]
    largest = max((abs(each) for line in values for each in line), default=1.0)
    names = [shown.columns[place] for place in used]
    means = {name: sum(line[place] for line in values) / len(values) for place, name in enumerate(names)}
    table = _Table(names, shown.groups, values, limit or largest or 1.0, "{:.2f}", "coefficient")
    top = ", ".join(f"{name} {means[name]:.2f}" for name in sorted(means, key=lambda name: -abs(means[name]))[:4])
    text = f"{len(used)} of {len(shown.columns)} checkpoints; largest mean coefficients: {top}."
    more = " (means over finer layer groups)" if shown.averaged else ""
    return _drawing(f"mix-{shown.row}", f"The mix of {shown.row}{more}", text, table)


def half_way(found: Midpoints, loss: bool) -> Drawing:
    """How much better the mix half-way between two checkpoints is than the mean of the two, by pair."""
    values = found.loss_gains if loss else found.gains
    known = [each for line in values for each in line if each is not None]
    limit = max((abs(each) for each in known), default=1.0) or 1.0
    # A user's own function gives a number, and no loss beside it.
    kind = "loss" if loss else "accuracy" if found.loss_gains else "score"
    unit, factor, form = _UNITS[kind]
    scaled = [[None if each is None else factor * each for each in line] for line in values]
    what = f"better half-way than the mean of both{unit}"
    table = _Table(found.names, found.names, scaled, factor * limit, form, what)
    worse = sum(each < 0 for each in known) // 2
    text = (
        f"Of {len(known) // 2} pairs {worse} are worse half-way than the mean of their ends ({found.samples} samples)."
    )
    name = "half-way-loss" if loss else "half-way"
    return _drawing(name, f"Half-way, by {kind}", text, table)


def _written(form: str, value: float) -> str:
    """A number without the sign of one that is rounded to 0."""
    text = form.format(value)
    return text.lstrip("-+") if not text.strip("-+0.") else text


def _end_of(name: str, most: int = 22) -> str:
    """The end of a long name, which tells layer groups apart."""
    return name if len(name) <= most else f"…{name[-most + 1 :]}"


def _drawing(name: str, title: str, text: str, table: _Table) -> Drawing:
    rows, columns = len(table.along), len(table.across)
    # Wide tables are drawn wide: a page lets them take its whole width.
    width = max(WIDTH, min(10.4, 1.4 + 0.2 * columns))
    height = max(1.5, min(14.0, 1.5 + 0.2 * rows))

    def draw(figure: Figure) -> dict[str, str]:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        colours = ScalarMappable(Normalize(-table.limit, table.limit), colormaps[DIVERGING])
        hovered = {}
        written = rows * columns <= WRITTEN and columns <= 16
        for y, (row, line) in enumerate(zip(table.along, table.values, strict=True)):
            for x, (column, value) in enumerate(zip(table.across, line, strict=True)):
                if value is None:
                    continue
                key = f"h{y}-{x}"
                hovered[key] = f"{row}, {column}: {value:.4f}"
                fill = colours.cmap((value + table.limit) / (2 * table.limit))
                axes.add_patch(
                    Rectangle(
                        (x - 0.5, y - 0.5), 1, 1, facecolor=fill, linewidth=0, antialiased=False, gid=key, clip_on=False
                    )
                )
                if written:
                    dark = abs(value) > 0.6 * table.limit
                    colour = "#f0f0f0" if dark else "#202020"
                    axes.text(x, y, _written(table.form, value), ha="center", va="center", fontsize=6, color=colour)
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_ylim(rows - 0.5, -0.5)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        every = -(-columns // LABELLED)
        axes.set_xticks(range(0, columns, every), [shortened(each, 18) for each in table.across[::every]])
        axes.tick_params(axis="x", rotation=90, labelsize=7)
        axes.xaxis.tick_top()
        axes.set_yticks(range(rows), [_end_of(each) for each in table.along], fontsize=7 if rows <= 40 else 5)
        bar = figure.colorbar(colours, ax=axes, location="bottom", shrink=0.5, aspect=30, pad=0.02)
        bar.set_label(table.what, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
        return hovered

    return Drawing(name, title, text, width, height, draw)
