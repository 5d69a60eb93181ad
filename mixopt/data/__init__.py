"""Data sources: a file or folder of labelled records to `mixopt.Samples`, encoded once, memory-mapped afterwards.

A newcomer is one module here with ``matches(path)``, ``files(path, reading)`` and ``open_source(path, reading)``, see
`SourceModule`; its name goes into `SOURCES`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from mixopt.data.classes import match_classes
from mixopt.data.content import check_unchanged, content_of
from mixopt.data.encode import Arrays, encoded, form_of
from mixopt.data.encoded_store import decoded_folder, load_decoded, write_decoded
from mixopt.data.source import Reading, Source, SourceModule
from mixopt.errors import DataError, RunError
from mixopt.listener import Listener
from mixopt.untrusted.stand_ins import stand_in_at
from mixopt.values.samples import IMAGES, Encoding, Samples, stratified_order

# The first that opens a path does.
SOURCES = ("npz", "jsonl", "csv", "parquet", "datasets", "folder")
KINDS = (
    ".npz (x and y), .csv, .tsv, .jsonl or .parquet (records with a label), a folder that datasets saved, or a folder "
    "with one folder of images per class"
)
CHUNK = 256


def open_split(
    path: Path,
    name: str,
    encoding: Encoding,
    *,
    classnames: Sequence[str] | None,
    cache: Path,
    reading: Reading | None = None,
    listener: Listener | None = None,
) -> Samples:
    """Open a split, from the decoded cache where it has been opened before.

    Args:
        path: A file or folder that one of `SOURCES` opens.
        name: What the split is called in reports.
        encoding: Makes arrays of records.
        classnames: The model's classes in the order of its logits; the source's classes are matched by name.
        cache: The cache directory.
        reading: How the source is to be read.
        listener: Told about notices, and progress while decoding.

    Raises:
        DataError: Missing, empty, not decodable, or with labels or classes that are not the model's.
    """
    heard = listener or Listener()
    module = _module_for(path)
    reading = reading or Reading()
    listing = module.files(path, reading)
    content = content_of(path, listing.files, cache)
    folder = decoded_folder(cache, json.dumps([content.hash, encoding.key, listing.key, dict(reading.fields)]))
    found = load_decoded(folder, heard)
    if found is None:
        _decode(path, module.open_source(path, reading), encoding, cache, folder, heard)
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
    return Samples(name, str(path), found.arrays, labels, found.digests, known)


def _module_for(path: Path) -> SourceModule:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; --data takes {KINDS}")
    if path.is_file() and (instead := stand_in_at(path)):
        raise DataError(f"{path}: no split but {instead}")
    for name in SOURCES:
        module: Any = importlib.import_module(f"mixopt.data.{name}")
        if module.matches(path):
            source: SourceModule = module
            return source
    raise DataError(f"{path}: expected {KINDS}")


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
