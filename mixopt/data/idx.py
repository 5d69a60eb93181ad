"""Splits as MNIST and its kin are kept, and torchvision downloads them: ``t10k-images-idx3-ubyte`` or ``.gz``.

The labels lie beside, ``t10k-labels-idx1-ubyte``. Grey images become RGB.
"""

from __future__ import annotations

import gzip
import math
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixopt.data.source import Listing, Reading, Source, no_labels
from mixopt.errors import DataError, names
from mixopt.memory import available_memory, gigabytes
from mixopt.untrusted import open_regular, refusing

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_CURE = "download it again"


def matches(path: Path) -> bool:
    """Whether the path is such a file of images, or a folder of them."""
    return _is_images(path) or (path.is_dir() and bool(_in_folder(path)))


def files(path: Path, reading: Reading) -> Listing:
    """The images, and the labels where these are read."""
    images = _images_of(path)
    return Listing((images, _labels_of(images)) if reading.labelled else (images,))


def open_source(path: Path, reading: Reading) -> Source:
    """Read both files.

    Raises:
        DataError: One is missing or damaged, they do not fit together, or a folder holds several splits.
    """
    images = _images_of(path)
    pixels = _array(images, 3)
    labels = _array(_labels_of(images), 1) if reading.labelled else no_labels(len(pixels))
    if len(pixels) != len(labels) or 0 in pixels.shape[1:]:
        raise DataError(
            f"{images}: {len(pixels):,} images {list(pixels.shape[1:])}, but {len(labels):,} labels; {_CURE}"
        )
    return Source(labels.astype(np.int64), None, lambda number: np.repeat(pixels[number][:, :, None], 3, axis=2))


def _is_images(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(IMAGES) and path.is_file()


def _in_folder(folder: Path) -> list[Path]:
    """The files of images in a folder, or in ``raw`` in it; of one that is there unpacked too, the latter."""
    for place in (folder, folder / "raw"):
        found = sorted(each for each in place.glob(f"*{IMAGES}*") if _is_images(each))
        if found:
            return [each for each in found if not (each.suffix == ".gz" and each.with_suffix("") in found)]
    return []


def _images_of(path: Path) -> Path:
    if path.is_file():
        return path
    found = _in_folder(path)
    if len(found) > 1:
        shown = names(each.name for each in found)
        raise DataError(f"{path}: holds several splits ({shown}); name one, such as {found[0]}")
    return found[0]


def _labels_of(images: Path) -> Path:
    name = images.name.removesuffix(".gz").replace(IMAGES, LABELS)
    for found in (images.with_name(name), images.with_name(f"{name}.gz")):
        if found.is_file():
            return found
    raise DataError(f"{images}: its labels are not beside it; expected {images.with_name(name)}")


def _array(path: Path, axes: int) -> NDArray[np.uint8]:
    """The bytes of an IDX file, by the shape in its header."""
    with refusing(DataError, str(path), found="not a whole IDX file", cure=_CURE), ExitStack() as opened:
        plain = opened.enter_context(open_regular(path))
        stream = opened.enter_context(gzip.GzipFile(fileobj=plain)) if path.suffix == ".gz" else plain
        header = stream.read(4 + 4 * axes)
        if header[:4] != bytes([0, 0, 8, axes]) or len(header) < 4 + 4 * axes:
            raise ValueError(f"it begins with {header[:4].hex(' ')}, expected 00 00 08 0{axes}")
        shape = tuple(int(size) for size in np.frombuffer(header[4:], dtype=">u4"))
        size, free = math.prod(shape), available_memory()
        if free and size > free:
            raise ValueError(f"asks for {gigabytes(size)} of memory, and {gigabytes(free)} is free")
        parts = []
        while size and (part := stream.read(min(size, 2**24))):
            parts.append(part)
            size -= len(part)
        if size or stream.read(1):
            raise ValueError(f"its header says {list(shape)}, and it does not hold just that")
    return np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(shape)
