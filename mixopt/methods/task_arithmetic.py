"""Task arithmetic: the base plus a multiple of all task vectors. Ilharco et al., ICLR 2023, arXiv 2212.04089.

``fused = base + lambda * sum(column - base)``: N columns get lambda each, and the base ``1 - N * lambda``, which is
negative where lambda is above 1/N. At 1/N it is the uniform soup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from mixopt.methods import Chosen, base_mix, sweep_choice, swept
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix, combine


def choose(
    objective: Objective,
    columns: Mapping[str, Mix],
    *,
    seed: int,
    lambdas: tuple[float, ...] = (),
) -> Chosen:
    """Choose lambda on the validation split; of equals, the smallest.

    A lambda whose score is not finite is not eligible, and is told in the notes.

    Evaluations: one per lambda.

    Args:
        objective: Scores the mixes.
        columns: Fine-tuned models; all are added.
        seed: Not used; nothing here is random.
        lambdas: Multiples to choose from, from 0 (the base) to 1; where none is given, 0.1/N, 0.2/N .. 2/N for N
            columns, those not above 1.

    Raises:
        SpecError: A lambda outside 0 to 1.
        PoolError: The pool has no base.
        ScoreError: No lambda gives a finite score.
    """
    count = len(columns)
    grid = tuple(value for tenth in range(1, 21) if (value := tenth / (10 * count)) <= 1)
    mixes = [base_mix(objective, columns), *columns.values()]
    along = {
        value: combine(mixes, [_rest(value, count), *[value] * count]) for value in swept("lambdas", lambdas or grid)
    }
    return sweep_choice(objective, along, "lambda", {})


def _rest(value: float, count: int) -> float:
    """The base's coefficient; exactly 0 where the columns' add up to 1, which 49 * (1/49) in floats does not."""
    total = value * count
    return 0.0 if math.isclose(total, 1.0, rel_tol=1e-12) else 1 - total
