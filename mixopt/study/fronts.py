"""Pareto fronts: the trials that no other beats on one split that steers without losing on another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from mixopt.reporting.schema import Front, FrontObjective, FrontPoint
from mixopt.values.metrics import Metric


def undominated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points ``[n, m]`` lie on the front, higher being better: no other is as good in all and better in one."""
    found = np.ones(len(values), dtype=bool)
    for number, point in enumerate(values):
        found[number] = not np.any(np.all(values >= point, axis=1) & np.any(values > point, axis=1))
    return found


def on_front(trials: Mapping[int, FrozenTrial], sign: int) -> dict[int, bool]:
    """Number of every complete trial that several splits steered, to whether it lies on their front.

    Args:
        trials: Number to trial.
        sign: 1 where higher signals are better, else -1.
    """
    signals = _signals(trials)
    return dict(zip(signals, undominated(sign * np.array(list(signals.values()))).tolist(), strict=True))


def front(trials: Mapping[int, FrozenTrial], weights: Mapping[str, float], signal: Metric, picked: int) -> Front:
    """What every complete trial scored on each split that steers.

    Args:
        trials: Number to trial.
        weights: What each split weighs, the validation split's first.
        signal: What was measured on each.
        picked: The number of the trial that was chosen.
    """
    front = on_front(trials, signal.sign)
    return Front(
        objectives=tuple(FrontObjective(name=name, weight=weight) for name, weight in weights.items()),
        signal=signal.name,
        direction=signal.direction,
        points=tuple(
            FrontPoint(trial=number, values=tuple(values), on_front=front[number])
            for number, values in _signals(trials).items()
        ),
        picked=picked,
    )


def _signals(trials: Mapping[int, FrozenTrial]) -> dict[int, list[float]]:
    return {
        number: list(trial.user_attrs["signals"].values())
        for number, trial in trials.items()
        if trial.state == TrialState.COMPLETE and "signals" in trial.user_attrs
    }
