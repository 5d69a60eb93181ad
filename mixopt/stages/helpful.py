"""Which ingredients help, by one gradient at the uniform soup."""

from __future__ import annotations

import numpy as np

from mixopt.scoring.objective import Objective
from mixopt.values.groups import make_groups
from mixopt.values.mix import constant


def helpful(objective: Objective) -> tuple[str, ...]:
    """The ingredients that lower the loss of the uniform soup when it moves towards them, the most helpful first.

    One pass for the gradient of the loss with respect to all coefficients, however many. Two at least.
    """
    pool = objective.pool
    row = [(name in pool.ingredients) / len(pool.ingredients) for name in pool.columns]
    soup = constant(make_groups("whole", pool.sizes), pool.columns, row)
    slopes = objective.gradient(soup, np.arange(objective.samples)).coefficients[0]
    # Moving towards one moves away from all: its slope counts against that of the soup.
    steep = {name: slopes[pool.columns.index(name)] - float(slopes @ np.array(row)) for name in pool.ingredients}
    ranked = sorted(steep, key=lambda name: steep[name])
    return tuple(ranked[: max(2, sum(slope < 0 for slope in steep.values()))])
