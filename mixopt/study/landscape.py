"""The landscape of a search: what the splits that steer are predicted to say of any point of its space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixopt.spaces import Space
from mixopt.surface.fitting import Surface
from mixopt.surface.outputs import PredictedOutcomes
from mixopt.surface.slopes import loss_and_slopes
from mixopt.values.metrics import Metric

Floats = NDArray[np.float64]
Samples = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Steering:
    """A split that steers.

    Attributes:
        surface: Predicts its outcomes.
        labels: ``[n]``.
        weight: What it weighs in the signal; all together weigh 1.
    """

    surface: Surface
    labels: NDArray[np.int64]
    weight: float


class Landscape:
    """The signal at points of a space, as surfaces predict it. Higher is better, whatever the metric's direction.

    Args:
        space: Whose points.
        splits: Name to split, the validation split first.
        signal: What steers.
    """

    def __init__(self, space: Space, splits: Mapping[str, Steering], signal: Metric) -> None:
        self.space = space
        self.splits = dict(splits)
        self.signal = signal

    @property
    def surface(self) -> Surface:
        """The validation split's."""
        return next(iter(self.splits.values())).surface

    @property
    def labels(self) -> dict[str, NDArray[np.int64]]:
        """``[n]`` of each split."""
        return {name: split.labels for name, split in self.splits.items()}

    def coefficients(self, points: Floats) -> Floats:
        """``[m, groups, columns]`` of points ``[m, dims]``."""
        return np.stack([self.space.to_mix(point).coefficients for point in points])

    def values(self, points: Floats, chosen: Mapping[str, Samples] | None = None) -> Floats:
        """The weighted mean over splits of the signal at points ``[m, dims]``: ``[m]``.

        Args:
            points: The points.
            chosen: By split, the samples that count; all of a split that is not named.
        """
        return np.asarray(self.values_by(points, [chosen])[0])

    def values_by(self, points: Floats, several: Sequence[Mapping[str, Samples] | None]) -> Floats:
        """`values` by several choices of samples, ``[choices, m]``; what is predicted is predicted once."""
        return self.worth(self.coefficients(points), several)

    def worth(self, coefficients: Floats, several: Sequence[Mapping[str, Samples] | None] = (None,)) -> Floats:
        """The same of mixes ``[m, groups, columns]``, whether points of the space or not."""
        found = []
        for outcomes in self.outcomes(coefficients):
            found.append([
                sum(
                    split.weight * self._signal_of(split, outcomes[name], (chosen or {}).get(name))
                    for name, split in self.splits.items()
                )
                for chosen in several
            ])  # fmt: skip
        return np.transpose(found)

    def weighted(self, weights: Sequence[float]) -> Landscape:
        """The same with other weights of the splits."""
        changed = copy(self)
        changed.splits = {
            name: replace(split, weight=float(weight))
            for (name, split), weight in zip(self.splits.items(), weights, strict=True)
        }
        return changed

    def outcomes(self, coefficients: Floats) -> Iterator[dict[str, PredictedOutcomes]]:
        """What each mix ``[m, groups, columns]`` is predicted to do on all samples, by split; what the signal needs."""
        every = [split.surface.outcomes(coefficients, self.signal.needs) for split in self.splits.values()]
        for found in zip(*every, strict=True):
            yield dict(zip(self.splits, found, strict=True))

    def descent(self, chosen: Mapping[str, Samples] | None = None) -> Callable[[Floats], tuple[float, Floats]]:
        """From a point ``[dims]`` to the weighted mean of the predicted losses in nats, and its slopes ``[dims]``."""
        shares = []
        for name, split in self.splits.items():
            share = np.zeros(len(split.labels))
            taken = (chosen or {}).get(name, np.arange(len(split.labels)))
            share[taken] = split.weight / len(taken)
            shares.append(share)

        def at(point: Floats) -> tuple[float, Floats]:
            (coefficients,) = self.coefficients(point[None])
            total, slopes = 0.0, np.zeros_like(coefficients)
            for split, share in zip(self.splits.values(), shares, strict=True):
                loss, slope = loss_and_slopes(split.surface, coefficients, share)
                total, slopes = total + loss, slopes + slope
            return total, self.space.pull_back(point, slopes)

        return at

    def least_sure(self, points: Floats, count: int, taken: Sequence[int] = ()) -> list[int]:
        """See `Surface.least_sure`."""
        return self.surface.least_sure(self.coefficients(points), count, taken)

    def _signal_of(self, split: Steering, outcomes: PredictedOutcomes, samples: Samples | None) -> float:
        if samples is None:
            return self.signal.sign * self.signal.of(split.labels, outcomes)
        return self.signal.sign * self.signal.of(split.labels[samples], outcomes.at(samples))
