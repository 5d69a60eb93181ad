"""Robust: a last step, for samples of another kind: from the chosen mix towards the middle of its pool.

Selection samples hardly order good mixes under shift. The same images under synthetic shifts tell a little more; so a
step is taken where those and samples that chose nothing gain by it together, and the latter cannot tell it from no
step. What this evidence is worth, and how the rule was found, is in studies/robust.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mixopt import study as studies
from mixopt.comparison.running import checkpoint_mix
from mixopt.errors import ScoreError
from mixopt.scoring.objective import Objective
from mixopt.scoring.score import Score
from mixopt.scoring.tally import Tally
from mixopt.stages.confirm import ROUNDING
from mixopt.stages.explore import Explored
from mixopt.stages.start import Start
from mixopt.values.metrics import Metric
from mixopt.values.mix import Mix, combine
from mixopt.values.samples import SYNTHETIC, VALIDATION

Floats = NDArray[np.float64]

# Of the way, one after another as long as they gain.
SHARES = (0.125, 0.25, 0.5)
# Fewer samples that chose nothing tell no cost.
LEAST = 20
UNIFORM = "uniform"
MIDDLE = "middle"


@dataclass(frozen=True)
class Point:
    """A mix on the way from the chosen one to another.

    Attributes:
        towards: ``uniform``, the base's name, or ``middle``: the mean of the trials that held-out samples cannot tell
            from the chosen mix.
        share: How far, 0 to 1.
        cost: By how much it is worse on the held-out samples, in units of the metric; negative where it is better.
        cost_error: The standard error of that.
        gain: By how much it is better on held-out and shifted samples, the sum of both in units of the signal.
        gain_error: The standard error of that.
    """

    towards: str
    share: float
    cost: float
    cost_error: float
    gain: float
    gain_error: float

    @property
    def is_free(self) -> bool:
        """Whether held-out samples cannot tell it from no step, by one standard error."""
        return self.cost <= self.cost_error * (1 + ROUNDING)

    @property
    def helps(self) -> bool:
        """Whether it gains by more than a standard error, at no cost that can be told."""
        return self.is_free and self.gain > self.gain_error


@dataclass(frozen=True, eq=False)
class Robust:
    """What became of the last step.

    Attributes:
        mix: With the step, where one was taken.
        points: Every mix that was tried.
        taken: The one of them; None where there is no step.
        judging: How many held-out samples told the cost.
        tally: What it took.
    """

    mix: Mix
    points: tuple[Point, ...]
    taken: Point | None
    judging: int
    tally: Tally = field(default_factory=Tally)

    @property
    def notes(self) -> dict[str, Any]:
        """For the report, as plain JSON values."""
        found = {"towards": None, "share": 0.0} if self.taken is None else vars(self.taken)
        return {"robust": {**found, "judging": self.judging, "tried": [vars(point) for point in self.points]}}


def step_under_shift(objective: Objective, start: Start, explored: Explored, judged: Mix, chosen: Mix) -> Robust:
    """The last step of a search.

    Args:
        objective: With a split ``synthetic`` of the selection images under synthetic shifts, which weighs nothing.
        start: Whose uniform soup is one end.
        explored: Whose trials have a middle.
        judged: The mix that held-out samples judge steps from: the chosen one, before they taught it as well.
        chosen: The mix to step from.
    """
    judging = objective.held_out
    if judging < LEAST:
        return Robust(chosen, (), None, judging)
    both = objective.whole().weighing({SYNTHETIC: 0.5})
    try:
        reference = both.score(judged)
    except ScoreError:  # finite on the samples that chose it, and not on shifted ones
        return Robust(chosen, (), None, judging, both.tally)
    points: list[Point] = []
    ends = dict(_ends(objective, start, explored, judged, reference))
    for towards, end in ends.items():
        before = 0.0
        for share in SHARES:
            try:
                score = both.score(combine([judged, end], [1 - share, share]))
            except ScoreError:  # no step leads there
                break
            points.append(_point(objective, towards, share, score, reference))
            if not points[-1].is_free or points[-1].gain < before:
                break
            before = points[-1].gain
    helping = [point for point in points if point.helps]
    if not helping:
        return Robust(chosen, tuple(points), None, judging, both.tally)
    best = max(helping, key=lambda point: point.gain)
    mix = combine([chosen, ends[best.towards]], [1 - best.share, best.share])
    return Robust(mix, tuple(points), best, judging, both.tally)


def describe_robust(found: Robust, metric: str) -> str:
    """What became of the last step, in words."""
    if found.judging < LEAST:
        return f"no step for shifts (--robust): {found.judging:,} samples held back are too few to tell its cost"
    if not found.points:
        return "no step for shifts (--robust): no mix on the way to another has finite losses on shifted images"
    near = found.taken or max(found.points, key=lambda point: point.gain / max(point.gain_error, 1e-12))
    costs = f"{metric} on the {found.judging:,} samples held back {-near.cost:+.4f} ± {near.cost_error:.4f}"
    gains = f"with the shifted images {near.gain:+.4f} ± {near.gain_error:.4f}"
    if found.taken is None:
        return (
            f"no step for shifts is supported (--robust; the likeliest, {near.share:.0%} of the way to {near.towards}: "
            f"{costs}, {gains})"
        )
    return f"a step for shifts (--robust): {near.share:.0%} of the way to {near.towards}; {costs}, {gains}"


def _ends(
    objective: Objective, start: Start, explored: Explored, judged: Mix, reference: Score
) -> Iterator[tuple[str, Mix]]:
    """Where steps lead, but not to where they begin."""
    ends: dict[str, Mix | None] = {UNIFORM: start.baselines[UNIFORM].mix}
    if objective.pool.base is not None:
        ends[objective.pool.base] = checkpoint_mix(objective, objective.pool.base)
    ends[MIDDLE] = _middle(objective, explored, reference)
    for name, end in ends.items():
        if end is not None and combine([judged, end], [1, 0]) != combine([end, judged], [1, 0]):
            yield name, end


def _middle(objective: Objective, explored: Explored, reference: Score) -> Mix | None:
    """The mean of the trials that held-out samples cannot tell from the chosen mix, by one standard error.

    Of those that were scored on all samples; None where they are fewer than two.
    """
    whole, level = objective.whole(), []
    for study, space in explored.rounds:
        for trial in studies.complete_trials(study):
            if trial.user_attrs.get("estimated"):
                continue
            mix = space.to_mix(np.array([trial.params[label] for label in space.labels]))
            gain, error = _mean(_gains(objective, whole.score(mix), reference))
            if gain >= -error:
                level.append(mix)
    return combine(level, [1 / len(level)] * len(level)) if len(level) > 1 else None


def _point(objective: Objective, towards: str, share: float, ours: Score, theirs: Score) -> Point:
    cost, cost_error = _mean(-_gains(objective, ours, theirs, objective.metric))
    held, held_error = _mean(_gains(objective, ours, theirs))
    labels = objective.evaluators[SYNTHETIC].split.labels
    more = objective.signal.gains(labels, ours.beside[SYNTHETIC].outcomes, theirs.beside[SYNTHETIC].outcomes)
    shifted, shifted_error = _mean(more)
    return Point(towards, share, cost, cost_error, held + shifted, math.hypot(held_error, shifted_error))


def _gains(objective: Objective, ours: Score, theirs: Score, metric: Metric | None = None) -> Floats:
    """What each held-out sample gains, ``[n]``, in units of the signal or of a metric."""
    held = [score.outcomes.rest(objective.tuning) for score in (ours, theirs)]
    labels = objective.evaluators[VALIDATION].split.labels[objective.tuning :]
    return (metric or objective.signal).gains(labels, *held)


def _mean(values: Floats) -> tuple[float, float]:
    """And its standard error."""
    return float(values.mean()), float(stats.sem(values))
