"""What a page is put together from; the template knows a form for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mixopt.reporting.diagnosis import Flipped
from mixopt.reporting.plots import Drawing


@dataclass(frozen=True)
class Cell:
    """One of a table.

    Attributes:
        text: What stands there.
        small: Beside it, small: half an interval.
        key: What it is sorted by; the text without.
    """

    text: str
    small: str = ""
    key: float | None = None


@dataclass(frozen=True)
class TableRow:
    """A line of a table.

    Attributes:
        cells: The first names it.
        mark: ``best``, ``tied`` (not told apart from the best) or nothing.
    """

    cells: Sequence[Cell]
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table that sorts by click.

    Attributes:
        header: Column names.
        rows: The lines.
        folded: Columns that are shown on demand, by place.
        caption: What to know of it.
    """

    header: Sequence[str]
    rows: Sequence[TableRow]
    folded: Sequence[int] = ()
    caption: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Figures:
    """Pictures beside each other."""

    drawings: Sequence[Drawing]
    caption: str = ""
    kind: str = "figures"


@dataclass(frozen=True)
class Thumbnails:
    """Samples: pictures or texts with what was said of them.

    Attributes:
        samples: What changed.
        before: Who said the first thing.
        after: Who said the second.
        split: Of the samples.
    """

    samples: Sequence[Flipped]
    before: str
    after: str
    split: str
    kind: str = "thumbnails"


@dataclass(frozen=True)
class Text:
    """Paragraphs, each a line of plain text."""

    lines: Sequence[str]
    kind: str = "text"


@dataclass(frozen=True)
class Code:
    """A command or a file, as it stands."""

    content: str
    kind: str = "code"


@dataclass(frozen=True)
class Fold:
    """Parts that are shown on demand."""

    title: str
    parts: Sequence[Part]
    kind: str = "fold"


Part = Table | Figures | Thumbnails | Text | Code | Fold


@dataclass(frozen=True)
class Section:
    """Parts under a heading.

    Attributes:
        title: The heading.
        parts: What stands under it.
        missing: What is not there, and why.
    """

    title: str
    parts: Sequence[Part]
    missing: Sequence[str] = field(default_factory=tuple)
