"""Activation reuse: a mix that equals an earlier one in its model's first segments goes on from what those gave."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt.values.mix import Mix
from mixopt.values.samples import Samples
from mixopt.weights.builder import tensor_rows
from mixopt.weights.memory import free_memory
from mixopt.weights.pool import Pool

# Of the memory that is free once the pool and the samples are in place.
SHARE = 0.25
# Simulated on the mixes that manifold asked for: fewer save less, more save hardly any more.
BOUNDARIES = 3


# The first takes what is collated, each other what the one before gives.
Step = Callable[[Any], Tensor]


@dataclass(eq=False)
class _Boundary:
    """What the first ``segments`` segments gave, by batch."""

    segments: int
    activations: dict[Hashable, Tensor] = field(default_factory=dict)
    bytes: int = 0


class ActivationReuse:
    """Keeps what segments gave, for as many samples as memory allows, and plans passes that start from there.

    Where a mix shares its first segments with the mix before, the next is likely to share as many, or one more, as
    coordinate steps move on by one: what comes out of those is kept. Where it shares none, nothing is kept, and
    nothing is different from a pass without any of this.

    Args:
        pool: What is mixed.
        tensors: Stage by segment, the names of the tensors that it depends on.
        steps: Gives the segments' functions, for the module as it is now; called once per pass.
        budget: Bytes to keep at most.

    Attributes:
        cuts: For `mixopt.weights.builder.FastBuilder.cuts`: where another segment begins among its mixed tensors.
        budget: Bytes to keep at most; 0 keeps nothing.
        skipped: Segments times samples that were not computed anew.
        total: Segments times samples of all passes.
    """

    def __init__(
        self, pool: Pool, tensors: Sequence[frozenset[str]], steps: Callable[[], Sequence[Step]], budget: int
    ) -> None:
        self.budget = budget
        self.skipped = 0
        self.total = 0
        self._pool = pool
        self._steps = steps
        named = [{pool.tied.get(name, name) for name in names} for names in tensors]
        # What no segment names may matter anywhere: to the first it goes.
        numbers = [next((n for n, names in enumerate(named) if place.name in names), 0) for place in pool.mixed]
        self._members = [np.flatnonzero(np.array(numbers) == number) for number in range(len(named))]
        self.cuts = frozenset((np.flatnonzero(np.diff(numbers)) + 1).tolist())
        self._kept: dict[bytes, _Boundary] = {}  # the latest used stands last
        self._last: list[bytes] = []

    def plan(self, mix: Mix, split: Samples) -> Resumed | None:
        """The pass of a mix, which the module holds now, over a split; None where nothing is to be had or kept.

        Args:
            mix: Over the pool's columns.
            split: Its samples.
        """
        keys = self._keys(mix, split)
        # Each key holds those before it: as many are equal as segments are shared.
        shared = sum(new == old for new, old in zip(keys, self._last, strict=False))
        self._last = keys
        found = [key for key in keys if key in self._kept]
        deepest = self._kept[found[-1]].segments if found else 0
        wanted = [n for n in (shared, shared + 1) if shared and deepest < n <= len(keys)]
        for n in ([deepest] if found else []) + wanted:
            self._kept[keys[n - 1]] = self._kept.pop(keys[n - 1], _Boundary(n))
        for key in list(self._kept)[:-BOUNDARIES]:
            del self._kept[key]
        boundaries = [self._kept[key] for key in keys if key in self._kept]
        return Resumed(self, self._steps(), boundaries) if boundaries else None

    @property
    def share(self) -> float:
        """The share of the forward passes, in segments times samples, that earlier ones spared."""
        return round(self.skipped / self.total, 4) if self.total else 0.0

    def count(self, samples: int) -> None:
        """Add a pass over so many samples to the total."""
        self.total += len(self._members) * samples

    def keep(self, boundary: _Boundary, batch: Hashable, activation: Tensor, used: Sequence[_Boundary]) -> None:
        """Keep an activation where it fits in the budget, in the place of boundaries that the pass does not use."""
        size = activation.untyped_storage().nbytes()
        for key in [key for key, old in self._kept.items() if old not in used]:
            if self._held() + size > self.budget:
                del self._kept[key]
        if self._held() + size <= self.budget:
            boundary.activations[batch] = activation
            boundary.bytes += size

    def drop(self) -> bool:
        """Let go of all activations, and keep half as much from now on; False where there are none."""
        held = self._held()
        if held:
            self.budget = held // 2
        for boundary in self._kept.values():
            boundary.activations.clear()
            boundary.bytes = 0
        return held > 0

    def _held(self) -> int:
        return sum(boundary.bytes for boundary in self._kept.values())

    def _keys(self, mix: Mix, split: Samples) -> list[bytes]:
        """What the outcome of every segment but the last depends on: the rows of its tensors, and all before it."""
        rows = tensor_rows(mix, self._pool)
        digest = hashlib.sha256(split.fingerprint.encode())
        keys = []
        for number, members in enumerate(self._members[:-1]):
            digest.update(number.to_bytes(4) + rows[members].tobytes())
            keys.append(digest.digest())
        return keys


class Resumed:
    """One pass of a mix over a split, batch by batch, each from the last segment whose outcome is kept for it.

    Args:
        reuse: Keeps activations.
        steps: The segments' functions, for the module as it is now.
        boundaries: Those of this mix, in depth order, some perhaps still empty.
    """

    def __init__(self, reuse: ActivationReuse, steps: Sequence[Step], boundaries: Sequence[_Boundary]) -> None:
        self._reuse = reuse
        self._steps = steps
        self._boundaries = boundaries

    def __call__(self, samples: slice | NDArray[np.int64], inputs: Callable[[], Any]) -> Any:
        """Logits of some samples.

        Args:
            samples: From start to stop, or their numbers; an activation is used for the very batch that it comes from.
            inputs: Gives what is collated of them, where it is needed.
        """
        batch: Hashable
        if isinstance(samples, slice):
            batch, count = (samples.start, samples.stop), samples.stop - samples.start
        else:
            batch, count = samples.tobytes(), len(samples)
        start = next((each for each in reversed(self._boundaries) if batch in each.activations), None)
        done = start.segments if start else 0
        hidden = start.activations[batch] if start else inputs()
        places = {boundary.segments: boundary for boundary in self._boundaries}
        for number, step in enumerate(self._steps[done:], start=done + 1):
            hidden = step(hidden)
            if number in places:
                self._reuse.keep(places[number], batch, hidden, self._boundaries)
        self._reuse.skipped += done * count
        return hidden

    def drop(self) -> bool:
        """As `ActivationReuse.drop`, to make room for this pass."""
        return self._reuse.drop()


def budget_on(device: torch.device) -> int:
    """Bytes that may be kept on a device, by what is free there now."""
    return int(SHARE * free_memory(device))
