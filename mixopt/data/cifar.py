"""Splits as CIFAR-10 and CIFAR-100 are kept in their binary version: ``test_batch.bin``, or the latter's ``test.bin``.

The Python version, which torchvision downloads, is a pickle: it is not opened, and named with the command that turns it
into an ``.npz``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixopt.data.source import Listing, Reading, Source, no_labels
from mixopt.errors import DataError, names
from mixopt.untrusted import open_regular, refusing
from mixopt.untrusted.texts import read_text

_PIXELS = 3 * 32 * 32
_TEN, _HUNDRED = "batches.meta.txt", "fine_label_names.txt"
_BATCH = re.compile(r"(data_batch_\d|test_batch)\.bin")
_PICKLED = {"cifar-10-batches-py": 10, "cifar-100-python": 100}


def matches(path: Path) -> bool:
    """Whether the path is such a file, or a folder of them, the pickled ones included."""
    if path.is_dir():
        return path.name in _PICKLED or (path / _TEN).is_file() or (path / _HUNDRED).is_file()
    return path.is_file() and (path.parent.name in _PICKLED or _is_batch(path))


def files(path: Path, reading: Reading) -> Listing:
    """The file, and the names of its classes."""
    _refuse(path)
    names_file = path.with_name(_HUNDRED if _is_hundred(path) else _TEN)
    return Listing((path, *([names_file] if names_file.is_file() else [])))


def open_source(path: Path, reading: Reading) -> Source:
    """Read the records: a label, of CIFAR-100 a coarse and a fine one, and an image.

    Raises:
        DataError: A pickle, a folder, or not a whole number of records.
    """
    _refuse(path)
    before = 2 if _is_hundred(path) else 1
    with refusing(DataError, str(path), found="not a file of CIFAR's", cure="download it again"):
        with open_regular(path) as stream:
            content = np.frombuffer(stream.read(), dtype=np.uint8)
        if not len(content) or len(content) % (before + _PIXELS):
            raise ValueError(f"{len(content):,} bytes, expected records of {before + _PIXELS}")
    rows = content.reshape(-1, before + _PIXELS)
    images = rows[:, before:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)

    def load(number: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(images[number])

    if not reading.labelled:
        return Source(no_labels(len(rows)), None, load, converted=lambda: ["its labels are not read"])
    found = files(path, reading).files[1:]
    classes = tuple(read_text(found[0], DataError).split()) if found else None
    return Source(rows[:, before - 1].astype(np.int64), classes, load)


def _is_hundred(path: Path) -> bool:
    return path.name in ("train.bin", "test.bin")


def _is_batch(path: Path) -> bool:
    if _is_hundred(path):
        return path.with_name(_HUNDRED).is_file()
    return _BATCH.fullmatch(path.name) is not None


def _refuse(path: Path) -> None:
    """Name what is no single file of the binary version."""
    folder = path if path.is_dir() else path.parent
    if folder.name in _PICKLED:
        kind = _PICKLED[folder.name]
        load = f"torchvision.datasets.CIFAR{kind}(r'{folder.parent}', train=False)"
        save = "numpy.savez('test.npz', x=d.data, y=d.targets, classes=d.classes)"
        raise DataError(
            f"{path}: CIFAR-{kind}'s Python version is pickles, which mixopt does not open. Turn it into an .npz by "
            f'torchvision: python -c "import numpy, torchvision; d = {load}; {save}"'
        )
    if path.is_dir():
        found = sorted(each.name for each in path.glob("*.bin") if _is_batch(each))
        raise DataError(f"{path}: holds several files of records ({names(found, 10) or 'none'}); name one of them")
