"""Records in rows and columns, whatever file they come from: labels, and texts or images, as a source."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt.data.fields import IMAGE, TEXT, Roles, both, roles_of, taken_as
from mixopt.data.images import SUFFIXES, Images
from mixopt.data.source import Listing, Reading, Source, no_labels
from mixopt.errors import DataError, names, short
from mixopt.files import natural_key

# Beyond any model's classes, and within what an array of labels can hold.
_HIGHEST = 2**31
# A whole number, also as programs write a column of them that once had gaps: 1.0.
_NUMBER = re.compile(r"\s*[0-9]{1,10}(\.0+)?\s*")
_LEADING_ZERO = re.compile(r"\s*0[0-9]")


class _Missing:
    """What stands in a column where a row has no such field."""


MISSING = _Missing()


@dataclass(frozen=True)
class Table:
    """Rows of named fields.

    Attributes:
        path: The file or folder that the user named.
        files: What it was read from.
        columns: The names of all fields, each once.
        count: How many rows.
        row: Row number to its fields by name.
        column: A field's values in all rows, `MISSING` where a row has none.
        where: Row number to its place, such as ``, line 7``.
        is_typed: Whether values know what they are; if not, labels of digits alone are numbers.
        classes: Column to the names of the classes that its numbers stand for.
        bad: What is wrong with each row that was left out.
        notices: What was taken as what while it was read.
    """

    path: Path
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    count: int
    row: Callable[[int], Mapping[str, Any]]
    column: Callable[[str], Sequence[Any]]
    where: Callable[[int], str]
    is_typed: bool = True
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bad: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def listing_of(table: Table, reading: Reading) -> Listing:
    """The table's own files, and those of the images that it names.

    Raises:
        DataError: As `source_of`, or an image lies outside the folder.
    """
    if not names_files(table, reading):
        return Listing(table.files)
    image = str(_roles(table, reading).image)
    found: set[Path] = set()
    for number, value in enumerate(table.column(image)):
        try:
            file = _file_of(table, number, value)
        except DataError:
            if not reading.skips:
                raise
            continue
        if not reading.skips and not file.exists() and not file.is_symlink():
            cure = (
                "write its folders with /"
                if "\\" in str(value)
                else "correct it, or leave it out by --bad-samples skip"
            )
            raise DataError(
                f"{table.path}{table.where(number)}: names the image {short(repr(value))}, and there is no file "
                f"{file}; {cure}"
            )
        if not reading.skips or file.is_file():
            found.add(file)
    images = sorted(found, key=lambda file: natural_key(str(file)))
    return Listing((*table.files, *images))


def names_files(table: Table, reading: Reading) -> bool:
    """Whether its records are images by their names, as its first row shows.

    Raises:
        DataError: As `source_of`.
    """
    roles = _roles(table, reading)
    image = _image_column(table, roles, reading) if table.count else None
    return image is not None and _holds(table.row(0)[image]) == "path"


def source_of(table: Table, reading: Reading) -> Source:
    """The table as a source.

    Raises:
        DataError: No rows, no label column or doubt about it, labels that are none or of two kinds.
    """
    if not table.count:
        more = f" ({len(table.bad):,} are left out, the first as {table.bad[0]})" if table.bad else ""
        raise DataError(f"{table.path}: the split is empty{more}; expected at least one record")
    roles = _roles(table, reading)
    kept, numbers, classes, bad = list(range(table.count)), no_labels(table.count), None, list[str]()
    if reading.labelled and roles.label is not None:
        kept, labels, bad = _labels(table, roles.label, reading.skips)
        numbers, classes = _numbered(labels, table.classes.get(roles.label))
    notices = [*table.notices, *roles.notices]
    if not kept:
        raise DataError(f"{table.path}: no record has a label that can be read; the first: {bad[0]}")
    image = _image_column(table, roles, reading)
    if image and image != IMAGE and IMAGE not in reading.fields:
        notices.append(taken_as(IMAGE, image))
    images = Images(
        lambda place: _image_of(table, kept[place], table.row(kept[place]).get(image or "", MISSING)),
        lambda place: f"{table.path}{table.where(kept[place])}",
    )
    return Source(
        numbers,
        classes,
        images.load if image else lambda place: _record(table.row(kept[place]), roles),
        lambda place: table.where(kept[place]),
        lambda: [*notices, *images.notices()],
        (*table.bad, *bad),
    )


def inside(folder: Path, name: str) -> Path:
    """A file that a record names, in the folder of its table; links are kept as given.

    Raises:
        ValueError: The name leads out of it.
    """
    if not name or "\0" in name:
        raise ValueError("no name of a file")
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", name):
        raise ValueError("an address; nothing is downloaded")
    # By the names alone: a link in the folder is its owner's.
    base, place = os.path.abspath(folder), os.path.abspath(os.path.join(folder, name))
    if not place.startswith(base.rstrip(os.sep) + os.sep):
        raise ValueError(f"outside {folder}")
    return folder / os.path.relpath(place, base)


def _roles(table: Table, reading: Reading) -> Roles:
    return roles_of(table.path, table.columns, reading.fields, labelled=reading.labelled)


def _record(row: Mapping[str, Any], roles: Roles) -> dict[str, Any]:
    """A row's fields but the label, with the texts under their roles as well."""
    record = {name: value for name, value in row.items() if name != roles.label}
    return record | {role: row[column] for role, column in roles.texts.items() if column in row}


def _image_column(table: Table, roles: Roles, reading: Reading) -> str | None:
    """The column whose images are the records, where they are not texts or the fields themselves."""
    if roles.image is None or (TEXT in reading.fields and IMAGE not in reading.fields):
        return None
    held = _holds(table.row(0).get(roles.image))
    if not held and IMAGE in reading.fields:
        raise DataError(
            f"{table.path}{table.where(0)}: expected an image in {roles.image}, its bytes or a name that ends with "
            f"{names(sorted(SUFFIXES), 3)}; found {short(repr(table.row(0).get(roles.image)))}"
        )
    if held and roles.texts and IMAGE not in reading.fields:
        raise both(table.path, roles)
    return roles.image if held else None


def _holds(value: Any) -> str:
    """How a value is an image: its ``bytes``, the ``path`` of one, or not at all."""
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, str):
        return "path" if Path(value).suffix.lower() in SUFFIXES else ""
    if isinstance(value, Mapping) and {"bytes", "path"} >= value.keys():
        return "bytes" if value.get("bytes") is not None else _holds(value.get("path"))
    return ""


def _image_of(table: Table, number: int, value: Any) -> Path | bytes:
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        value = value["bytes"]
    return value if isinstance(value, bytes) else _file_of(table, number, value)


def _file_of(table: Table, number: int, value: Any) -> Path:
    name = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(name, str):
        found = "nothing" if name is MISSING or name is None else short(repr(name))
        raise DataError(f"{table.path}{table.where(number)}: expected an image, found {found}")
    folder = table.path if table.path.is_dir() else table.path.parent
    try:
        return inside(folder, name.strip())
    except ValueError as error:
        raise DataError(
            f"{table.path}{table.where(number)}: names the image {short(name)}, {error}; expected a file below {folder}"
        ) from error


def _labels(table: Table, column: str, skips: bool) -> tuple[list[int], list[int | str], list[str]]:
    """Rows with a label, their labels, and what is wrong with each other one."""
    values: Sequence[Any] = table.column(column)
    if not table.is_typed and all(_NUMBER.fullmatch(value) for value in values):
        if not any(_LEADING_ZERO.match(value) for value in values):
            values = [int(value.partition(".")[0]) for value in values]
    elif not table.is_typed:
        values = list(_some_numbers(values))
    known = table.classes.get(column)
    kept: list[int] = []
    labels: list[int | str] = []
    bad: list[str] = []
    for number, value in enumerate(values):
        problem = _problem_of(value, column, known)
        if not problem and labels and isinstance(value, str) != isinstance(labels[0], str):
            problem = (
                f"the label is {short(repr(value))}, but {short(repr(labels[0]))} in "
                f"{table.where(kept[0]).removeprefix(', ')}; expected either integers or texts"
            )
        if not problem:
            kept.append(number)
            labels.append(value)
            continue
        if value is MISSING:
            problem = f"{problem}, found the fields {names(table.row(number)) or 'none'}"
        problem = f"{table.path}{table.where(number)}: {problem}"
        if not skips:
            raise DataError(problem)
        bad.append(problem)
    return kept, labels, bad


def _some_numbers(values: Sequence[str]) -> Iterator[int | str]:
    """Labels of which most are numbers: then those that are not show as what they are."""
    are_numbers = sum(_NUMBER.fullmatch(value) is not None for value in values) > len(values) / 2
    for value in values:
        is_number = are_numbers and _NUMBER.fullmatch(value) and not _LEADING_ZERO.match(value)
        yield int(value.partition(".")[0]) if is_number else value.strip()


def _problem_of(value: Any, column: str, known: Sequence[str] | None) -> str:
    if value is MISSING:
        return f'expected a "{column}"'
    if isinstance(value, str) and known is None:
        return "" if value.strip() else f'the "{column}" is empty'
    if type(value) is not int or not 0 <= value < _HIGHEST:
        return f'expected "{column}" as an integer from 0 on or a text, found {short(repr(value))}'
    if known is not None and value >= len(known):
        return f'expected "{column}" below {len(known)}, as there are so many classes, found {value}'
    return ""


def _numbered(
    labels: Sequence[int | str], known: tuple[str, ...] | None
) -> tuple[NDArray[np.int64], tuple[str, ...] | None]:
    """Labels as numbers, and the names of the classes: those that are known, or the sorted texts."""
    classes = known or tuple(sorted({label for label in labels if isinstance(label, str)})) or None
    places = {name: place for place, name in enumerate(classes or ())}
    numbers = [places[label] if isinstance(label, str) else label for label in labels]
    return np.array(numbers, dtype=np.int64), classes
