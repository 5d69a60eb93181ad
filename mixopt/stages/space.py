"""The space of a new study, around its start."""

from __future__ import annotations

import numpy as np

from mixopt.comparison.running import checkpoint_mix, ingredient_mixes
from mixopt.methods.individual import ranking
from mixopt.scoring.objective import Objective
from mixopt.spaces import Space
from mixopt.spaces.composed import Composed
from mixopt.spaces.linear import Affine, Depth, Residual, Shared
from mixopt.spaces.simplex import Simplex
from mixopt.stages.plan import SearchPlan
from mixopt.stages.start import Start
from mixopt.values.mix import Mix, one_hot, rows_on


def make_space(plan: SearchPlan, start: Start, objective: Objective) -> Space:
    """The sampler's box, whose centre is the start.

    Raises:
        MixoptError: A start that does not fit the pool or the space.
    """
    if plan.space.kind == "residual":
        return _towards_mixes(plan, start, objective)
    if plan.space.kind == "composed":
        names = tuple(start.mixes)
        centre = one_hot(plan.space.groups, names, start.name)
        return Composed(Simplex(centre, names, plan.space.radius_of("simplex")), start.mixes)
    return _by_ingredient(plan, start, objective)


def _towards_mixes(plan: SearchPlan, start: Start, objective: Objective) -> Residual:
    """From the start towards the other baselines and the base, or towards the mixes of ``--from``."""
    pool, others = objective.pool, dict(start.mixes)
    if not plan.sources and pool.base is not None:
        others[pool.base] = checkpoint_mix(objective, pool.base)
    return Residual(start.mix, others, plan.space.radius_of("residual"))


def _by_ingredient(plan: SearchPlan, start: Start, objective: Objective) -> Simplex | Affine:
    """The rows of the ingredients that help, or rank first; those that the start uses before the others."""
    pool = objective.pool
    preferred = start.preferred
    if not preferred:
        ranked = [name for name, _ in ranking(objective.counting(), ingredient_mixes(objective))]
        used = set(start.mix.support())
        preferred = tuple(sorted(ranked, key=lambda name: name not in used))
    chosen = set(preferred[: plan.space.count])
    active = [name for name in pool.columns if name in chosen]
    groups = plan.space.groups.refine(start.mix.groups)
    centre = Mix(groups, pool.columns, rows_on(start.mix, groups))
    kind = str(plan.space.kind)
    if kind == "by start":  # a start that the gradient found lies off the simplex
        kind = "affine" if np.any(centre.coefficients < 0) else "simplex"
    kinds: dict[str, type[Simplex | Affine]] = {"affine": Affine, "shared": Shared, "depth": Depth, "simplex": Simplex}
    return kinds[kind](centre, active, plan.space.radius_of(kind))
