"""Splits in one ``.npz`` file: ``x`` uint8 ``[n, height, width, 3]``, ``y`` integer ``[n]``, optional ``classes``."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.data.source import Listing, Reading, Source
from mixopt.errors import DataError
from mixopt.untrusted import open_regular, refusing
from mixopt.untrusted.arrays import names_in, read_arrays

WANTED = "expected x uint8 [n, h, w, 3] and y integer [n]"


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
    with refusing(DataError, str(path), found="not a readable .npz file", cure=f"{WANTED}, written by numpy.savez"):
        with open_regular(path) as stream:
            is_archive = zipfile.is_zipfile(stream)
        if not is_archive:
            raise DataError(f"{path}: not an .npz file, or only a part of one; {WANTED}, written by numpy.savez")
        present = names_in(path)
        arrays = read_arrays(path, ("x", "y", "classes"))
    if missing := [key for key in ("x", "y") if key not in arrays]:
        raise DataError(f"{path}: lacks {' and '.join(missing)}; {WANTED}, found {', '.join(present) or 'nothing'}")
    images, labels, stored = arrays["x"], arrays["y"], arrays.get("classes")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(f"{path}: expected x uint8 [n, h, w, 3], found {images.dtype} {list(images.shape)}")
    if 0 in images.shape[1:]:
        raise DataError(f"{path}: expected images of 1 x 1 pixels or more, found x {list(images.shape)}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise DataError(f"{path}: expected y integer [{images.shape[0]}], found {labels.dtype} {list(labels.shape)}")
    if stored is not None and (stored.ndim != 1 or stored.dtype.kind not in "US"):
        raise DataError(f"{path}: expected classes as text [n_classes], found {stored.dtype} {list(stored.shape)}")
    with refusing(DataError, str(path), found="classes that are not UTF-8 text", cure="write them as texts"):
        classes = None if stored is None else tuple(map(_text, stored))
    return Source(labels.astype(np.int64), classes, lambda index: images[index])


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
