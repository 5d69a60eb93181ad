"""Outcomes: what one model did, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
    """

    predicted: NDArray[np.int64]
    losses: NDArray[np.float64]
    also: Mapping[str, float] = field(default_factory=dict)
    above: NDArray[np.int64] | None = None
    confidence: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.predicted)

    @property
    def is_finite(self) -> bool:
        """Whether all losses are numbers."""
        return bool(np.all(np.isfinite(self.losses)))

    def first(self, count: int) -> Outcomes:
        """Those of the first samples."""
        return self if count >= len(self) else self._each(lambda values, _: values[:count], self)

    def rest(self, start: int) -> Outcomes:
        """Those of the samples from ``start`` on."""
        return self._each(lambda values, _: values[start:], self)

    def then(self, more: Outcomes) -> Outcomes:
        """These, and those of the samples after them."""
        if not len(self):
            return more
        return replace(self._each(lambda first, rest: np.concatenate([first, rest]), more), also=more.also)

    def at(self, places: NDArray[np.int64]) -> Outcomes:
        """Those at some places ``[k]``, in their order."""
        return self._each(lambda values, _: values[places], self)

    def _each(self, change: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]], other: Outcomes) -> Outcomes:
        """Every array changed, of those that both have."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in PER_SAMPLE}
        changed: dict[str, Any] = {
            name: None if one is None or two is None else change(one, two) for name, (one, two) in pairs.items()
        }
        return replace(self, **changed)


# The arrays [n].
PER_SAMPLE = ("predicted", "losses", "above", "confidence")
NO_OUTCOMES = Outcomes(np.zeros(0, dtype=np.int64), np.zeros(0))
