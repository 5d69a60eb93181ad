"""Splits in one ``.csv`` or ``.tsv`` file: a header, then a record a line, of texts or of the paths of images.

Cells are between commas, semicolons or tabs, whichever the header has; quoted as in RFC 4180, or, where no reading with
quotes is whole, not quoted at all, as in GLUE's files. Labels of digits alone are numbers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixopt.data.source import Listing, Reading, Source
from mixopt.data.table import Table, listing_of, source_of
from mixopt.errors import DataError, names, short
from mixopt.untrusted import refusing
from mixopt.untrusted.texts import read_text

SUFFIXES = (".csv", ".tsv")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
# Characters of a cell.
_LONGEST = 2**26
# Rows that show whether a delimiter fits.
_SHOWN = 50


def matches(path: Path) -> bool:
    """Whether the path is a ``.csv`` or ``.tsv`` file."""
    return path.is_file() and path.suffix.lower() in SUFFIXES


def files(path: Path, reading: Reading) -> Listing:
    """The file itself, and the images that it names."""
    return listing_of(_table(path, reading), reading)


def open_source(path: Path, reading: Reading) -> Source:
    """Read the records; empty lines are left out.

    Raises:
        DataError: Not UTF-8, a row of another length than the header, no label, or there are no records.
    """
    return source_of(_table(path, reading), reading)


@dataclass(frozen=True)
class _Rows:
    """The rows of a file as read in one way.

    Attributes:
        header: Its first row.
        rows: Those of the header's length.
        lines: The line that each begins in.
        problems: What is wrong with each other row, with its line in front.
    """

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    problems: list[str]


def _table(path: Path, reading: Reading) -> Table:
    wanted = "write it with a header and one record a line"
    notices: tuple[str, ...] = ()
    with refusing(DataError, str(path), found="not a table of cells", cure=wanted):
        text = read_text(path, DataError, most=path.stat().st_size + 1, found="no table")
        delimiter = _delimiter_of(path, text)
        found = _read(text, delimiter, csv.QUOTE_MINIMAL)
        if found.problems and '"' in text and not (plain := _read(text, delimiter, csv.QUOTE_NONE)).problems:
            found = plain
            notices = ("quotes are taken as they stand, since with them as quotes rows have no one length",)
    if not found.header:
        raise DataError(f"{path}: the split is empty; expected a header and one record a line")
    if len(set(found.header)) < len(found.header):
        twice = sorted({name for name in found.header if found.header.count(name) > 1})
        raise DataError(f"{path}: its header names {names(map(repr, twice))} more than once; name each column once")
    if found.problems and not reading.skips:
        raise DataError(f"{path}, {found.problems[0]}")
    places = {name: place for place, name in enumerate(found.header)}
    return Table(
        path=path,
        files=(path,),
        columns=tuple(found.header),
        count=len(found.rows),
        row=lambda number: dict(zip(found.header, found.rows[number], strict=True)),
        column=lambda name: [row[places[name]] for row in found.rows],
        where=lambda number: f", line {found.lines[number]}",
        is_typed=False,
        bad=tuple(f"{path}, {problem}" for problem in found.problems),
        notices=notices,
    )


def _delimiter_of(path: Path, text: str) -> str:
    """The one that makes several columns of the header and as many of the rows below it; else the suffix decides."""
    beginning = "\n".join(text.split("\n", _SHOWN)[:_SHOWN])
    fitting: list[str] = []
    split: list[str] = []
    for delimiter in _DELIMITERS:
        rows = _read(beginning, delimiter, csv.QUOTE_MINIMAL)
        if len(rows.header) > 1:
            split.append(delimiter)
            # The last row may be cut.
            fitting += [delimiter] if len(rows.problems) <= 1 and rows.rows else []
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    for found in (fitting, split):
        if len(found) == 1 or usual in found:
            return usual if usual in found else found[0]
    if len(split) > 1:
        raise DataError(
            f"{path}: its header has {' and '.join(_DELIMITERS[each] for each in split)}, either of which may be "
            "between cells; write it with commas"
        )
    return usual


def _read(text: str, delimiter: str, quoting: int) -> _Rows:
    found = _Rows([], [], [], [])
    with _long_cells():
        lines = io.StringIO(text, newline="")
        reader = csv.reader(lines, csv.excel, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
        for line, row in _numbered(reader, found.problems):
            if not any(cell.strip() for cell in row):
                continue
            if not found.header:
                found.header.extend(name.strip() for name in row)
            elif len(row) == len(found.header):
                found.rows.append(row)
                found.lines.append(line)
            else:
                shown = short(delimiter.join(row))
                found.problems.append(
                    f"line {line}: expected {len(found.header)} cells as in the header, found {len(row)}: {shown}"
                )
    return found


def _numbered(reader: Any, problems: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows, each with the line that it begins in; what cannot be split ends them."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.append(f"line {line}: its cells cannot be told apart ({error})")
            return
        yield line, row


@contextmanager
def _long_cells() -> Iterator[None]:
    """Cells may be as long as documents are."""
    before = csv.field_size_limit(_LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)
