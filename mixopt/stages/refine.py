"""Refine: what the second round of trials moves, the layer groups that matter most around the best mix so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mixopt.scoring.objective import Objective
from mixopt.spaces.linear import Layers
from mixopt.stages.plan import RADII, RefinePlan
from mixopt.values.mix import Mix, rows_on


@dataclass(frozen=True)
class Refinement:
    """What the second round searches.

    Attributes:
        space: Around the first round's best mix.
        around: The number of its trial.
        effects: Layer group to how much it matters there.
    """

    space: Layers
    around: int
    effects: Mapping[str, float]


def refine(plan: RefinePlan, objective: Objective, mix: Mix, trial: int) -> Refinement:
    """Find what to move around a mix, by one gradient of the loss on the samples that tune.

    A layer group's effect is the norm of its row's slopes over the ingredients, less their mean: rows sum to 1, so
    that only differences between slopes can be followed. The ingredients that move are those whose slopes are the
    largest in the groups that do, so many that the dimensions stay few.

    Args:
        plan: How many groups and ingredients.
        objective: Its tally counts the gradient as a pass.
        mix: The best so far.
        trial: Its number.

    Raises:
        MixoptError: There is no gradient, or it is not finite.
    """
    pool = objective.pool
    groups = plan.groups.refine(mix.groups)
    centre = Mix(groups, mix.columns, rows_on(mix, groups))
    gradient = objective.gradient(centre, np.arange(objective.tuning)).coefficients
    slopes = gradient[:, [mix.columns.index(name) for name in pool.ingredients]]
    slopes -= slopes.mean(axis=1, keepdims=True)
    effects = np.linalg.norm(slopes, axis=1)
    chosen = sorted(np.argsort(-effects, kind="stable")[: plan.count])
    ranked = np.argsort(-np.linalg.norm(slopes[chosen], axis=0), kind="stable")
    active = [pool.ingredients[number] for number in sorted(ranked[: plan.ingredients])]
    space = Layers(centre, active, RADII["affine"], [groups.names[number] for number in chosen])
    return Refinement(space, trial, dict(zip(groups.names, effects.tolist(), strict=True)))
