"""Splits as a folder of class folders of images (the ImageFolder layout); classes are the folders' names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixopt.data import Source
from mixopt.errors import DataError
from mixopt.files import natural_key
from mixopt.untrusted import refusing

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})

# What is behind the suffixes. Pillow by itself looks at the content alone, and hands PostScript to another program.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "PPM", "GIF")


def matches(path: Path) -> bool:
    """Whether the path is a folder."""
    return path.is_dir()


def files(path: Path) -> list[Path]:
    """Every image."""
    return [image for _, image in _images(path)]


def open_source(path: Path) -> Source:
    """List the images.

    Raises:
        DataError: No class folders with images in it.
    """
    found = _images(path)
    if not found:
        raise DataError(f"{path}: the split is empty; expected one folder of images per class")
    # Plainly sorted, not naturally: this is how ImageFolder numbers the classes that a model was trained with.
    classes = sorted({label for label, _ in found})
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[label] for label, _ in found], dtype=np.int64)
    return Source(labels, tuple(classes), lambda index: _read(found[index][1]))


def _images(path: Path) -> list[tuple[str, Path]]:
    """``(class, file)`` in natural order."""
    with refusing(DataError, str(path), found="a folder in it cannot be listed", cure="check its permissions"):
        found = [
            (folder.name, image)
            for folder in path.iterdir()
            if folder.is_dir() and not folder.name.startswith(".")
            for image in _files_below(folder)
            if image.suffix.lower() in SUFFIXES
        ]
    return sorted(found, key=lambda item: natural_key(item[1].relative_to(path).as_posix()))


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file of a folder and those in it; one that cannot be listed is an error, not an empty one."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error

    for place, _, names in os.walk(folder, onerror=fail):
        yield from (Path(place) / name for name in names)


def _read(path: Path) -> NDArray[np.uint8]:
    with (
        refusing(
            DataError,
            str(path),
            found="this image does not decode",
            cure="replace or remove it",
            also=(Image.DecompressionBombError,),
        ),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # what makes an image odd is no error, and what is one is raised
        with Image.open(path, formats=FORMATS) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
