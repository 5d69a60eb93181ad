"""Splits in one ``.npz`` file: ``x`` uint8 ``[n, height, width, 3]``, ``y`` integer ``[n]``, optional ``classes``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.data import Source
from mixopt.errors import DataError
from mixopt.files import file_stamp


def matches(path: Path) -> bool:
    """Whether the path is an ``.npz`` file."""
    return path.is_file() and path.suffix == ".npz"


def stamp(path: Path) -> str:
    """Size and time of the file."""
    return file_stamp(path)


def open_source(path: Path) -> Source:
    """Read the arrays.

    Raises:
        DataError: Damaged, ``x`` or ``y`` missing or of another dtype or shape.
    """
    wanted = "expected x uint8 [n, h, w, 3] and y integer [n]"
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz file, or only a part of one; {wanted}, written by numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if missing := [key for key in ("x", "y") if key not in arrays.files]:
                raise DataError(
                    f"{path}: lacks {' and '.join(missing)}; {wanted}, found {', '.join(arrays.files) or 'nothing'}"
                )
            images, labels = arrays["x"], arrays["y"]
            stored = arrays["classes"] if "classes" in arrays.files else None
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npz file ({error}); {wanted}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(f"{path}: expected x uint8 [n, h, w, 3], found {images.dtype} {list(images.shape)}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise DataError(f"{path}: expected y integer [{images.shape[0]}], found {labels.dtype} {list(labels.shape)}")
    if stored is not None and (stored.ndim != 1 or stored.dtype.kind not in "US"):
        raise DataError(f"{path}: expected classes as text [n_classes], found {stored.dtype} {list(stored.shape)}")
    classes = None if stored is None else tuple(map(_text, stored))
    return Source(labels.astype(np.int64), classes, lambda index: images[index])


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
