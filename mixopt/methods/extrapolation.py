"""Extrapolation: beyond the last checkpoint, on along the way that training went.

ExPO, Zheng et al., "Model Extrapolation Expedites Alignment", ACL 2025, arXiv 2404.16792:
``fused = last + alpha * (last - origin)``, so that the last checkpoint's coefficient is ``1 + alpha`` and the origin's
``-alpha``. There the origin is the model that training began from, the base here (``origin=base``), and alpha is chosen
on held-out data, from 0.1 to 0.5 for models that were trained to the end and beyond for those that were not. With the
first checkpoint that was kept as the origin, the line is that of the run itself, without its first steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from mixopt.errors import SpecError, names
from mixopt.methods import TENTHS, Chosen, base_mix, sweep_choice
from mixopt.methods.trajectory import in_order
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix, combine


def choose(
    objective: Objective,
    columns: Mapping[str, Mix],
    *,
    seed: int,
    alphas: tuple[float, ...] = TENTHS,
    origin: Literal["first", "base"] = "first",
) -> Chosen:
    """Go on from the last checkpoint, and stop where the validation split scores best; of equals, at the first.

    An alpha whose score is not finite is not eligible, and is told in the notes.

    Evaluations: one per alpha.

    Args:
        objective: Scores the mixes.
        columns: Checkpoints of one run, two or more; the last number in a name is its place, as in ``step_1000``. With
            ``origin`` base, one alone will do, whatever its name: a soup, say.
        seed: Not used; nothing here is random.
        alphas: How far to go, in multiples of the way from the origin to the last checkpoint; 0 is that checkpoint.
        origin: ``first``, the first of the checkpoints, or ``base``, the pretrained one.

    Raises:
        SpecError: No alpha, or one that is negative or not finite; names that tell no order.
        PoolError: The pool has no base, and ``origin`` is it.
        ScoreError: No alpha gives a finite score.
    """
    if not alphas or not all(0 <= alpha < math.inf for alpha in alphas):
        raise SpecError(f"alphas: expected numbers of 0 or more, found {names(map(str, alphas)) or 'none'}")
    alone = origin == "base" and len(columns) == 1
    ordered = list(columns) if alone else in_order(columns)
    start = base_mix(objective, columns) if origin == "base" else columns[ordered[0]]
    ends = [columns[ordered[-1]], start]
    along = {alpha: combine(ends, [1 + alpha, -alpha]) for alpha in sorted(set(alphas))}
    notes = {"from": origin if origin == "base" else ordered[0], "through": ordered[-1]}
    return sweep_choice(objective, along, "alpha", notes)
