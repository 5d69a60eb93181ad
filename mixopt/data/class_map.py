"""A file that says which class a code stands for: wnids and numbers in place of names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mixopt.errors import DataError, short
from mixopt.untrusted.texts import json_of, read_text

# A class by its name, or by its number in the model.
Target = str | int
ID_TO_LABEL, LABEL_TO_ID = "id2label", "label2id"
_WANTED = (
    "expected a line per class (code name, or code,name), a JSON object of code to name or number, or a config.json "
    "with id2label"
)


def read_class_map(path: Path) -> dict[str, Target]:
    """Code to class.

    Args:
        path: Lines ``code name`` (``.txt``) or cells (``.csv``, ``.tsv``), or a JSON file: an object of code to name
            or number, ImageNet's of number to code and name, a list of names by number, or a ``config.json`` with
            ``id2label``.

    Raises:
        DataError: Not such a file, empty, or a code stands for two classes.
    """
    text = read_text(path, DataError, found="no class map")
    if path.suffix.lower() == ".json":
        pairs = list(_of_json(path, json_of(text, str(path), DataError, found="no class map", cure=_WANTED)))
    else:
        pairs = list(_of_lines(path, text))
    found: dict[str, Target] = {}
    for code, target in pairs:
        if found.setdefault(code, target) != target:
            raise DataError(
                f"{path}: {short(code)} stands for both {short(str(found[code]))} and {short(str(target))}; keep one"
            )
    if not found:
        raise DataError(f"{path}: names no class; {_WANTED}")
    return found


def _of_json(path: Path, stored: Any) -> Iterator[tuple[str, Target]]:
    if isinstance(stored, dict) and (inner := stored.get(ID_TO_LABEL) or stored.get(LABEL_TO_ID)):
        stored = inner
    entries: Iterable[tuple[str, Any]] = ()
    if isinstance(stored, Mapping):
        entries = stored.items()
    elif isinstance(stored, list):
        entries = ((str(number), name) for number, name in enumerate(stored))
    else:
        raise DataError(f"{path}: no class map; {_WANTED}, found a {type(stored).__name__}")
    for code, value in entries:
        if isinstance(value, str) or (type(value) is int and value >= 0):
            yield code, value
        elif isinstance(value, list) and len(value) == 2 and code.isdecimal() and isinstance(value[0], str):
            yield value[0], int(code)
        else:
            raise DataError(f"{path}: {short(code)} stands for {short(repr(value))}; {_WANTED}")


def _of_lines(path: Path, text: str) -> Iterator[tuple[str, Target]]:
    delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())
    if delimiter is None:
        rows = [line.split(maxsplit=1) for line in text.splitlines()]
    else:
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}: its cells cannot be told apart ({error}); {_WANTED}") from error
    for number, row in enumerate(rows, start=1):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) < 2:
            raise DataError(f"{path}, line {number}: {short(row[0])} stands for nothing; {_WANTED}")
        # A name may have commas of its own, without quotes.
        name = (delimiter or " ").join(row[1:]).strip()
        yield row[0].strip(), int(name) if name.isdecimal() and len(name) < 10 else name
