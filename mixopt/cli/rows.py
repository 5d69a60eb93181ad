"""Tables of results: whole where a program reads them, and what there is room for on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixopt.cli.narrow import Grid, bars, compact, fitting, shortened
from mixopt.cli.screen import Screen

if TYPE_CHECKING:
    from mixopt.reporting.schema import Report

BAR_WIDTH = 8
# Where the bar stands, beside what it is of.
BAR = 2
# Of a terminal's width, what names may have where not all of a table fits.
SHARE = 0.3
# By what a row is: how it is marked, where that can be shown and else, and what that means.
MARKS = {"best": ("★", "*", "best"), "tied": ("≈", "~", "not told apart from it")}


def show_rows(screen: Screen, report: Report, folder: Path, *, details: bool) -> None:
    """The scores and costs of every row of a search or a comparison.

    Args:
        screen: Where to.
        report: What report.json holds.
        folder: The run folder.
        details: Show intervals as well; of those that a terminal is too narrow for, the widest are told below.
    """
    from mixopt.reporting.page.table import mark_of
    from mixopt.reporting.tables import table, widths

    title = f"{report.metric} by method; {folder}"
    if not screen.is_terminal:
        screen.table(title, *table(report, intervals=details, details=details))
        return
    marks = {row.name: mark for row in report.made if (mark := mark_of(report, row))}
    every = [
        _with_bars(screen, report, marks, Grid(*table(report, intervals=each, details=True)))
        for each in ((True, False) if details else (False,))
    ]
    whole = next((each for each in every if screen.fits(*each)), None)
    shown, missing = (whole, []) if whole else _cut(screen, report, every[-1])
    best = next((number for number, row in enumerate(report.methods) if row.name == report.best), None)
    screen.table(title, *shown, left=(0, BAR), strong=best)
    _explain(screen, marks if "" in shown.header else {}, missing, folder)
    if details and whole is not every[0]:
        widest = [f"{column} ±{width:.4f}" for column, width in widths(report).items()]
        screen.note(f"95 % intervals are at most: {', '.join(widest)}")


def show_columns(screen: Screen, title: str, grid: Grid, order: Sequence[int], folder: Path) -> None:
    """A table, of which a terminal shows the columns that it has room for.

    Args:
        screen: Where to.
        title: The table's.
        grid: The table.
        order: Its columns by importance.
        folder: Where a page may show all of them.
    """
    shown, missing = _fitting(screen, grid, order)
    screen.table(title, *shown)
    _explain(screen, {}, missing, folder)


def _with_bars(screen: Screen, report: Report, marks: Mapping[str, str], grid: Grid) -> Grid:
    """A column more: a bar for each score on the selection split, longer where it is better, and the row's mark."""
    from mixopt.values.metrics import metric_named

    blocks = screen.can_show("█▏★≈")
    sign = metric_named(report.metric).sign
    drawn = dict(
        zip(
            (row.name for row in report.made),
            bars([sign * row.search for row in report.made], BAR_WIDTH, blocks) if report.made else (),
            strict=True,
        )
    )
    cells = []
    for row in grid.cells:
        mark = MARKS[marks[row[0]]][0 if blocks else 1] if row[0] in marks else ""
        cells.append([*row[:BAR], f"{drawn.get(row[0], ''):<{BAR_WIDTH}} {mark}".rstrip(), *row[BAR:]])
    return Grid([*grid.header[:BAR], "", *grid.header[BAR:]], cells)


def _cut(screen: Screen, report: Report, grid: Grid) -> tuple[Grid, list[str]]:
    """The columns that fit, by importance, with shorter names and counts; and the names of the others."""
    end = BAR + 1 + len(report.steering) + len(report.tests)
    costs = {grid.header[column]: column for column in range(end, len(grid.header))}
    images = costs["images"]
    counts = {row.name: compact(row.images) for row in report.made}
    cells = [[*row[:images], counts.get(row[0], row[images]), *row[images + 1 :]] for row in grid.cells]
    names = shortened([row[0] for row in cells], int(SHARE * screen.width))
    # What a row costs stands beside what it scores: several models at each inference, and the images of finding it.
    first = [costs[each] for each in ("inference", "images") if each in costs]
    order = [0, 1, BAR, *first, *range(BAR + 1, end), *(each for each in costs.values() if each not in first)]
    return _fitting(screen, Grid(grid.header, cells).named(names), order)


def _fitting(screen: Screen, grid: Grid, order: Sequence[int]) -> tuple[Grid, list[str]]:
    """The columns that fit, the whole table on a file, and the names of the others."""
    kept = fitting(grid, order, lambda each: screen.fits(*each))
    return grid.only(kept), [name for column, name in enumerate(grid.header) if name and column not in kept]


def _explain(screen: Screen, marks: Mapping[str, str], missing: Sequence[str], folder: Path) -> None:
    """What marks and bars mean, and where to see the columns that are not shown."""
    blocks = screen.can_show("".join(each[0] for each in MARKS.values()))
    used = [f"{each[not blocks]} {each[2]}" for kind, each in MARKS.items() if kind in marks.values()]
    said = [*([", ".join(used)] if used else []), *(["bar: selection, from the worst row to the best"] if used else [])]
    if missing:
        page = folder / "report.html"
        more = ["--json", *([str(page)] if page.exists() else []), "a wider terminal"]
        said.append(f"not shown: {', '.join(missing)} (more: {', '.join(more)})")
    if said:
        screen.note("; ".join(said))
