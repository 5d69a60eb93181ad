"""Splits in one ``.npz`` file: ``x`` uint8 ``[n, height, width, 3]``, ``y`` integer ``[n]``, optional ``classes``.

Of samples without labels ``x`` alone is read.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.data.source import Listing, Reading, Source, no_labels
from mixopt.errors import DataError
from mixopt.untrusted import open_regular, refusing
from mixopt.untrusted.arrays import names_in, read_arrays

WANTED = "expected x uint8 [n, h, w, 3] and y integer [n]"
_UNLABELLED = "expected x uint8 [n, h, w, 3]"


def matches(path: Path) -> bool:
    """Whether the path is an ``.npz`` file."""
    return path.is_file() and path.suffix.lower() == ".npz"


def files(path: Path, reading: Reading) -> Listing:
    """The file itself."""
    return Listing((path,))


def open_source(path: Path, reading: Reading) -> Source:
    """Read the arrays.

    Raises:
        DataError: Damaged, ``x`` or ``y`` missing or of another dtype or shape.
    """
    wanted = WANTED if reading.labelled else _UNLABELLED
    needed = ("x", "y") if reading.labelled else ("x",)
    with refusing(DataError, str(path), found="not a readable .npz file", cure=f"{wanted}, written by numpy.savez"):
        with open_regular(path) as stream:
            is_archive = zipfile.is_zipfile(stream)
        if not is_archive:
            raise DataError(f"{path}: not an .npz file, or only a part of one; {wanted}, written by numpy.savez")
        present = names_in(path)
        arrays = read_arrays(path, (*needed, "classes") if reading.labelled else needed)
    if missing := [key for key in needed if key not in arrays]:
        raise DataError(f"{path}: lacks {' and '.join(missing)}; {wanted}, found {', '.join(present) or 'nothing'}")
    images = arrays["x"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(f"{path}: expected x uint8 [n, h, w, 3], found {images.dtype} {list(images.shape)}")
    if 0 in images.shape[1:]:
        raise DataError(f"{path}: expected images of 1 x 1 pixels or more, found x {list(images.shape)}")
    if not reading.labelled:
        notices = ["its labels y are not read"] if "y" in present else []
        return Source(no_labels(len(images)), None, lambda index: images[index], converted=lambda: notices)
    labels, stored = arrays["y"], arrays.get("classes")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise DataError(f"{path}: expected y integer [{images.shape[0]}], found {labels.dtype} {list(labels.shape)}")
    if stored is not None and (stored.ndim != 1 or stored.dtype.kind not in "US"):
        raise DataError(f"{path}: expected classes as text [n_classes], found {stored.dtype} {list(stored.shape)}")
    with refusing(DataError, str(path), found="classes that are not UTF-8 text", cure="write them as texts"):
        classes = None if stored is None else tuple(map(_text, stored))
    return Source(labels.astype(np.int64), classes, lambda index: images[index])


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
