"""MonoSoup, as a mix: a task vector shrunk tensor by tensor, by what of it lies outside its leading directions.

Abdollahpoorrostam et al., "Model soups need only one ingredient", arXiv 2602.09689. Per tensor of two or more
dimensions, as a matrix whose rows are the first dimension, with the singular values ``s_1 >= s_2 ...`` of
``delta = theta - theta_0``: the first n directions are kept as ``high``, the others as ``low``.

- n: the effective rank, the ceiling of ``exp(-sum p_i log p_i)`` with ``p_i = s_i / sum s``; or the least n whose
  ``s_i^2`` are a share R of their sum.
- P: the share of the first n in the sum of ``s_i^2``; ``rho = (s_(n+1) / s_1)^2``, 0 where n is all.
- ``low = rho + (1 - rho) sqrt(1 - P)`` and ``high = 1 - low``.

The paper's new delta is ``high * (first n directions) + low * (the others)``. That turns the delta within each tensor,
so it is no mix of checkpoints, no recipe could rebuild it, and it is left out. What is done instead keeps the delta's
direction and gives it the new one's length: ``f * delta``, ``f = sqrt(high^2 P + low^2 (1 - P))``, which is the mix
``(1 - f) * base + f * model``. Left out as well is the authors' code's rule that a delta below a millionth of its
tensor's norm stays as it is: such a delta changes nothing either way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt.errors import PoolError, SpecError
from mixopt.methods import Chosen
from mixopt.methods.wise_ft import ends
from mixopt.scoring.objective import Objective
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import MixedTensor, Pool

SHARE = 0.8
# How the directions that count as few are told.
By = Literal["rank", "energy"]


class Shrunk(NamedTuple):
    """What is left of one tensor's delta.

    Attributes:
        factor: What the delta is multiplied with, 0 to 1.
        directions: n; None where the tensor was left alone: it has less than two dimensions, or its delta is zero.
    """

    factor: float
    directions: int | None


_ALONE = Shrunk(1.0, None)


def choose(
    objective: Objective,
    columns: Mapping[str, Mix],
    *,
    seed: int,
    by: By = "rank",
    share: float = SHARE,
) -> Chosen:
    """Pull each tensor of the best column towards the base, as far as its singular values tell.

    Tensors of less than two dimensions stay the column's, and so do those that are one row as a matrix.

    Evaluations: one per column where there are several; none for the rest, which takes one decomposition (singular
    values alone, float32) for each tensor, one at a time.

    Args:
        objective: Scores the columns; holds the pool.
        columns: Fine-tuned models; of several, the one that scores best is used.
        seed: Not used; nothing here is random.
        by: ``rank`` takes as many directions as the effective rank says, ``energy`` as many as ``share`` needs.
        share: R, the share of the squared singular values, above 0 and up to 1, of ``energy``.

    Raises:
        SpecError: A share out of range, or one with ``rank``.
        PoolError: The pool has no base, or one that lies too far from the column for float32.
    """
    if by == "rank" and share != SHARE:
        raise SpecError(f"share: expected with by=energy only, found share={share:g} with by=rank; add by=energy")
    if not 0 < share <= 1:
        raise SpecError(f"share: expected a number above 0 and up to 1, found {share:g}")
    name, base, column = ends(objective, columns)
    pool = objective.pool
    rows = tensor_rows(column, pool)
    shrunk = {
        place.name: shrink(spectrum(delta), by, share) if (delta := _delta(pool, place, row)) is not None else _ALONE
        for place, row in zip(pool.mixed, rows, strict=True)
    }
    factor = np.array([each.factor for each in shrunk.values()])[:, None]
    # Where the factor is 1, the row is the column's own, bit for bit.
    mix = Mix(make_groups("tensor", pool.sizes), pool.columns, factor * rows + (1 - factor) * tensor_rows(base, pool))
    curve = [{"name": each, "value": found.factor, "directions": found.directions} for each, found in shrunk.items()]
    return Chosen(mix, curves={"factor": curve}, notes={"column": name, "by": by, **_notes(shrunk, pool.sizes)})


def spectrum(delta: Tensor) -> NDArray[np.float64]:
    """The singular values of a tensor ``[rows, ...]`` of two or more dimensions as a matrix, descending."""
    matrix = delta.flatten(1)
    # The values of both are the same; those of a wide one take three to four times as long.
    upright = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    values: NDArray[np.float64] = torch.linalg.svdvals(upright).double().numpy()
    return values


def shrink(values: NDArray[np.float64], by: By = "rank", share: float = SHARE) -> Shrunk:
    """The factor of one delta.

    Args:
        values: Its singular values, descending; at least one.
        by: As in `choose`.
        share: As in `choose`.
    """
    if not values[0] > 0:
        return _ALONE
    relative = values / values[0]  # squares neither overflow nor vanish
    energy = relative**2
    total = energy.sum()
    if by == "rank":
        p = relative[relative > 0] / relative.sum()
        found = math.ceil(math.exp(-float(p @ np.log(p))))
    else:
        found = 1 + int(np.searchsorted(np.cumsum(energy) / total, share))
    n = min(found, len(values))
    rest = float(energy[n:].sum() / total)  # 1 - P, without the difference of nearly equal numbers
    rho = float(energy[n]) if n < len(values) else 0.0
    low = rho + (1 - rho) * math.sqrt(rest)
    return Shrunk(math.sqrt((1 - low) ** 2 * (1 - rest) + low**2 * rest), n)


def _delta(pool: Pool, place: MixedTensor, row: NDArray[np.float64]) -> Tensor | None:
    """A mix of columns minus the base in one tensor, in float32; None where it has less than two dimensions.

    Raises:
        PoolError: It is not finite.
    """
    if len(place.shape) < 2:
        return None
    part = slice(place.start, place.stop)
    origin = pool.columns.index(str(pool.base))
    delta = torch.zeros(place.stop - place.start)
    for number in np.flatnonzero(row).tolist():
        if number != origin:  # whose own delta is zero
            delta.add_(pool.stack[number, part] - pool.stack[origin, part], alpha=float(row[number]))
    if not bool(torch.isfinite(delta).all()):
        raise PoolError(
            f"{place.name}: expected a difference from the base that float32 can hold, found one that is not finite; "
            "one of the two has diverged: give another --base, or leave the checkpoint out"
        )
    return delta.view(place.shape)


def _notes(shrunk: Mapping[str, Shrunk], sizes: Mapping[str, int]) -> dict[str, Any]:
    factors = [each.factor for each in shrunk.values()]
    return {
        "tensors": len(shrunk),
        "mean_factor": float(np.average(factors, weights=list(sizes.values()))),
        "left_alone": sum(each.directions is None for each in shrunk.values()),
    }
