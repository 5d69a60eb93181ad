"""Outcomes: what one model did, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt.values.kept_logits import KeptLogits, Places


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What one model did on the first samples of a split's fixed order.

    Attributes:
        predicted: ``[n]`` int64, the class with the largest logit; -1 where a user's own objective scored.
        losses: ``[n]`` float64, cross-entropy in nats; of an own objective, minus its scores.
        also: Other numbers that an own objective gave, by name.
        above: ``[n]`` int64, how many classes come before the right one: those of a larger logit, or of an equal one
            and a lower number. None where a user's own objective scored, and where it was not kept yet.
        confidence: ``[n]`` float64, the probability of the predicted class; None as above.
        logits: Of the n samples; None as above, and where a loss is not finite.
    """

    predicted: NDArray[np.int64]
    losses: NDArray[np.float64]
    also: Mapping[str, float] = field(default_factory=dict)
    above: NDArray[np.int64] | None = None
    confidence: NDArray[np.float64] | None = None
    logits: KeptLogits | None = None

    def __len__(self) -> int:
        return len(self.predicted)

    @property
    def is_finite(self) -> bool:
        """Whether all losses are numbers."""
        return bool(np.all(np.isfinite(self.losses)))

    @property
    def is_own(self) -> bool:
        """Whether a user's own objective scored."""
        return len(self) > 0 and bool(self.predicted[0] < 0)

    def first(self, count: int) -> Outcomes:
        """Those of the first samples."""
        return self if count >= len(self) else self._taken(slice(count))

    def rest(self, start: int) -> Outcomes:
        """Those of the samples from ``start`` on."""
        return self._taken(slice(start, None))

    def at(self, places: NDArray[np.int64]) -> Outcomes:
        """Those at some places ``[k]``, in their order."""
        return self._taken(places)

    def then(self, more: Outcomes) -> Outcomes:
        """These, and those of the samples after them, of what was kept of both."""
        if not len(self):
            return more
        pairs = {name: (getattr(self, name), getattr(more, name)) for name in PER_SAMPLE}
        joined: dict[str, Any] = {
            name: None if one is None or two is None else np.concatenate([one, two])
            for name, (one, two) in pairs.items()
        }
        return replace(self, **joined, also=more.also, logits=_joined(self.logits, more.logits))

    def _taken(self, places: Places) -> Outcomes:
        arrays = {name: getattr(self, name) for name in PER_SAMPLE}
        taken: dict[str, Any] = {name: None if array is None else array[places] for name, array in arrays.items()}
        return replace(self, **taken, logits=None if self.logits is None else self.logits.at(places))


def _joined(first: KeptLogits | None, second: KeptLogits | None) -> KeptLogits | None:
    """Both, where both were kept and are of the same classes: an entry of the cache may say that it is of others."""
    if first is None or second is None or first.class_count != second.class_count:
        return None
    return first.then(second)


# The arrays [n].
PER_SAMPLE = ("predicted", "losses", "above", "confidence")
NO_OUTCOMES = Outcomes(np.zeros(0, dtype=np.int64), np.zeros(0))
