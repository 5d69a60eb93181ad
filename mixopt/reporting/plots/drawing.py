"""What every picture shares: style, colours, and how a drawing becomes SVG, PNG or a page of a PDF.

matplotlib draws: it is what papers of this field are drawn with, its SVG is text that needs nothing from a network, and
the same drawing gives the pictures of ``--png`` and ``--pdf``. The only package that imports it, when it draws.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from mixopt.reporting.schema import MadeRow, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, told apart by colour-blind readers too, without their yellow; and two greys.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333", "#999999")
MARKS = "osD^vPX"
# Ink, grid and the first colour: on a page these follow the reader's light or dark scheme.
INK, GRID, PALE, GROUND = "#212223", "#e7e8e9", "#b6b7b8", "#fdfefe"
_ON_PAGE = {
    INK: "currentColor",
    GRID: "var(--grid)",
    PALE: "var(--pale)",
    GROUND: "var(--ground)",
    COLOURS[0]: "var(--blue)",
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the reader's own font
    "svg.hashsalt": "mixopt",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "grid.color": GRID,
    "legend.frameon": False,
}
WIDTH = 5.2  # inches: what a phone shows at a size that can be read, and two beside each other on a laptop
DPI = 200  # of PNG files
LINE = 0.17  # inches from one label to the next
# Around 0: blue below, white at 0, red above (ColorBrewer's RdBu, turned round).
DIVERGING = "RdBu_r"


@dataclass(frozen=True)
class Drawing:
    """A picture, not drawn yet.

    Attributes:
        name: Of its file.
        title: What it shows.
        description: The same for readers who do not see it, with its main numbers.
        width: In inches.
        height: In inches.
        draw: Draws on a figure, and gives what hovering shows: `gid` of an artist to text.
    """

    name: str
    title: str
    description: str
    width: float
    height: float
    draw: Callable[[Figure], Mapping[str, str] | None] = field(repr=False)

    def svg(self) -> str:
        """As an SVG element for a page; the same drawing gives the same text."""
        drawn = picture(self.width, self.height, self.draw)
        # Names of vocabularies, which nobody asks for.
        drawn = re.sub(r"\s*<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
        for colour, variable in _ON_PAGE.items():
            drawn = drawn.replace(colour, variable)
        label = escape(f"{self.title}. {self.description}", quote=True)
        return drawn.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)

    @property
    def file_name(self) -> str:
        """The name, with nothing in it that a file's name cannot have."""
        return re.sub(r"[^\w.=-]+", "-", self.name).strip("-.")[:80]

    def png(self) -> bytes:
        """As the content of a PNG file."""
        content = io.BytesIO()
        with _styled(self.width, self.height) as figure:
            self.draw(figure)
            figure.savefig(content, format="png", dpi=DPI, facecolor="white", metadata={"Software": "mixopt"})
        return content.getvalue()


def pdf_of(drawings: Sequence[Drawing]) -> bytes:
    """Drawings as the content of a PDF file, a page each."""
    from matplotlib.backends.backend_pdf import PdfPages

    content = io.BytesIO()
    with PdfPages(content, metadata={"Creator": "mixopt", "CreationDate": None}) as document:
        for drawing in drawings:
            with _styled(drawing.width, drawing.height) as figure:
                drawing.draw(figure)
                figure.savefig(document, format="pdf", facecolor="white")
    return content.getvalue()


@contextmanager
def _styled(width: float, height: float) -> Iterator[Figure]:
    """A figure in the style of all."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(STYLE, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's font may have it
        yield Figure(figsize=(width, height), layout="constrained")


def picture(width: float, height: float, draw: Callable[[Figure], Mapping[str, str] | None]) -> str:
    """What a function draws on a figure, as SVG; the same drawing gives the same text.

    Args:
        width: In inches.
        height: In inches.
        draw: Given the figure; what it returns is shown by hovering, `gid` of an artist to text.
    """
    with _styled(width, height) as figure:
        shown = draw(figure) or {}
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})

    def group(found: re.Match[str]) -> str:
        """Groups are not referred to, and pictures on one page must not share ids."""
        text = shown.get(found[1])
        return "<g>" if text is None else f"<g><title>{escape(text)}</title>"

    return re.sub(r'<g id="([^"]*)">', group, content.getvalue())


def mixes(report: Report) -> list[MadeRow]:
    """The rows that are made of ingredients: the base alone is so far from them that it would push them together."""
    return [row for row in report.made if row.ingredients]


def grid(figure: Figure, count: int, columns: int) -> list[Axes]:
    """So many plots, row by row, without those left over in the last one."""
    rows = -(-count // columns)
    found = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in found[count:]:
        axes.set_axis_off()
    return found[:count]


def named_points(axes: Axes, points: Mapping[str, tuple[float, float]], best: str | None, gap: float) -> None:
    """Points whose names stand beside the plot, in the points' order, each with a line to its point.

    Args:
        axes: Where to.
        points: By name.
        best: The name of the one that stands out.
        gap: From one name to the next, as a fraction of the plot's height.
    """
    axes.plot(*columns(list(points.values())), "o", color=COLOURS[0], markersize=5)
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
            axes.plot(*columns([points[name]]), "D", color=COLOURS[1], markersize=7, zorder=4)
        axes.annotate(
            shortened(name),
            points[name],
            (1.06, place),
            textcoords="axes fraction",
            verticalalignment="center",
            fontsize=8,
            fontweight="bold" if name == best else "normal",
            zorder=1,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 2},
        )


def shortened(name: str, most: int = 26) -> str:
    """A name of at most so many letters, without its middle where it is longer."""
    return name if len(name) <= most else f"{name[: most - 11]}…{name[-10:]}"


def columns(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """The x and the y of points."""
    return [point[0] for point in points], [point[1] for point in points]


def or_gap(value: float | None) -> float:
    """A point that is not finite is a gap in its line."""
    return math.nan if value is None else value
