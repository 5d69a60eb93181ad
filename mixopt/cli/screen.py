"""Screen: the result on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from mixopt.errors import short
from mixopt.listener import Listener, TrialEvent
from mixopt.untrusted.printed import printable

PLAIN_INTERVAL = 5.0
PLAIN_WIDTH, PLAIN_HEIGHT = 1000, 100


class Screen:
    """Progress and notices on stderr: live bars on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool, as_json: bool) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._stderr = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
        self._stdout = Console(soft_wrap=True, highlight=False, emoji=False)
        self._live = self._stderr.is_terminal and not self._stderr.is_dumb_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._stderr,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._last_line = 0.0
        self._rate: float | None = None
        self._first: tuple[float, int] | None = None  # when the first trial was told, and how many were complete

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Show what a verb tells while it runs."""
        if self._live:
            self._progress.start()
        try:
            yield Listener(info=self._info, warn=self._warn, progress=self._show, trial=self._trial)
        finally:
            if self._live:
                self._progress.stop()

    @property
    def is_terminal(self) -> bool:
        """Whether results go to a terminal, which has a narrow edge; a file or a pipe has none."""
        return self._stdout.is_terminal

    @property
    def width(self) -> int:
        """How many characters fit beside each other in a result."""
        return self._stdout.width if self.is_terminal else PLAIN_WIDTH

    def can_show(self, text: str) -> bool:
        """Whether results are written in an encoding that has these characters."""
        try:
            text.encode(self._stdout.encoding)
        except UnicodeEncodeError:
            return False
        return True

    def out(self, text: str) -> None:
        """Print a result."""
        self._stdout.print(self._shown(text))

    def note(self, text: str) -> None:
        """Print a sentence, which on a terminal is broken between words."""
        self._stdout.print(self._shown(text), soft_wrap=not self.is_terminal)

    def json(self, value: Any) -> None:
        """Print a result as JSON."""
        sys.stdout.write(json.dumps(value, indent=2) + "\n")

    def table(
        self,
        title: str,
        header: list[str],
        cells: list[list[str]],
        *,
        left: Collection[int] = (0,),
        strong: int | None = None,
    ) -> None:
        """Print a table.

        What a terminal is too narrow for goes below, with the first column again, because a number that is cut off is
        a wrong one. A file has no narrow edge.

        Args:
            title: Stands above it.
            header: The name of each column.
            cells: Rows of as many texts.
            left: Columns of text; the others are numbers.
            strong: The number of a row that stands out.
        """
        # The title stands outside the table, which would break it where it is longer.
        self._stdout.print(self._shown(title), style="bold")
        for grid in _grids(*self._texts(header, cells), self.width, left):
            if strong is not None:
                grid.rows[strong].style = "bold"
            _wide(max(self.width, _width(grid))).print(grid)

    def fits(self, header: list[str], cells: list[list[str]]) -> bool:
        """Whether the terminal is wide enough for a table; where stdout is none, every table fits."""
        return not self.is_terminal or _width(_grid(*self._texts(header, cells), range(len(header)))) <= self.width

    def error(self, text: str, kind: str = "error") -> None:
        """Print an error, also where the screen is quiet."""
        self._stderr.print(Text.assemble((f"{kind}:", "bold red"), " ", _plain(text)))

    def _text(self, text: str) -> str:
        """A text as the encoding of results can hold it."""
        if self.can_show(text):
            return text
        return text.replace("±", "+-").encode(self._stdout.encoding, "backslashreplace").decode(self._stdout.encoding)

    def _texts(self, header: list[str], cells: list[list[str]]) -> tuple[list[str], list[list[str]]]:
        return [self._text(each) for each in header], [[self._text(each) for each in row] for row in cells]

    def _shown(self, text: str) -> Text:
        return _plain(self._text(text))

    def _info(self, text: str) -> None:
        if not self._quiet:
            self._stderr.print(_plain(text))

    def _warn(self, text: str) -> None:
        """Print a warning, also where the screen is quiet."""
        self._stderr.print(Text.assemble(("warning:", "yellow"), " ", _plain(text)))

    def _show(self, what: str, done: int, total: int) -> None:
        self._step(printable(what), done, total, "")

    def _trial(self, event: TrialEvent) -> None:
        self._first = self._first or (time.monotonic(), event.complete)
        self._rate = event.images_per_second or self._rate
        rate = f", {self._rate:,.0f} images/s" if self._rate else ""
        detail = f"trial {event.number}, best {event.best:.4f}{rate}"
        self._step("trials", event.complete, event.total, detail)

    def _step(self, what: str, done: int, total: int, detail: str) -> None:
        if self._quiet:
            return
        if self._live:
            if what not in self._tasks:
                for old in self._tasks.values():
                    self._progress.remove_task(old)
                self._tasks = {what: self._progress.add_task(what, total=total, detail=detail)}
            self._progress.update(self._tasks[what], completed=done, total=total, detail=detail)
            return
        now = time.monotonic()
        if done >= total or now - self._last_line >= PLAIN_INTERVAL:
            self._last_line = now
            left = ""
            if what == "trials" and self._first and self._first[1] < done < total:
                started, before = self._first
                left = f", about {(now - started) / (done - before) * (total - done):.0f} s left"
            self._stderr.print(_plain(f"{what}: {done} of {total}{', ' if detail else ''}{detail}{left}"))


def _plain(text: str) -> Text:
    """Text that may come from a file: no markup, no codes of emoji, nothing that moves a cursor."""
    return Text(printable(text))


def _grids(header: list[str], cells: list[list[str]], width: int, left: Collection[int]) -> Iterator[Table]:
    """A table in parts that are each as wide as allowed, or hold one column beside the first."""
    first = 1
    while first < len(header):
        last = first + 1
        while last < len(header) and _width(_grid(header, cells, (0, *range(first, last + 1)))) <= width:
            last += 1
        yield _grid(header, cells, (0, *range(first, last)), left)
        first = last


def _grid(header: list[str], cells: list[list[str]], columns: Iterable[int], left: Collection[int] = (0,)) -> Table:
    """Some columns of a table."""
    grid = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    chosen = list(columns)
    for number in chosen:
        grid.add_column(_plain(header[number]), justify="left" if number in left else "right", no_wrap=True)
    for row in cells:
        grid.add_row(*(_plain(short(row[number])) for number in chosen))
    return grid


def _width(grid: Table) -> int:
    """Columns of a terminal that a table takes."""
    return _wide(PLAIN_WIDTH).measure(grid).maximum


def _wide(width: int) -> Console:
    """A console of so many columns; one without a height would have 80 on a terminal that is dumb."""
    return Console(width=width, height=PLAIN_HEIGHT, highlight=False, emoji=False)
