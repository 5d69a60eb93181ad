"""WiSE-FT: between the base and a fine-tuned model. Wortsman et al., CVPR 2022, arXiv 2109.01903.

``fused = (1 - alpha) * base + alpha * column``, all weights alike, the classification head included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mixopt.errors import SpecError
from mixopt.methods import TENTHS, Chosen, Points, base_mix, sweep_choice, swept
from mixopt.methods.individual import best_column
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix, combine


def choose(
    objective: Objective,
    columns: Mapping[str, Mix],
    *,
    seed: int,
    alphas: tuple[float, ...] = TENTHS,
    alpha: float | None = None,
    points: Points = "all",
) -> Chosen:
    """Go from the base to the best column, and stop where the validation split scores best; of equals, at the first.

    Evaluations: one per column where there are several, then one per alpha, or fewer of them with ``points`` few; with
    ``alpha`` given, the former alone.

    Args:
        objective: Scores the mixes.
        columns: Fine-tuned models; of several, the one that scores best is used.
        seed: Not used; nothing here is random.
        alphas: Weights of the column to choose from, from 0 (the base) to 1 (the column itself).
        alpha: The weight, without a search; the paper advises 0.5 where there is no data to choose by.
        points: ``all`` scores every alpha; ``few`` both ends, the middle, and from then on what a response surface
            fitted to them says is the best, with its neighbours. An alpha that was not scored is on no curve.

    Raises:
        SpecError: A weight outside 0 to 1; none; both ``alpha`` and ``alphas`` or ``points``; or ``few`` where there
            are no logits, as a user's own function scores.
        PoolError: The pool has no base.
        ScoreError: No alpha gives a finite score.
    """
    if alpha is not None and alphas != TENTHS:
        given = f"found alpha={alpha:g} and alphas={'/'.join(f'{value:g}' for value in alphas)}"
        raise SpecError(f"wise_ft: expected alpha or alphas, {given}; give only one of them")
    if alpha is not None and points == "few":
        raise SpecError(
            f"wise_ft: expected alpha or points, found alpha={alpha:g} and points=few; give only one of them"
        )
    weights = swept("alphas", alphas) if alpha is None else swept("alpha", (alpha,))
    name, base, column = ends(objective, columns)
    along = {weight: combine([base, column], [1 - weight, weight]) for weight in weights}
    if alpha is not None:
        return Chosen(along[alpha], notes={"alpha": alpha, "column": name})
    choice = sweep_choice(objective, along, "alpha", {"column": name}, points)
    return replace(choice, sweep={point["x"]: along[point["x"]] for point in choice.curves["alpha"]})


def ends(objective: Objective, columns: Mapping[str, Mix]) -> tuple[str, Mix, Mix]:
    """The name of the best column, the base alone, and that column; both mixes over the same layer groups.

    Evaluations: one per column where there are several.

    Raises:
        PoolError: The pool has no base.
    """
    base_mix(objective, columns)  # a missing base is told before anything is scored
    name = best_column(objective, columns)
    return name, base_mix(objective, {name: columns[name]}), columns[name]
