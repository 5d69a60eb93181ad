"""The last choice of a search on a surface: every sample steers, and judges what the others chose."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt import study as studies
from mixopt.scoring.objective import Objective
from mixopt.scoring.outcomes import Outcomes
from mixopt.stages.confirm import Choice
from mixopt.stages.explore import Explored
from mixopt.stages.plan import SearchPlan
from mixopt.stages.shift_evidence import Mean
from mixopt.stages.start import Start
from mixopt.study import Known, Procedure
from mixopt.values.metrics import Metric
from mixopt.values.mix import Mix, rows_on
from mixopt.values.samples import VALIDATION


def judges_from(start: Start, objective: Objective) -> int:
    """The first validation sample that judges: not those that taught a learned start what they would judge.

    Further along the way that they taught, they gain again, and others do not. They taught the loss, and with it every
    metric that is a mean over samples; a metric that is none, such as the recall of the worst class, they may judge:
    measured in studies/surface.
    """
    return objective.tuning if start.row is not None and objective.metric.exact is None else 0


# Of how logits change, what a surface should explain: one that explains less orders mixes badly, see studies/surface.
EXPLAINS = 0.75


# So often what was chosen may turn out to be another thing than predicted, and be chosen again.
CHECKS = 3


@dataclass(frozen=True)
class CrossFitted:
    """What cross-fitting chose.

    Attributes:
        choice: The mix, and why.
        how: The procedure, in words.
        expected: What the mix is expected to score by the driving metric: by samples that did not choose it; NaN where
            none judges.
        judging: How many samples judged.
        explained: How well the surface predicts the trials: of how their logits differ from the start's, the share that
            it predicts of each from the others.
        cost: What the step would cost by the driving metric, on samples that did not choose it; None where it costs no
            more than its standard error, and where there is no step.
    """

    choice: Choice
    how: str
    expected: float
    judging: int
    explained: float
    cost: Mean | None = None

    @property
    def notes(self) -> dict[str, Any]:
        """For the report, as plain JSON values."""
        expected = {} if math.isnan(self.expected) else {"expected": self.expected}
        return {"procedure": self.how, **expected, "judging": self.judging, "explained": self.explained}


def choose_by_folds(plan: SearchPlan, steering: Objective, start: Start, explored: Explored, first: int) -> CrossFitted:
    """Choose by cross-fitting on the surface of all trials, see `mixopt.study.crossfit`.

    What is chosen is scored for real. Where that is not what was predicted, the surface learns it and it is chosen
    again: of what it thinks best, a surface that is unsure thinks too well. The step is taken only where it is better
    than the start by all samples.

    Args:
        plan: The sampler's seed.
        steering: The objective that the trials were scored by.
        start: Whose uniform soup is what mixes may be pulled to.
        explored: The trials.
        first: The first validation sample that judges.
    """
    study, space = explored.rounds[-1]
    trials = studies.complete_trials(study)
    known, counting = studies.evidence_of(*explored.rounds[0]), steering.counting()
    origin = space.to_mix(np.zeros(space.dims))
    uniform = _uniform_on(origin, start)
    for check in range(CHECKS + 1):
        evidence = studies.Evidence(steering, space, known)
        landscape = evidence.landscape(trials)
        sizes = {name: len(labels) for name, labels in landscape.labels.items()}
        folds = studies.make_folds(landscape.labels, first)
        theirs = {name: steering.outcomes(origin, name, size) for name, size in sizes.items()}
        regions = studies.regions_of(space, evidence.reach(trials))
        found = studies.cross_fit(landscape, regions, theirs, folds, seed=plan.trials.seed, uniform=uniform)
        if found.share == 0 or check == CHECKS or _is_as_predicted(landscape, found, counting):
            break
        known = [*known, Known(found.mix, sizes[VALIDATION])]
    judging = folds.judging[VALIDATION]
    stays = Choice(origin, None, 0.0, found.gain, found.error, tally=counting.tally)
    choice, labels = stays, landscape.splits[VALIDATION].labels[judging]
    cost = metric_cost(steering.metric, labels, found, theirs[VALIDATION].at(judging)) if found.share > 0 else None
    if found.share > 0 and cost is None:
        taken = replace(stays, mix=found.mix, candidate=0, share=found.share, trial=next(iter(explored.best)))
        is_better = counting.signal.better(counting.score(found.mix).signal, counting.score(origin).signal)
        choice = taken if is_better else stays
    said = found.outcomes[VALIDATION]
    if choice.candidate is None:
        said = steering.outcomes(origin, VALIDATION, sizes[VALIDATION]).at(judging)
    expected = steering.metric.of(labels, said) if len(judging) else math.nan
    explained = landscape.surface.explained(len(trials))
    return CrossFitted(choice, _words(found.procedure), expected, len(judging), explained, cost)


def metric_cost(metric: Metric, labels: NDArray[np.int64], found: studies.CrossFit, theirs: Outcomes) -> Mean | None:
    """By how much what the signal chose is worse by the metric than the start, where that is more than noise."""
    cost = Mean.of(-metric.gains(labels, found.outcomes[VALIDATION], theirs))
    return cost if cost.value > cost.error else None


def _is_as_predicted(landscape: studies.Landscape, found: studies.CrossFit, counting: Objective) -> bool:
    """Whether a mix that was chosen does for real what it was predicted to do, within half the error of its gain."""
    said = float(landscape.worth(np.asarray(found.mix.coefficients)[None]).item())
    return abs(said - counting.signal.sign * counting.score(found.mix).signal) <= found.error / 2


def describe_cross_fitted(found: CrossFitted) -> str:
    """What the last choice was, in words."""
    choice, judged = found.choice, f"on {found.judging:,} samples, each judging what the others chose"
    if not found.judging:
        return (
            "every sample taught the start by gradient, and none can judge a step from it: the start stays; hold some "
            "back (--confirm 0.2), or begin elsewhere (--start greedy)"
        )
    if math.isnan(choice.error):
        return f"{found.judging:,} samples are too few to judge what the others choose: the start stays"
    gains = f"gains {choice.gain:+.4f} ± {choice.error:.4f} over the start {judged}"
    if found.cost is not None:
        return (
            f"a step from the start is not taken ({found.how}): it {gains} with the loss, and costs "
            f"{found.cost.value:.4f} ± {found.cost.error:.4f} of the metric on them: the start stays"
        )
    if choice.candidate is None:
        return f"no step from the start is supported (the likeliest, {found.how}, {gains}): the start stays"
    return (
        f"the mix that the surface chooses ({found.how}) {gains}; {choice.share:.0%} of that step is taken, and "
        f"{found.expected:.4f} is what it is expected to score"
    )


def doubt(found: CrossFitted) -> str | None:
    """What to do about a surface that predicts badly; None where it does not."""
    if found.explained >= EXPLAINS:
        return None
    return (
        f"the surface predicts poorly here: of how the logits of trials differ from the start's it explains "
        f"{found.explained:.0%}, and below {EXPLAINS:.0%} it may not know good mixes from bad; a smaller --radius, "
        "fewer dimensions (--ingredients, --groups), more --trials, or --sampler cmaes may find more"
    )


def _words(procedure: Procedure | None) -> str:
    """A procedure for people."""
    if procedure is None:
        return "none"
    freedom = {"shared": "all layer groups alike", "depth": "along the depth"}.get(procedure.freedom, "all dimensions")
    towards = f", {procedure.towards:.0%} of the way to the uniform soup" if procedure.towards else ""
    return f"{freedom}, {procedure.pull:.0%} of the way{towards}"


def _uniform_on(origin: Mix, start: Start) -> NDArray[np.float64] | None:
    """The uniform soup's rows on the layer groups of a space, where it is among the baselines."""
    entry = start.baselines.get("uniform")
    return None if entry is None or entry.mix is None else rows_on(entry.mix, origin.groups)
