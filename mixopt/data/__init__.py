"""Data sources: a file or folder of labelled images to a `Split`, decoded once and memory-mapped afterwards.

A newcomer is one module here with ``matches(path)``, ``facts(path)`` and ``open_source(path)``; its name goes into
`SOURCES`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import joblib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixopt.errors import DataError, RunError, names
from mixopt.files import atomic_write
from mixopt.listener import Listener
from mixopt.values.samples import Preprocess, Split, stratified_order

SOURCES = ("npz", "folder")
CACHE_VERSION = 2
CHUNK = 256

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Source:
    """An opened source, nothing decoded yet.

    Attributes:
        labels: ``[n]`` int64, in the source's own numbering.
        classes: The name of each label, where the source knows them.
        load: Sample number to ``[height, width, 3]`` uint8; raises `DataError` where it does not decode.
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...] | None
    load: Callable[[int], NDArray[np.uint8]]


class SourceModule(Protocol):
    """The contract of a module in this folder."""

    def matches(self, path: Path) -> bool:
        """Whether this source opens such a path."""

    def facts(self, path: Path) -> str:
        """A cheap text that changes when the files do (names, sizes, times)."""

    def open_source(self, path: Path) -> Source:
        """Open it.

        Raises:
            DataError: It is not of the expected form.
        """


def open_split(
    path: Path,
    name: str,
    preprocess: Preprocess,
    *,
    classnames: Sequence[str] | None,
    cache: Path,
    limit: int | None = None,
    listener: Listener | None = None,
) -> Split:
    """Open a split, from the decoded cache where it has been opened before.

    Args:
        path: An ``.npz`` file or a folder of class folders.
        name: What the split is called in reports.
        preprocess: Gives the size that images are brought to.
        classnames: The model's classes in the order of its logits; the source's classes are matched by name.
        cache: The cache directory.
        limit: Keep only the first so many samples of the fixed order.
        listener: Told about notices, and progress while decoding.

    Raises:
        DataError: Missing, empty, not decodable, or with labels or classes that are not the model's.
    """
    heard = listener or Listener()
    module = _module_for(path)
    folder = decoded_folder(cache, f"{path.resolve()}|{module.facts(path)}|{preprocess.size}|{preprocess.key}")
    decoded = load_decoded(folder)
    if decoded is None:
        _decode(path, module.open_source(path), preprocess, folder, heard)
        decoded = load_decoded(folder)
    if decoded is None:
        raise RunError(f"{folder}: the decoded copy of {path} cannot be read back; choose another --cache")
    images, digests, labels, classes, resized = decoded
    if resized:
        heard.info(f"{path}: images of size {resized} are resized to {_size(images)} as the model takes them")
    labels = _match_classes(path, labels, classes, classnames, heard)
    known = classes if classnames is None else tuple(classnames)
    split = Split(name, str(path), images, labels, digests, known)
    return split if limit is None else split.first(limit)


def _module_for(path: Path) -> SourceModule:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; --data takes an .npz file or a folder of class folders")
    for name in SOURCES:
        module: Any = importlib.import_module(f"mixopt.data.{name}")
        if module.matches(path):
            source: SourceModule = module
            return source
    raise DataError(f"{path}: expected an .npz file with x and y, or a folder with one folder of images per class")


def _decode(
    path: Path,
    source: Source,
    preprocess: Preprocess,
    folder: Path,
    listener: Listener,
) -> None:
    """Bring every image to the model's size, in evaluation order, and keep them in the cache."""
    count = len(source.labels)
    if count == 0:
        raise DataError(f"{path}: the split is empty; expected labelled images")
    order = stratified_order(source.labels)
    first = source.load(int(order[0]))
    size = preprocess.size or (first.shape[0], first.shape[1])
    other_sizes: set[tuple[int, int]] = set()

    def fitted(index: int) -> NDArray[np.uint8]:
        image = source.load(index)
        if image.shape[:2] == size:
            return image
        other_sizes.add((image.shape[0], image.shape[1]))
        if preprocess.size is None:
            raise DataError(f"{path}: images of different sizes, {image.shape[:2]} and {size}; the family takes one")
        made = np.asarray(preprocess.fit(Image.fromarray(image)), dtype=np.uint8)
        if made.shape != (*size, 3):
            raise DataError(f"{path}: the family's preprocess.fit gives {list(made.shape)}, expected {[*size, 3]}")
        return made

    def images() -> Iterator[NDArray[np.uint8]]:
        with joblib.Parallel(n_jobs=-1, prefer="threads") as parallel:
            for start in range(0, count, CHUNK):
                yield from parallel(joblib.delayed(fitted)(int(index)) for index in order[start : start + CHUNK])
                listener.progress(f"decoding {path.name}", min(start + CHUNK, count), count)

    digests = write_images(folder, images(), (count, *size, 3))
    sizes = ", ".join(f"{height}x{width}" for height, width in sorted(other_sizes)[:3])
    write_labels(folder, digests, source.labels[order], source.classes, sizes)


def decoded_folder(cache: Path, facts: str) -> Path:
    """Where the decoded copy of a split lies that follows from some facts."""
    return cache / "splits" / hashlib.sha256(f"{CACHE_VERSION}|{facts}".encode()).hexdigest()[:32]


def write_images(folder: Path, images: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Keep decoded images, and hash each of them.

    Args:
        folder: From `decoded_folder`.
        images: ``[h, w, 3]`` each, in evaluation order.
        shape: ``(n, h, w, 3)``.

    Returns:
        ``[n, 16]``, one hash per image.
    """
    digests = np.empty((shape[0], 16), dtype=np.uint8)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    # Written as a stream: where a disk is full, a write says so, while a memory map would kill the process.
    with atomic_write(folder / "images.npy") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for place, image in enumerate(images):
            pixels = image.tobytes()
            stream.write(pixels)
            digests[place] = np.frombuffer(hashlib.blake2b(pixels, digest_size=16).digest(), dtype=np.uint8)
    return digests


def write_labels(
    folder: Path,
    digests: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: Sequence[str] | None,
    resized: str = "",
) -> None:
    """Complete a decoded copy: its labels ``[n]``, the images' hashes, the classes and the sizes before resizing."""
    meta = json.dumps({"classes": classes, "resized": resized})
    with atomic_write(folder / "labels.npz") as stream:
        np.savez(stream, digests=digests, labels=labels, meta=np.array(meta))


def load_decoded(
    folder: Path,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], tuple[str, ...] | None, str] | None:
    """The decoded copy, or None where there is none or it is damaged (it is then decoded anew)."""
    try:
        with (folder / "labels.npz").open("rb") as stream, np.load(stream) as stored:
            digests, labels, meta = stored["digests"], stored["labels"], json.loads(str(stored["meta"]))
        images = np.load(folder / "images.npy", mmap_mode="r")
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        return None
    if len(images) != len(labels) or len(digests) != len(labels):
        return None
    classes = None if meta["classes"] is None else tuple(meta["classes"])
    return images, digests, labels.astype(np.int64), classes, meta["resized"]


def _match_classes(
    path: Path,
    labels: NDArray[np.int64],
    classes: Sequence[str] | None,
    classnames: Sequence[str] | None,
    listener: Listener,
) -> NDArray[np.int64]:
    """Labels in the model's numbering."""
    known = len(classes) if classes is not None else len(classnames) if classnames is not None else None
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (known is not None and high >= known):
        upper = "" if known is None else f" to {known - 1}"
        raise DataError(f"{path}: labels go from {low} to {high}, expected 0{upper} as there are {known} classes")
    if classes is None or classnames is None or list(classes) == list(classnames):
        return labels
    places = {_plain(name): number for number, name in enumerate(classnames)}
    found = {_plain(name) for name in classes}
    strange = [name for name in classes if _plain(name) not in places]
    absent = [name for name in classnames if _plain(name) not in found]
    if strange or absent or len(found) != len(classes) or len(places) != len(classnames):
        told = [f"unknown: {names(strange)}"] if strange else []
        told += [f"missing: {names(absent)}"] if absent else []
        raise DataError(
            f"{path}: its classes are not those of the model: expected {names(classnames)}; found {names(classes)} "
            f"({'; '.join(told) or 'a name stands there twice'}). "
            "Correct classnames in pool.toml or the classes of the split"
        )
    mapping = np.array([places[_plain(name)] for name in classes], dtype=np.int64)
    if not np.array_equal(mapping, np.arange(len(mapping))):
        listener.info(f"{path}: its classes stand in another order than classnames; labels are matched by name")
    return mapping[labels]


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()


def _size(images: NDArray[np.uint8]) -> str:
    return f"{images.shape[1]}x{images.shape[2]}"
