"""Robust: a last step, for samples of another kind: from the chosen mix towards the middle of its pool.

Selection samples hardly order good mixes under shift. What is known of a shift without its labels tells a little
more, see `mixopt.stages.shift_evidence`: a step is taken where that gains, and held-out samples cannot tell it from no
step. How the rule was found is in studies/robust.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixopt import study as studies
from mixopt.comparison.running import checkpoint_mix
from mixopt.errors import ScoreError
from mixopt.scoring.objective import Objective
from mixopt.scoring.score import Score
from mixopt.scoring.tally import Tally
from mixopt.stages.confirm import ROUNDING
from mixopt.stages.explore import Explored
from mixopt.stages.shift_evidence import Evidence, Mean, held_gains
from mixopt.stages.start import Start
from mixopt.values.mix import Mix, combine

# Of the way, one after another as long as they gain.
SHARES = (0.125, 0.25, 0.5)
# Fewer held-out samples tell no cost.
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
        gain: By how much it is better by what is known of the shift, see `Evidence.gain`.
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
        evidence: What the gains are of.
    """

    mix: Mix
    points: tuple[Point, ...]
    taken: Point | None
    judging: int
    evidence: Evidence

    @property
    def tally(self) -> Tally:
        """What it took."""
        return self.evidence.objective.tally

    @property
    def notes(self) -> dict[str, Any]:
        """For the report, as plain JSON values."""
        found = {"towards": None, "share": 0.0} if self.taken is None else vars(self.taken)
        split = self.evidence.objective.evaluators[self.evidence.split].split
        evidence = {"evidence": split.name, "samples": len(split), "source": split.source, "data": split.fingerprint}
        tried = [vars(point) for point in self.points]
        return {"robust": {**found, **evidence, "judging": self.judging, "tried": tried}}


def step_under_shift(
    objective: Objective, evidence: Evidence, start: Start, explored: Explored, judged: Mix, chosen: Mix
) -> Robust:
    """The last step of a search.

    Args:
        objective: Says which samples are held out.
        evidence: What is known of the shift; its tally says what the step took.
        start: Whose uniform soup is one end.
        explored: Whose trials have a middle.
        judged: The mix that held-out samples judge steps from: the chosen one, before they taught it as well.
        chosen: The mix to step from.
    """
    judging = objective.held_out
    if judging < LEAST:
        return Robust(chosen, (), None, judging, evidence)
    both = evidence.objective
    try:
        reference = both.score(judged)
    except ScoreError:  # finite on the samples that chose it, and not on shifted ones
        return Robust(chosen, (), None, judging, evidence)
    points: list[Point] = []
    ends = dict(_ends(objective, start, explored, judged, reference))
    for towards, end in ends.items():
        before = 0.0
        for share in SHARES:
            try:
                score = both.score(combine([judged, end], [1 - share, share]))
            except ScoreError:  # no step leads there
                break
            loses = Mean.of(-held_gains(objective, objective.tuning, score, reference, objective.metric))
            gain = evidence.gain(score, reference)
            points.append(Point(towards, share, loses.value, loses.error, gain.value, gain.error))
            if not points[-1].is_free or points[-1].gain < before:
                break
            before = points[-1].gain
    helping = [point for point in points if point.helps]
    if not helping:
        return Robust(chosen, tuple(points), None, judging, evidence)
    best = max(helping, key=lambda point: point.gain)
    mix = combine([chosen, ends[best.towards]], [1 - best.share, best.share])
    return Robust(mix, tuple(points), best, judging, evidence)


def describe_robust(found: Robust, metric: str) -> str:
    """What became of the last step, in words."""
    if found.judging < LEAST:
        return f"no step for shifts (--robust): {found.judging:,} samples held back are too few to tell its cost"
    if not found.points:
        return "no step for shifts (--robust): no mix on the way to another has finite losses on shifted samples"
    near = found.taken or max(found.points, key=lambda point: point.gain / max(point.gain_error, 1e-12))
    costs = f"{metric} on the {found.judging:,} samples held back {-near.cost:+.4f} ± {near.cost_error:.4f}"
    gains = f"{found.evidence.words} {near.gain:+.4f} ± {near.gain_error:.4f}"
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
    mixes = [
        space.to_mix(np.array([trial.params[label] for label in space.labels]))
        for study, space in explored.rounds
        for trial in studies.complete_trials(study)
        if not trial.user_attrs.get("estimated")
    ]
    whole.expect(mixes)
    for mix in mixes:
        gain = Mean.of(held_gains(objective, objective.tuning, whole.score(mix), reference, objective.signal))
        if gain.value >= -gain.error:
            level.append(mix)
    return combine(level, [1 / len(level)] * len(level)) if len(level) > 1 else None
