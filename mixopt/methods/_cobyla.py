"""COBYLA in a box, with a fixed number of function calls; the optimizer that ManifoldMix came with.

Powell, "A direct search optimization method that models the objective and constraint functions by linear
interpolation", 1994. The scaling, the reflection at the bounds and the restarts are those of nevergrad, through which
the author of ManifoldMix calls it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Vector = NDArray[np.float64]

# The box is six steps wide, and the first step is one.
STEPS_ACROSS = 6.0
FIRST_STEP = 1.0
# Nevergrad asks for 0; this is what scipy's COBYLA makes of that, with a warning.
LAST_STEP = 1e-6


class _BudgetSpentError(Exception):
    """Raised out of the function to stop scipy at the very call."""


class _Counted:
    """The function in COBYLA's coordinates: each distinct point is asked for once, and only so many of them."""

    def __init__(
        self, function: Callable[[Vector], float], start: Vector, bounds: tuple[float, float], budget: int
    ) -> None:
        self._function = function
        self._start = start
        self._bounds = bounds
        self._budget = budget
        self._known: dict[bytes, float] = {}
        self.best = (np.zeros_like(start), start, np.inf)

    @property
    def calls(self) -> int:
        """The distinct points so far."""
        return len(self._known)

    def ask(self, steps: Vector) -> float:
        """The value at a point given in steps from the start."""
        lower, upper = self._bounds
        point = reflect(self._start + steps * ((upper - lower) / STEPS_ACROSS), lower, upper)
        key = point.tobytes()
        if key not in self._known:
            if self.calls >= self._budget:
                raise _BudgetSpentError
            value = float(self._function(point))
            self._known[key] = value
            if value < self.best[2] or self.calls == 1:
                self.best = (steps.copy(), point, value)
        return self._known[key]


def minimize_in_box(
    function: Callable[[Vector], float], start: Vector, bounds: tuple[float, float], budget: int
) -> Vector:
    """The best point that COBYLA asks for in a box; of equals the first.

    Where it converges early it starts again from the best point, until the budget is spent or nothing new is asked
    for. The first point is ``start``.

    Args:
        function: What to minimise, of a point ``[n]`` within the bounds; never called twice for the same point.
        start: ``[n]``, within the bounds.
        bounds: The lower and the upper bound of every coordinate.
        budget: How often the function may be called, 1 or more.
    """
    counted = _Counted(function, start, bounds, budget)
    # scipy warns of less than n + 2; the budget is kept by the exception alone.
    calls = budget + len(start) + 2
    before = -1
    try:
        while before < counted.calls < budget:
            before = counted.calls
            minimize(
                counted.ask,
                counted.best[0],
                method="COBYLA",
                tol=LAST_STEP,
                options={"rhobeg": FIRST_STEP, "maxiter": calls},
            )
    except _BudgetSpentError:
        pass
    return counted.best[1]


def reflect(point: Vector, lower: float, upper: float) -> Vector:
    """Coordinates outside the bounds mirrored at them until they are inside; the others stay bit for bit."""
    width = upper - lower
    along = np.mod(point - lower, 2 * width)
    folded = np.clip(lower + np.minimum(along, 2 * width - along), lower, upper)
    return np.where((point >= lower) & (point <= upper), point, folded)
