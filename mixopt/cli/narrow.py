"""What a terminal has room for of a table: which columns, names made shorter, a bar for a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

EIGHTHS = "▏▎▍▌▋▊▉█"
# Of a name that is shortened at all, so much stays.
FEWEST = 12


class Grid(NamedTuple):
    """A table.

    Attributes:
        header: The name of each column.
        cells: Rows of as many texts.
    """

    header: list[str]
    cells: list[list[str]]

    def only(self, columns: Sequence[int]) -> Grid:
        """Some of its columns."""
        return Grid([self.header[each] for each in columns], [[row[each] for each in columns] for row in self.cells])

    def named(self, names: Sequence[str]) -> Grid:
        """The same with other texts in the first column."""
        return Grid(self.header, [[name, *row[1:]] for name, row in zip(names, self.cells, strict=True)])


def fitting(grid: Grid, order: Sequence[int], fits: Callable[[Grid], bool]) -> list[int]:
    """The columns of a table that fit beside each other, from left to right; the first of the order at least.

    Args:
        grid: The table.
        order: Its columns by importance: each is taken where it fits beside those taken before it.
        fits: Whether a table does.
    """
    taken = [order[0]]
    for column in order[1:]:
        if fits(grid.only(sorted([*taken, column]))):
            taken.append(column)
    return sorted(taken)


def shortened(names: Sequence[str], longest: int) -> list[str]:
    """Names of so many characters at most where they can be that and stay apart: no two become the same.

    Of ``method:variant:...`` the last parts go; of what is still too long, or would be like another, the end, or else
    the middle.

    Args:
        names: Each once.
        longest: The most characters, `FEWEST` or more.
    """
    longest = max(longest, FEWEST)
    found = list(names)
    for way in (_without_last_parts, _without_end, _without_middle, lambda name, _: name):
        unfit = {each for each in found if found.count(each) > 1 or len(each) > longest}
        found = [
            way(name, longest) if shown in unfit and len(name) > longest else shown
            for name, shown in zip(names, found, strict=True)
        ]
    return found


def _without_last_parts(name: str, longest: int) -> str:
    parts = name.split(":")
    for kept in range(len(parts) - 1, 0, -1):
        found = ":".join([*parts[:kept], "..."])
        if len(found) <= longest:
            return found
    return name


def _without_end(name: str, longest: int) -> str:
    return f"{name[: longest - 3]}..."


def _without_middle(name: str, longest: int) -> str:
    left = (longest - 3) // 2
    return f"{name[:left]}...{name[left + 3 - longest :]}"


def bars(values: Sequence[float], width: int, blocks: bool) -> list[str]:
    """A bar for each number: the highest is as wide as allowed, the lowest as narrow as a bar can be.

    Args:
        values: One or more, finite; higher is longer.
        width: Of the longest, in characters.
        blocks: Whether eighths of a character can be shown; else whole ``#``.
    """
    low, high = min(values), max(values)
    steps = 8 * width if blocks else width
    lengths = [steps if high == low else 1 + round((each - low) / (high - low) * (steps - 1)) for each in values]
    if not blocks:
        return ["#" * each for each in lengths]
    return [EIGHTHS[-1] * (each // 8) + (EIGHTHS[each % 8 - 1] if each % 8 else "") for each in lengths]


def compact(count: int) -> str:
    """A count in three digits or so: 950, 9.5k, 95k, 950k, 9.5M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.{0 if count >= 10 * size else 1}f}{unit}"
    return str(count)
