"""Outcomes: what one model did, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What one model did on the first samples of a split's fixed order.

    Attributes:
        predicted: ``[n]`` int64, the class with the largest logit; -1 where a user's own objective scored.
        losses: ``[n]`` float64, cross-entropy in nats; of an own objective, minus its scores.
        also: Other numbers that an own objective gave, by name.
    """

    predicted: NDArray[np.int64]
    losses: NDArray[np.float64]
    also: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.predicted)

    @property
    def is_finite(self) -> bool:
        """Whether all losses are numbers."""
        return bool(np.all(np.isfinite(self.losses)))

    def first(self, count: int) -> Outcomes:
        """Those of the first samples."""
        if count >= len(self):
            return self
        return replace(self, predicted=self.predicted[:count], losses=self.losses[:count])

    def rest(self, start: int) -> Outcomes:
        """Those of the samples from ``start`` on."""
        return replace(self, predicted=self.predicted[start:], losses=self.losses[start:])

    def then(self, more: Outcomes) -> Outcomes:
        """These, and those of the samples after them."""
        return Outcomes(
            np.concatenate([self.predicted, more.predicted]), np.concatenate([self.losses, more.losses]), more.also
        )


NO_OUTCOMES = Outcomes(np.zeros(0, dtype=np.int64), np.zeros(0))
