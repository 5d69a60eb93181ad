"""Splits in a ``.parquet`` file, or a folder of the parts of one (``train-00000-of-00002.parquet``).

Columns are texts, or images as `datasets` writes them (bytes, or bytes and a path), or the paths of images in the
folder of the file; class names are those of its `ClassLabel`, where it wrote the file.
"""

from __future__ import annotations

import re
from pathlib import Path

from mixopt.data.arrow import parquet_table
from mixopt.data.source import Listing, Reading, Source
from mixopt.data.table import Table, listing_of, names_files, source_of
from mixopt.errors import DataError, names
from mixopt.files import natural_key

SUFFIX = ".parquet"
_PART = re.compile(r"(.*?)-?(\d{5})-of-(\d{5})")


def matches(path: Path) -> bool:
    """Whether the path is a ``.parquet`` file, or a folder of them."""
    return (path.is_file() and path.suffix.lower() == SUFFIX) or (path.is_dir() and bool(_parts(path)))


def files(path: Path, reading: Reading) -> Listing:
    """The files, and the images that they name."""
    # Images by their bytes may be many gigabytes, which are read once, and not to list files.
    first = _table(path, first_only=True)
    return listing_of(_table(path) if names_files(first, reading) else first, reading)


def open_source(path: Path, reading: Reading) -> Source:
    """Read the records.

    Raises:
        DataError: pyarrow is absent, a file is damaged or too large, or its columns are not what they should be.
    """
    return source_of(_table(path), reading)


def _parts(folder: Path) -> list[Path]:
    """The files of a folder, if there is nothing else in it but what is hidden or says what it is."""
    found = [each for each in folder.iterdir() if not each.name.startswith(".") and each.suffix.lower() != ".md"]
    parts = [each for each in found if each.suffix.lower() == SUFFIX and each.is_file()]
    return sorted(parts, key=lambda file: natural_key(file.name)) if len(parts) == len(found) else []


def _table(path: Path, *, first_only: bool = False) -> Table:
    if path.is_file():
        part = _PART.fullmatch(path.stem)
        more = int(part[3]) if part else 1
        notices = [f"one of {more} parts alone; name their folder for all"] if more > 1 else []
        return parquet_table(path, [path], notices, first_only=first_only)
    parts = _parts(path)
    stems = {found[1] if (found := _PART.fullmatch(part.stem)) else part.stem for part in parts}
    if len(stems) > 1:
        shown = names(part.name for part in parts)
        raise DataError(f"{path}: holds several splits ({shown}); name a file, such as {parts[0]}")
    whole = [int(found[3]) for part in parts if (found := _PART.fullmatch(part.stem))]
    if whole and max(whole) != len(parts):
        raise DataError(f"{path}: holds {len(parts)} of {max(whole)} parts; fetch the others, or name a file")
    return parquet_table(path, parts, first_only=first_only)
