"""Data sources: a file or folder of labelled records to `mixopt.Samples`, encoded once, memory-mapped afterwards.

A newcomer is one module here with ``matches(path)``, ``files(path)`` and ``open_source(path)``; its name goes into
`SOURCES`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import joblib
import numpy as np
from numpy.typing import NDArray

from mixopt.data.classes import match_classes
from mixopt.data.content import check_unchanged, content_of
from mixopt.data.encode import Arrays, encoded, form_of
from mixopt.data.encoded_store import decoded_folder, load_decoded, write_decoded
from mixopt.errors import DataError, RunError
from mixopt.listener import Listener
from mixopt.untrusted.stand_ins import stand_in_at
from mixopt.values.samples import IMAGES, Encoding, Samples, stratified_order

SOURCES = ("npz", "jsonl", "folder")
CHUNK = 256


def _nowhere(number: int) -> str:
    """Where a record stands in a source that says no more than its own name."""
    return ""


def _nothing() -> Sequence[str]:
    """What a source tells of its records that takes them as they are."""
    return ()


@dataclass(frozen=True)
class Listing:
    """What a source is made of, before anything is opened.

    Attributes:
        files: Every file that it reads, in an order that follows from their names.
        left_out: What it does not read of what lies there, for the user.
        key: What it depends on beside the files.
    """

    files: tuple[Path, ...]
    left_out: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True)
class Source:
    """An opened source, nothing encoded yet.

    Attributes:
        labels: ``[n]`` int64, in the source's own numbering.
        classes: The name of each label, where the source knows them.
        load: Record number to an image ``[height, width, 3]`` uint8, or to the fields of a record as a dict; raises
            `DataError` where it does not decode.
        where: Record number to its place in the source, such as ``, line 7``, to stand behind the path in messages.
        converted: What was done to records while they were loaded, for the user; asked once all are.
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...] | None
    load: Callable[[int], Any]
    where: Callable[[int], str] = _nowhere
    converted: Callable[[], Sequence[str]] = _nothing


class SourceModule(Protocol):
    """The contract of a module in this folder."""

    def matches(self, path: Path) -> bool:
        """Whether this source opens such a path."""

    def files(self, path: Path) -> Listing:
        """What it reads, and what it leaves out."""

    def open_source(self, path: Path) -> Source:
        """Open it.

        Raises:
            DataError: It is not of the expected form.
        """


def open_split(
    path: Path,
    name: str,
    encoding: Encoding,
    *,
    classnames: Sequence[str] | None,
    cache: Path,
    limit: int | None = None,
    listener: Listener | None = None,
) -> Samples:
    """Open a split, from the decoded cache where it has been opened before.

    Args:
        path: A file or folder that one of `SOURCES` opens.
        name: What the split is called in reports.
        encoding: Makes arrays of records.
        classnames: The model's classes in the order of its logits; the source's classes are matched by name.
        cache: The cache directory.
        limit: Keep only the first so many samples of the fixed order.
        listener: Told about notices, and progress while decoding.

    Raises:
        DataError: Missing, empty, not decodable, or with labels or classes that are not the model's.
    """
    heard = listener or Listener()
    module = _module_for(path)
    listing = module.files(path)
    content = content_of(path, listing.files, cache)
    folder = decoded_folder(cache, json.dumps([content.hash, encoding.key, listing.key]))
    found = load_decoded(folder, heard)
    if found is None:
        _decode(path, module.open_source(path), encoding, cache, folder, heard)
        check_unchanged(path, listing.files, content.stamp)
        found = load_decoded(folder, heard)
    if found is None:
        raise RunError(f"{folder}: the decoded copy of {path} cannot be read back; choose another --cache")
    for text in listing.left_out:
        heard.warn(f"{path}: {text}")
    for text in (*found.notices, *encoding.notices(found.arrays)):
        heard.info(f"{path}: {text}")
    labels = match_classes(path, found.labels, found.classes, classnames, heard)
    known = found.classes if classnames is None else tuple(classnames)
    split = Samples(name, str(path), found.arrays, labels, found.digests, known)
    return split if limit is None else split.first(limit)


def _module_for(path: Path) -> SourceModule:
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; --data takes an .npz file, a .jsonl file or a folder of class folders"
        )
    if path.is_file() and (instead := stand_in_at(path)):
        raise DataError(f"{path}: no split but {instead}")
    for name in SOURCES:
        module: Any = importlib.import_module(f"mixopt.data.{name}")
        if module.matches(path):
            source: SourceModule = module
            return source
    raise DataError(
        f"{path}: expected an .npz file with x and y, a .jsonl file of records with a label, or a folder with one "
        "folder of images per class"
    )


def _decode(path: Path, source: Source, encoding: Encoding, cache: Path, folder: Path, listener: Listener) -> None:
    """Encode every record, in evaluation order, and keep them in a folder of the cache."""
    count = len(source.labels)
    if count == 0:
        raise DataError(f"{path}: the split is empty; expected at least one labelled record")
    order = stratified_order(source.labels)
    other_sizes: set[tuple[int, ...]] = set()

    def arrays_of(number: int) -> Arrays:
        record = source.load(number)
        with _located(f"{path}{source.where(number)}"):
            arrays = encoded(encoding, record)
        if isinstance(record, np.ndarray) and arrays.keys() == {IMAGES}:
            other_sizes.update({record.shape[:2]} - {arrays[IMAGES].shape[:2]})
        return arrays

    form = form_of(arrays_of(int(order[0])))

    def checked(number: int) -> Arrays:
        arrays = arrays_of(number)
        with _located(f"{path}{source.where(number)}"):
            form.check(arrays)
        return arrays

    def samples() -> Iterator[Arrays]:
        with joblib.Parallel(n_jobs=-1, prefer="threads") as parallel:
            for start in range(0, count, CHUNK):
                yield from parallel(joblib.delayed(checked)(int(number)) for number in order[start : start + CHUNK])
                listener.progress(f"decoding {path.name}", min(start + CHUNK, count), count)

    def notices() -> list[str]:
        sizes = ", ".join(f"{height}x{width}" for height, width in sorted(other_sizes)[:3])
        size = "x".join(map(str, (form.shapes.get(IMAGES) or ())[:2]))
        resized = [f"images of size {sizes} are resized to {size} as the model takes them"] if sizes else []
        return [*source.converted(), *resized]

    write_decoded(folder, samples(), source.labels[order], source.classes, notices, cache=cache)


@contextmanager
def _located(place: str) -> Iterator[None]:
    """Errors say which record they are about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    except Exception as error:
        error.add_note(f"while encoding {place}")  # the family's own: its traceback is what helps
        raise
