"""Splits in one ``.jsonl`` file: a JSON object per line, UTF-8, its ``label`` and any fields beside it.

A label is an integer, or a text: the classes are then the sorted texts. The other fields are the record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mixopt.data import Listing, Source
from mixopt.errors import DataError, names, short
from mixopt.untrusted.texts import json_of

LABEL = "label"
# Beyond any model's classes, and within what an array of labels can hold.
_HIGHEST = 2**31
# Bytes of a line, which is read as a whole.
_LONGEST = 2**26


def matches(path: Path) -> bool:
    """Whether the path is a ``.jsonl`` file."""
    return path.is_file() and path.suffix == ".jsonl"


def files(path: Path) -> Listing:
    """The file itself."""
    return Listing((path,))


def open_source(path: Path) -> Source:
    """Read the records; empty lines are left out.

    Raises:
        DataError: A line is not a JSON object with a label, labels are of two kinds, or there are no records.
    """
    lines: list[int] = []
    records: list[dict[str, Any]] = []
    labels: list[int | str] = []
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(_LONGEST + 1), b""), start=1):
                if len(line) > _LONGEST:
                    raise DataError(
                        f"{path}, line {number}: longer than {_LONGEST:,} bytes; expected one record a line"
                    )
                if not (text := line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip():
                    continue
                record, label = _parsed(f"{path}, line {number}", text)
                if labels and isinstance(label, str) != isinstance(labels[0], str):
                    raise DataError(
                        f"{path}, line {number}: the label is {short(repr(label))}, but {short(repr(labels[0]))} in "
                        f"line {lines[0]}; expected either integers or texts"
                    )
                lines.append(number)
                records.append(record)
                labels.append(label)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not records:
        raise DataError(f'{path}: the split is empty; expected one JSON object per line, such as {{"label": 0, ...}}')
    classes = tuple(sorted({label for label in labels if isinstance(label, str)})) or None
    places = {name: place for place, name in enumerate(classes or ())}
    numbers = [places[label] if isinstance(label, str) else label for label in labels]
    return Source(
        np.array(numbers, dtype=np.int64), classes, lambda index: records[index], lambda index: f", line {lines[index]}"
    )


def _parsed(place: str, line: bytes) -> tuple[dict[str, Any], int | str]:
    """The record of a line, and its label."""
    wanted = f'expected a JSON object with a "{LABEL}"'
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text ({error.reason}); {wanted}, in UTF-8") from error
    record = json_of(text, place, DataError, cure=wanted)
    if not isinstance(record, dict):
        raise DataError(f"{place}: {wanted}, found a {type(record).__name__}")
    if LABEL not in record:
        raise DataError(f"{place}: {wanted}, found the fields {names(record) or 'none'}")
    label = record.pop(LABEL)
    if not isinstance(label, str) and (type(label) is not int or not 0 <= label < _HIGHEST):
        raise DataError(f'{place}: expected "{LABEL}" as an integer from 0 on or a text, found {short(repr(label))}')
    return record, label
