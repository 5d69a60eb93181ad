"""Climbing on a landscape: thousands of points that were never scored, to find the few that are worth it.

First down the slopes of the predicted loss (L-BFGS-B: Byrd et al., SIAM J. Sci. Comput. 16, 1995), which a landscape
has in any number of dimensions; from the best so far, CMA-ES (Hansen and Ostermeier, Evol. Comput. 9, 2001; the library
that Optuna's sampler is made of) on the signal itself, stepped or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cmaes
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from mixopt.study.landscape import Landscape, Samples

Floats = NDArray[np.float64]

# Steps of the descent.
DESCENT = 40
# Of the way from where a climb begins to where the loss is least.
SHARES = (0.25, 0.5, 0.75, 1.0)
# In more dimensions than these, CMA-ES learns a variance per dimension alone.
FULL = 32


@dataclass(frozen=True, eq=False)
class Region:
    """Where to climb: ``begin + basis . z`` within the box, each coordinate at most ``half`` from where it begins.

    Attributes:
        begin: ``[dims]``.
        half: The half-width.
        basis: ``[dims, freedom]``, columns of entries from 0 to 1; all dimensions move alone without.
    """

    begin: Floats
    half: float
    basis: Floats | None = None

    @property
    def bounds(self) -> Floats:
        """``[freedom, 2]``, of moves: the trust region, and the box where every dimension moves alone."""
        if self.basis is not None:
            return np.tile([-self.half, self.half], (self.basis.shape[1], 1))
        low = np.maximum(-1.0, self.begin - self.half) - self.begin
        high = np.minimum(1.0, self.begin + self.half) - self.begin
        return np.stack([low, high], axis=1)

    def points(self, moves: Floats) -> Floats:
        """Points ``[m, dims]`` of moves ``[m, freedom]``."""
        steps = moves if self.basis is None else moves @ self.basis.T
        return np.clip(self.begin + steps, -1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Climbed:
    """The points that a climb saw.

    Attributes:
        points: ``[m, dims]``.
        values: ``[m]``, the predicted signal there.
    """

    points: Floats
    values: Floats

    @property
    def best(self) -> Floats:
        """``[dims]``."""
        return np.asarray(self.points[int(np.argmax(self.values))])


def descend(landscape: Landscape, region: Region, chosen: Mapping[str, Samples] | None = None) -> Floats:
    """The moves ``[freedom]`` within a region at which the predicted loss is least."""
    slopes = landscape.descent(chosen)

    def cost(moves: NDArray[Any]) -> tuple[float, Floats]:
        (point,) = region.points(moves[None])
        loss, slope = slopes(point)
        return loss, slope if region.basis is None else region.basis.T @ slope

    bounds = region.bounds
    found = minimize(
        cost, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=[*bounds], options={"maxiter": DESCENT}
    )
    return np.asarray(found.x)


def climb(
    landscape: Landscape,
    region: Region,
    *,
    seed: int,
    evaluations: int,
    chosen: Mapping[str, Samples] | None = None,
    lowest: Floats | None = None,
) -> Climbed:
    """Climb the signal.

    Args:
        landscape: Predicts.
        region: Where; the climb begins at its centre.
        seed: Of CMA-ES.
        evaluations: Points at which CMA-ES may take the signal; 0 descends alone.
        chosen: By split, the samples that count.
        lowest: What `descend` finds there, where that is known.
    """
    if lowest is None:
        lowest = descend(landscape, region, chosen)
    moves = np.vstack([np.zeros_like(lowest), *(share * lowest for share in SHARES)])
    points = region.points(moves)
    values = landscape.values(points, chosen)
    if not evaluations:
        return Climbed(points, values)
    begin, bounds = moves[int(np.argmax(values))], region.bounds
    size = 2 * (4 + math.floor(3 * math.log(len(begin) + 1)))
    kind = cmaes.CMA if len(begin) <= FULL else cmaes.SepCMA
    # A dimension alone is one too few for it: the second changes nothing.
    padding = max(0, 2 - len(begin))
    bounds = np.vstack([bounds, np.tile([-region.half, region.half], (padding, 1))])
    optimizer = kind(
        mean=np.clip(np.r_[begin, np.zeros(padding)], bounds[:, 0], bounds[:, 1]),
        sigma=max(region.half / 4, 1e-6),
        bounds=bounds,
        seed=seed,
        population_size=size,
    )
    seen, told = [points], [values]
    for _ in range(max(1, evaluations // size)):
        asked = [optimizer.ask() for _ in range(size)]
        points = region.points(np.array(asked)[:, : len(begin)])
        values = landscape.values(points, chosen)
        optimizer.tell([(move, -value) for move, value in zip(asked, values.tolist(), strict=True)])
        seen.append(points)
        told.append(values)
        if optimizer.should_stop():
            break
    return Climbed(np.vstack(seen), np.concatenate(told))
