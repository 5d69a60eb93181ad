"""Batches of samples of different lengths: like beside like, so that little of a batch is padding. Pure; no torch.

A sample is only run beside samples of its own part of the split, of which racing looks at one after another, and which
batch it is in depends on the split and the size of batches alone. So passes over one part after another give every
sample the same company, and the same bits, as one pass over all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt.scoring.racing import looks
from mixopt.values.samples import LENGTH

Numbers = NDArray[np.int64]

# Raise it whenever the same split could be run in other batches than before.
VERSION = 1
# Of what a batch holds, padding included: as much may be padding.
PADDING = 0.1
# So many are one batch however they differ: fewer cost more than padding does.
FEWEST = 4


@dataclass(frozen=True, eq=False)
class Pass:
    """The batches of one pass over some samples.

    Attributes:
        samples: ``[k]`` their numbers in the order of the pass; None where that is their own, from ``start`` on.
        start: The first of them.
        ends: Ascending, up to k: no batch spans one of these places and the one before.
    """

    samples: Numbers | None
    start: int
    ends: Sequence[int]

    def __len__(self) -> int:
        return self.ends[-1] if len(self.ends) else 0

    def size(self, place: int, most: int) -> int:
        """How many samples the batch holds that begins at a place, at most so many."""
        return min(most, self.ends[bisect_right(self.ends, place)] - place)

    def batch(self, place: int, most: int) -> slice | Numbers:
        """The samples of that batch."""
        end = place + self.size(place, most)
        if self.samples is None:
            return slice(self.start + place, self.start + end)
        return self.samples[place:end]

    def part(self, first: int, last: int) -> Pass:
        """The places from one to another, of which both begin a batch."""
        ends = [end - first for end in self.ends if first < end < last]
        samples = None if self.samples is None else self.samples[first:last]
        return Pass(samples, self.start + first if samples is None else self.start, [*ends, last - first])

    def parts(self, most: int, step: int) -> list[tuple[int, int]]:
        """Places to cut the pass at, from one to another: whole batches, of ``step`` samples or a few more.

        Args:
            most: Samples per batch at most.
            step: Samples per part.
        """
        cuts, place = [0], 0
        while place < len(self):
            place += self.size(place, most)
            if place - cuts[-1] >= step or place == len(self):
                cuts.append(place)
        return list(pairwise(cuts))

    def in_order(self) -> Numbers | None:
        """``[k]``, the places in the pass of the samples in their own order; None where they are in it."""
        return None if self.samples is None else np.argsort(self.samples, kind="stable")


@dataclass(frozen=True, eq=False)
class Batches:
    """How a split is run.

    Attributes:
        order: ``[n]`` the samples, part by part, long ones first; None where none is padded.
        ends: Places in the order that no batch spans.
    """

    order: Numbers | None
    ends: Numbers

    @property
    def key(self) -> str:
        """A text that is another one wherever samples could have other company; empty where they are in order."""
        return "" if self.order is None else f"by length {VERSION}"

    def between(self, start: int, stop: int) -> Pass:
        """The pass over samples ``start`` to ``stop`` of the split."""
        if self.order is None:
            inside = self.ends[(self.ends > start) & (self.ends < stop)]
            return Pass(None, start, [*(inside - start).tolist(), *([stop - start] if stop > start else [])])
        wanted = (self.order >= start) & (self.order < stop)
        # Of a part that is only wanted in part, each batch holds what is left of it.
        ends = np.unique(np.cumsum(wanted)[self.ends - 1])
        return Pass(self.order[wanted], start, [end for end in ends.tolist() if end])


def plain_batches(count: int, cut: int) -> Batches:
    """Batches of samples in their own order, of which none spans the sample at ``cut`` and the one before."""
    return Batches(None, np.unique([cut, count]))


def batches_of(arrays: Mapping[str, NDArray[Any]], count: int, cut: int | None, most: int) -> Batches:
    """The batches of a split: where some of its arrays are padded, by length within each part.

    Args:
        arrays: As in `mixopt.Samples`.
        count: Samples.
        cut: How many of the first are raced, look by look, those after them being a part of their own; None where none
            is, and all are one part.
        most: Samples per batch at most.
    """
    found = {np.asarray(arrays[name + LENGTH]).tobytes(): name + LENGTH for name in arrays if name + LENGTH in arrays}
    if not found:
        return plain_batches(count, count if cut is None else cut)
    # Never nothing: a batch of nothing but padding keeps a column.
    lengths = np.stack([np.maximum(1, np.asarray(arrays[name], dtype=np.int64)) for name in found.values()])
    parts = [] if cut is None else looks(cut, most)
    orders: list[Numbers] = []
    ends: list[int] = []
    first = 0
    for stop in sorted({*parts, count}):
        order = first + np.argsort(-lengths[:, first:stop].sum(axis=0), kind="stable")
        orders.append(order)
        ends += [first + end for end in _ends(lengths[:, order], most)]
        first = stop
    return Batches(np.concatenate(orders), np.array(ends, dtype=np.int64))


def _ends(lengths: Numbers, most: int) -> list[int]:
    """Where batches of samples of these lengths ``[arrays, k]`` end, each as long as little of it is padding."""
    ends, begun, real = [], 0, 0
    longest = np.zeros(len(lengths), dtype=np.int64)
    for place, own in enumerate(lengths.T):
        count, widest, wanted = place - begun + 1, np.maximum(longest, own), real + int(own.sum())
        held = count * int(widest.sum())
        if count > most or (count > FEWEST and held - wanted > PADDING * held):
            ends.append(place)
            begun, widest, wanted = place, own, int(own.sum())
        longest, real = widest, wanted
    return [*ends, lengths.shape[1]]


def padding_share(arrays: Mapping[str, NDArray[Any]], batches: Sequence[slice | Numbers]) -> float:
    """Of all that batches hold of the padded arrays, the share that is padding."""
    held = real = 0
    for name in arrays:
        if name + LENGTH in arrays:
            for samples in batches:
                lengths = np.asarray(arrays[name + LENGTH][samples])
                held += len(lengths) * max(1, int(lengths.max(initial=0)))
                real += int(lengths.sum())
    return 1 - real / held if held else 0.0
