"""Values between data and evaluation: the samples of a split, and what a model wants done to a record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixopt.errors import DataError, names

ORDER_SEED = 0
# The selection images under synthetic shifts, as a split of their own.
SYNTHETIC = "synthetic"
# Samples of what the model will meet, without labels, as a split of their own.
UNLABELLED = "unlabelled"
# The split that selects.
VALIDATION = "validation"
# The one array of a split of images, uint8 [n, h, w, 3].
IMAGES = "images"
# Ends the name of the array that says how much of each row of another is not padding.
LENGTH = "_length"


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image before the model.

    Attributes:
        size: ``(height, width)`` in pixels that the model takes, or None where any size will do.
        mean: Per channel, on the scale 0 to 1.
        std: Per channel, on the scale 0 to 1.
        fit: Brings a PIL image to ``size``.
        key: A text that is another one wherever any of the others is; part of every cache key.
    """

    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Callable[[Any], Any]
    key: str


def _nothing(arrays: Mapping[str, NDArray[Any]]) -> Iterable[str]:
    """What there is to tell of samples that were encoded as they are."""
    return ()


def _no_text(arrays: Mapping[str, NDArray[Any]]) -> str:
    """What encoded arrays say to a reader: nothing, unless the family knows."""
    return ""


@dataclass(frozen=True)
class Encoding:
    """What happens to a record of a data source before the model.

    Attributes:
        encode: A record (an image ``[h, w, 3]`` uint8, or the fields of a line of a ``.jsonl`` file as a dict) to
            named arrays of numbers. Every record gives the same names with the same dtypes and shapes; only a
            one-dimensional array may be as long as it likes. Called once per record; what it gives is kept on disk.
        collate: A batch of these arrays, as tensors ``[b, ...]`` on the device, to what the model takes. Beside each
            one-dimensional array stands its ``<name>_length``, ``[b]`` int64; the array is padded with zeros to the
            longest of the batch.
        key: A text that is another one wherever ``encode`` or ``collate`` is; part of every cache key.
        notices: What a user should know of a split's arrays ``[n, ...]``, such as how many texts were cut.
        enlarging: What a user should know where images are enlarged; empty for nothing.
        text_of: What a record says, from its arrays without their first axis, for reports; empty where nobody knows.
    """

    encode: Callable[[Any], Mapping[str, ArrayLike]]
    collate: Callable[[Mapping[str, Any]], Any]
    key: str
    notices: Callable[[Mapping[str, NDArray[Any]]], Iterable[str]] = _nothing
    enlarging: str = ""
    text_of: Callable[[Mapping[str, NDArray[Any]]], str] = _no_text


@dataclass(frozen=True, eq=False)
class Samples:
    """A split: encoded samples and their labels, in the one fixed order in which they are evaluated.

    The order is class-stratified and random, so the first k samples are a fair subsample for every mix alike.

    Attributes:
        name: ``validation``, or the name of another split.
        source: The file or folder, for messages.
        arrays: Name to ``[n, ...]``, memory-mapped; for images ``images`` alone, ``[n, height, width, 3]`` uint8.
            Beside a padded array ``[n, longest]`` stands its ``<name>_length``, ``[n]`` int64.
        labels: ``[n]`` int64.
        digests: ``[n, 16]`` uint8, one hash per sample, see `sample_digest`.
        classes: The name of each label, where the source or the model knows them.
        steers: Whether a search is steered by it beside the validation split; a test split is not.
        among: The classes that logits are restricted to, ascending: predictions are of these alone, under the numbers
            that the model gives them. None where all classes stand.
        notes: What was left out, converted or taken as what while it was read, for reports.
    """

    name: str
    source: str
    arrays: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64]
    digests: NDArray[np.uint8]
    classes: tuple[str, ...] | None = None
    steers: bool = False
    among: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.among is not None and (outside := sorted(set(self.labels.tolist()) - set(self.among))):
            raise DataError(
                f"{self.source}: labels {names(map(str, outside))} are not among the {len(self.among)} classes that "
                "the split is restricted to"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the samples and labels in order, and of the classes they are told among, where these are not all.

        A shorter split has another one.
        """
        digest = hashlib.sha256(np.ascontiguousarray(self.digests).tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        if self.among is not None:
            digest.update(b"among" + np.array(self.among, dtype="<i8").tobytes())
        return digest.hexdigest()

    @property
    def class_count(self) -> int | None:
        """How many classes predictions are of, where that is known."""
        known = self.among or self.classes
        return len(known) if known else None

    @property
    def unit(self) -> str:
        """What one of them is called in messages: ``image``, or ``sample`` where they are anything else."""
        images = self.arrays.get(IMAGES)
        if len(self.arrays) > 1 or images is None or images.ndim != 4 or images.dtype != np.uint8:
            return "sample"
        return "image" if images.shape[-1] == 3 else "sample"

    def first(self, count: int) -> Samples:
        """The first samples of the fixed order."""
        arrays = {name: array[:count] for name, array in self.arrays.items()}
        return replace(self, arrays=arrays, labels=self.labels[:count], digests=self.digests[:count])

    def shared_with(self, other: Samples) -> int:
        """How many of this split's samples stand in another split too."""
        theirs = {row.tobytes() for row in other.digests}
        return sum(row.tobytes() in theirs for row in self.digests)


def sample_digest(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """16 bytes of BLAKE2b: of an image its pixels, else the name, dtype, shape and bytes of each array, by name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(arrays.items()):
        if len(arrays) > 1 or name != IMAGES:
            digest.update(f"{name}|{array.dtype.str}|{list(array.shape)}|".encode())
        digest.update(array.tobytes())
    return digest.digest()


def stratified_order(labels: NDArray[np.int64], seed: int = ORDER_SEED) -> NDArray[np.int64]:
    """A random order in which every prefix holds the classes in about their overall proportions.

    Args:
        labels: ``[n]`` class numbers.
        seed: Of the order; not the run's seed, so that every run shares its outcomes.

    Returns:
        ``[n]`` indices.
    """
    random = np.random.default_rng(seed)
    place = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[random.permutation(members)] = (np.arange(len(members)) + random.random()) / len(members)
    return np.argsort(place, kind="stable").astype(np.int64)
