"""Values between data and evaluation: a decoded split, and what a model wants done to its images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

ORDER_SEED = 0
# The selection images under synthetic shifts, as a split of their own.
SYNTHETIC = "synthetic"
# The split that selects.
VALIDATION = "validation"


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image before the model.

    Attributes:
        size: ``(height, width)`` in pixels that the model takes, or None where any size will do.
        mean: Per channel, on the scale 0 to 1.
        std: Per channel, on the scale 0 to 1.
        fit: Brings a PIL image to ``size``.
        key: A text that is another one wherever ``fit``, ``mean`` or ``std`` are others; part of every cache key.
    """

    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Callable[[Any], Any]
    key: str


@dataclass(frozen=True, eq=False)
class Split:
    """Decoded images and labels, in the one fixed order in which they are evaluated.

    The order is class-stratified and random, so the first k samples are a fair subsample for every mix alike.

    Attributes:
        name: ``validation``, or the name of another split.
        source: The file or folder, for messages.
        images: ``[n, height, width, 3]`` uint8, memory-mapped.
        labels: ``[n]`` int64.
        digests: ``[n, 16]`` uint8, one hash per image.
        classes: The name of each label, where the source or the model knows them.
        steers: Whether a search is steered by it beside the selection split; a test split is not.
    """

    name: str
    source: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    digests: NDArray[np.uint8]
    classes: tuple[str, ...] | None = None
    steers: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the images and labels in order; a shorter split has another one."""
        digest = hashlib.sha256(np.ascontiguousarray(self.digests).tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def first(self, count: int) -> Split:
        """The first samples of the fixed order."""
        return replace(self, images=self.images[:count], labels=self.labels[:count], digests=self.digests[:count])

    def shared_with(self, other: Split) -> int:
        """How many of this split's images stand in another split too."""
        theirs = {row.tobytes() for row in other.digests}
        return sum(row.tobytes() in theirs for row in self.digests)


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
