"""Data sources: a file or folder of labelled records to `mixopt.Samples`, encoded once, memory-mapped afterwards.

A newcomer is one module here with ``matches(path)``, ``files(path, reading)`` and ``open_source(path, reading)``, see
`SourceModule`; its name goes into `SOURCES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixopt.data.classes import match_classes
from mixopt.data.content import check_unchanged, content_of
from mixopt.data.decode import decode
from mixopt.data.encoded_store import decoded_folder, load_decoded
from mixopt.data.source import Reading, SourceModule
from mixopt.errors import DataError, RunError
from mixopt.listener import Listener
from mixopt.untrusted.stand_ins import stand_in_at
from mixopt.values.samples import Encoding, Samples

# The first that opens a path does.
SOURCES = ("npz", "jsonl", "csv", "parquet", "datasets", "webdataset", "idx", "cifar", "folder")
KINDS = (
    ".npz (x and y), .csv, .tsv, .jsonl or .parquet (records with a label), .tar (WebDataset), a folder that datasets "
    "saved, or a folder with one folder of images per class"
)
UNLABELLED_KINDS = (
    ".npz (x), .csv, .tsv, .jsonl or .parquet (records of texts or images), .tar (WebDataset), a folder that datasets "
    "saved, or a folder of images"
)
_NPZ = "turn it into an .npz with x uint8 [n, h, w, 3] and y integer [n], by numpy.savez"
# What else people have, and what to do with it.
_OTHERS = {
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), f"a pickle, which may run code; {_NPZ}"),
    **dict.fromkeys((".mat", ".h5", ".hdf5", ".npy"), _NPZ),
    **dict.fromkeys((".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z"), "packed; unpack it first"),
    **dict.fromkeys((".arrow", ".json"), "name the folder, or write one JSON object a line as .jsonl"),
    **dict.fromkeys((".tfrecord", ".lmdb", ".beton"), f"of another library's; {_NPZ}"),
}


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
    reading = reading or Reading()
    module = _module_for(path, reading)
    listing = module.files(path, reading)
    content = content_of(path, listing.files, cache)
    folder = decoded_folder(cache, "|".join((content.hash, encoding.key, listing.key, reading.key)))
    found = load_decoded(folder, heard)
    if found is None:
        source = module.open_source(path, reading)
        decode(path, source, encoding, reading, folder=folder, cache=cache, listener=heard)
        check_unchanged(path, listing.files, content.stamp)
        found = load_decoded(folder, heard)
    if found is None:
        raise RunError(f"{folder}: the decoded copy of {path} cannot be read back; choose another --cache")
    left_out = (*listing.left_out, *([found.skipped] if found.skipped else []))
    notices = (*found.notices, *encoding.notices(found.arrays))
    for text in left_out:
        heard.warn(f"{path}: {text}")
    for text in notices:
        heard.info(f"{path}: {text}")
    matched = match_classes(path, found.labels, found.classes, classnames, reading, heard)
    split = Samples(name, str(path), found.arrays, matched.labels, found.digests, matched.classes)
    return replace(split, among=matched.among, notes=(*left_out, *notices))


def _module_for(path: Path, reading: Reading) -> SourceModule:
    option, kinds = ("--data", KINDS) if reading.labelled else ("--unlabelled", UNLABELLED_KINDS)
    if path.is_file() and (instead := stand_in_at(path)):
        raise DataError(f"{path}: no split but {instead}")
    for name in SOURCES:
        module: Any = importlib.import_module(f"mixopt.data.{name}")
        if module.matches(path):
            source: SourceModule = module
            return source
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {option} takes {kinds}")
    advice = _OTHERS.get(path.suffix.lower())
    raise DataError(f"{path}: {advice}; expected {kinds}" if advice else f"{path}: expected {kinds}")
