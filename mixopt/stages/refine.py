"""The second stage of a search: the rows of the layer groups that matter most, around the best mix so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixopt.scoring.objective import Objective
from mixopt.spaces.linear import Layers
from mixopt.spec import StudySpec
from mixopt.stages.plan import DIMENSIONS, RADII, refined_groups
from mixopt.values.mix import Mix, rows_on


@dataclass(frozen=True)
class Refinement:
    """What the second stage searches.

    Attributes:
        space: Around the first stage's best mix.
        effects: Layer group to how much it matters there.
    """

    space: Layers
    effects: dict[str, float]

    def facts(self, trial: int) -> dict[str, Any]:
        """What report.json says, given the number of the trial around which it searches."""
        return {
            "kind": self.space.kind,
            "dims": self.space.dims,
            "labels": list(self.space.labels),
            "around": trial,
            "groups": list(self.space.moving),
            "effects": self.effects,
        }


def refine(spec: StudySpec, objective: Objective, mix: Mix, count: int) -> Refinement:
    """Find what to move around a mix, by one gradient of the loss on the steering samples.

    A layer group's effect is the norm of its row's slopes over the ingredients, less their mean: rows sum to 1, so
    that only differences between slopes can be followed. The ingredients that move are those whose slopes are the
    largest in the groups that do, so many that the dimensions stay few.

    Args:
        spec: Says which layer groups there are.
        objective: Its tally counts the gradient as a pass.
        mix: The best so far.
        count: How many layer groups to move.

    Raises:
        MixoptError: There is no gradient, or it is not finite.
    """
    pool = objective.pool
    groups = refined_groups(spec, pool).refine(mix.groups)
    centre = Mix(groups, mix.columns, rows_on(mix, groups))
    gradient = objective.gradient(centre, np.arange(objective.steering)).coefficients
    slopes = gradient[:, [mix.columns.index(name) for name in pool.ingredients]]
    slopes -= slopes.mean(axis=1, keepdims=True)
    effects = np.linalg.norm(slopes, axis=1)
    chosen = sorted(np.argsort(-effects, kind="stable")[:count])
    ranked = np.argsort(-np.linalg.norm(slopes[chosen], axis=0), kind="stable")
    most = spec.ingredient_count if isinstance(spec.ingredient_count, int) else max(2, DIMENSIONS // count + 1)
    active = [pool.ingredients[number] for number in sorted(ranked[:most])]
    space = Layers(centre, active, RADII["affine"], [groups.names[number] for number in chosen])
    return Refinement(space, dict(zip(groups.names, effects.tolist(), strict=True)))
