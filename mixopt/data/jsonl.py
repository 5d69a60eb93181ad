"""Splits in one ``.jsonl`` file: a JSON object per line, UTF-8, its label and any fields beside it.

A label is an integer, or a text: the classes are then the sorted texts. The other fields are the record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixopt.data.source import Listing, Reading, Source
from mixopt.data.table import MISSING, Table, listing_of, source_of
from mixopt.errors import DataError
from mixopt.untrusted import open_regular, refusing
from mixopt.untrusted.texts import json_of

# Bytes of a line, which is read as a whole.
_LONGEST = 2**26
_WANTED = 'expected a JSON object with a "label"'
_UNLABELLED = "expected a JSON object"


def matches(path: Path) -> bool:
    """Whether the path is a ``.jsonl`` file."""
    return path.is_file() and path.suffix.lower() == ".jsonl"


def files(path: Path, reading: Reading) -> Listing:
    """The file itself, and the images that it names."""
    return listing_of(_table(path, reading), reading)


def open_source(path: Path, reading: Reading) -> Source:
    """Read the records; empty lines are left out.

    Raises:
        DataError: A line is not a JSON object with a label, labels are of two kinds, or there are no records.
    """
    return source_of(_table(path, reading), reading)


def _table(path: Path, reading: Reading) -> Table:
    wanted = _WANTED if reading.labelled else _UNLABELLED
    lines: list[int] = []
    records: list[dict[str, Any]] = []
    bad: list[str] = []
    with refusing(DataError, str(path), found="not readable", cure=wanted), open_regular(path) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(_LONGEST + 1), b""), start=1):
            place = f"{path}, line {number}"
            if len(line) > _LONGEST:
                raise DataError(f"{place}: longer than {_LONGEST:,} bytes; expected one record a line")
            if not (text := line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip():
                continue
            try:
                records.append(_parsed(place, text, wanted))
                lines.append(number)
            except DataError as error:
                if not reading.skips:
                    raise
                bad.append(str(error))
    if not records and not bad:
        such = '{"label": 0, ...}' if reading.labelled else '{"text": ...}'
        raise DataError(f"{path}: the split is empty; expected one JSON object per line, such as {such}")
    return Table(
        path=path,
        files=(path,),
        columns=tuple(dict.fromkeys(name for record in records for name in record)),
        count=len(records),
        row=lambda number: records[number],
        column=lambda name: [record.get(name, MISSING) for record in records],
        where=lambda number: f", line {lines[number]}",
        bad=tuple(bad),
    )


def _parsed(place: str, line: bytes, wanted: str) -> dict[str, Any]:
    """The record of a line."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text ({error.reason}); {wanted}, in UTF-8") from error
    record = json_of(text, place, DataError, cure=wanted)
    if not isinstance(record, dict):
        raise DataError(f"{place}: {wanted}, found a {type(record).__name__}")
    return record
