"""Mixes half-way between two checkpoints: who shares a basin with whom.

Where two models lie in one basin of the loss, their mean is at least as good as the mean of their scores (Frankle et
al., "Linear mode connectivity and the lottery ticket hypothesis", ICML 2020, arXiv 1912.05671, whose instability is the
highest rise on the way; half-way stands for the way here).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mixopt.comparison.running import checkpoint_mix
from mixopt.diagnosis.alone import Spent
from mixopt.errors import ScoreError
from mixopt.listener import Listener
from mixopt.reporting.diagnosis import Midpoints
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix, combine
from mixopt.values.samples import VALIDATION

# Samples that each mix is scored on: at most, and at least.
MOST = 500
LEAST = 100


def affordable(checkpoints: int, samples: int, images: int) -> tuple[int, int]:
    """How many checkpoints to look between, on how many samples each.

    Args:
        checkpoints: In the pool.
        samples: In the validation split.
        images: That may be spent.

    Returns:
        Fewer than two checkpoints where not even one pair can be afforded.
    """
    least = min(LEAST, samples)
    count = checkpoints
    while count > 1 and count * (count - 1) // 2 * least > images:
        count -= 1
    pairs = max(1, count * (count - 1) // 2)
    return count, min(samples, MOST, images // pairs)


def midpoints_within(
    objective: Objective,
    scores: Mapping[str, Mapping[str, float]],
    images: float,
    spent: Spent,
    listener: Listener,
) -> Midpoints | None:
    """Half-way between the checkpoints, or the best so many of them."""
    sign = objective.metric.sign
    finite = [name for name in objective.pool.ingredients if VALIDATION in scores[name]]
    samples = len(objective.evaluators[VALIDATION].split)
    evaluator = objective.evaluators[VALIDATION]
    pairs = len(finite) * (len(finite) - 1) // 2
    allowed = pairs * samples if np.isinf(images) else int(images)
    count, each = affordable(len(finite), samples, allowed)
    if not evaluator.split.arrays:  # a user's own function scores whole mixes alone
        count, each = (len(finite) if pairs * samples <= allowed else 0), samples
    if count < 2:
        spent.missing["midpoints"] = (
            "half-way mixes need two checkpoints whose losses are finite"
            if pairs < 1
            else "half-way mixes take more images than a page may (--page full of a search or a comparison scores them)"
        )
        return None
    best = sorted(finite, key=lambda name: -sign * scores[name][VALIDATION])[:count]
    names = [name for name in finite if name in best]
    if count < len(finite):
        spent.missing["midpoints"] = (
            f"half-way mixes are of the {count} best of {len(finite)} checkpoints (--page full scores all)"
        )
    found = midpoints(objective, names, each, listener)
    spent.images += len(names) * (len(names) - 1) // 2 * each
    return found


def midpoints(objective: Objective, names: Sequence[str], samples: int, listener: Listener) -> Midpoints:
    """Score the mix half-way between every two checkpoints on the validation split's first samples.

    Args:
        objective: Scores; nothing is tallied.
        names: The checkpoints, two or more.
        samples: How many of the split's samples.
        listener: Told about progress.
    """
    ends = {name: checkpoint_mix(objective, name) for name in names}
    objective.expect(ends.values(), VALIDATION, samples)
    alone = {name: _value(objective, mix, samples) for name, mix in ends.items()}
    gains = np.full((2, len(names), len(names)), np.nan)
    pairs = list(combinations(range(len(names)), 2))
    half_way = [combine([ends[names[first]], ends[names[second]]], [0.5, 0.5]) for first, second in pairs]
    objective.expect(half_way, VALIDATION, samples)
    for done, (first, second) in enumerate(pairs):
        listener.progress("half-way between checkpoints", done, len(pairs))
        one, other = names[first], names[second]
        between = _value(objective, half_way[done], samples)
        found = between - (alone[one] + alone[other]) / 2
        gains[:, first, second] = gains[:, second, first] = found
    listener.progress("half-way between checkpoints", len(pairs), len(pairs))
    is_own = bool(np.all(np.isnan(gains[1])))
    return Midpoints(
        names=tuple(names),
        samples=samples,
        gains=_table(gains[0]),
        loss_gains=() if is_own else _table(gains[1]),
    )


def _value(objective: Objective, mix: Mix, samples: int) -> NDArray[np.float64]:
    """Accuracy, and minus the loss in nats; of a user's own function its number, and nothing. ``[2]``."""
    try:
        found = objective.outcomes(mix, VALIDATION, samples)
    except ScoreError:
        return np.full(2, np.nan)
    labels = objective.evaluators[VALIDATION].split.labels
    if found.is_own:
        return np.array([-float(found.losses.mean()), np.nan])
    right = found.predicted == labels[: len(found)]
    return np.array([float(right.mean()), -float(found.losses.mean())])


def _table(values: NDArray[np.float64]) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(round(each, 6) if np.isfinite(each) else None for each in row) for row in values.tolist())
