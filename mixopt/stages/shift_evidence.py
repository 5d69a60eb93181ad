"""What can be told, without a label of it, of how a mix does under a shift. What each is worth: studies/robust."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mixopt.assemble import Assembly
from mixopt.assemble.shifted import with_shifted, with_unlabelled
from mixopt.comparison.running import ingredient_mixes
from mixopt.listener import Listener
from mixopt.scoring.objective import Objective
from mixopt.scoring.outcomes import Outcomes
from mixopt.scoring.score import Score
from mixopt.spec import StudySpec
from mixopt.values.metrics import Metric
from mixopt.values.samples import SYNTHETIC, UNLABELLED, VALIDATION

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mean:
    """A mean, and its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, values: Floats) -> Mean:
        """Of independent values ``[n]``, two or more."""
        return cls(float(values.mean()), float(stats.sem(values)))

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.value + other.value, math.hypot(self.error, other.error))


class Evidence(Protocol):
    """Tells how much better one mix does under a shift than another."""

    @property
    def split(self) -> str:
        """The samples that it is of, beside the validation samples."""

    @property
    def words(self) -> str:
        """What its gains are of."""

    @property
    def objective(self) -> Objective:
        """Scores mixes on all validation samples and on those of the split, and tallies both."""

    def gain(self, ours: Score, theirs: Score) -> Mean:
        """By how much the first is better, by its objective's scores of two mixes."""


class Synthetic:
    """The selection images under synthetic shifts, which have labels.

    The gain is the sum of two: of held-out samples, and of all shifted images, each in units of the signal.

    Args:
        objective: With a split ``synthetic``.
    """

    split = SYNTHETIC
    words = "with the shifted images"

    def __init__(self, objective: Objective) -> None:
        self.objective = objective.whole().weighing({SYNTHETIC: 0.5})
        self._held = objective.tuning

    def gain(self, ours: Score, theirs: Score) -> Mean:
        """See `Evidence`."""
        signal, split = self.objective.signal, self.objective.evaluators[SYNTHETIC].split
        shifted = signal.gains(split.labels, ours.beside[SYNTHETIC].outcomes, theirs.beside[SYNTHETIC].outcomes)
        return Mean.of(held_gains(self.objective, self._held, ours, theirs, signal)) + Mean.of(shifted)


class Voted:
    """Samples of the target without labels, by how often a mix agrees with the vote of the ingredients there.

    Agreement between models and accuracy lie on lines of one slope, in distribution against shifted (Baek et al.,
    "Agreement-on-the-Line", NeurIPS 2022, arXiv 2206.13089), so that the gain in accuracy on the target is estimated by
    the gain in the metric on held-out samples, and how much more agreement grows on the target than on those.

    Args:
        objective: With a split ``unlabelled``.
    """

    split = UNLABELLED
    words = "under shift, by how often the ingredients' vote is met on the unlabelled samples"

    def __init__(self, objective: Objective) -> None:
        # Weighed, so that its samples count among those that a step takes; no value of it is looked at.
        self.objective = objective.whole().weighing({UNLABELLED: 0.5})
        self._held = objective.tuning

    def gain(self, ours: Score, theirs: Score) -> Mean:
        """See `Evidence`."""
        here = self._more(ours.outcomes, theirs.outcomes, VALIDATION)[self._held :]
        there = self._more(ours.beside[UNLABELLED].outcomes, theirs.beside[UNLABELLED].outcomes, UNLABELLED)
        metric = held_gains(self.objective, self._held, ours, theirs, self.objective.metric)
        return Mean.of(metric - here) + Mean.of(there)

    @cached_property
    def _votes(self) -> dict[str, NDArray[np.int64]]:
        """What the ingredients together predict, ``[n]`` by split."""
        members = list(ingredient_mixes(self.objective).values())
        here, there = (self.objective.score_ensemble(members, split) for split in (VALIDATION, UNLABELLED))
        for mix in members:  # of ensembles, the validation split alone is tallied
            key, seconds = self.objective.key(mix, UNLABELLED), there.seconds / len(members)
            self.objective.tally.ask(key, len(there.outcomes), seconds)
        return {VALIDATION: here.outcomes.predicted, UNLABELLED: there.outcomes.predicted}

    def _more(self, ours: Outcomes, theirs: Outcomes, split: str) -> Floats:
        """How much more often each sample's vote is met, ``[n]``."""
        vote = self._votes[split]
        return np.asarray((ours.predicted == vote).astype(np.float64) - (theirs.predicted == vote))


def open_evidence(spec: StudySpec, assembly: Assembly, listener: Listener) -> Evidence | None:
    """What there is to tell how mixes do under a shift; None of samples that are no images, without unlabelled ones.

    Args:
        spec: The options.
        assembly: Pool and splits.
        listener: Told about progress while samples are made or decoded.

    Raises:
        DataError: Unlabelled samples cannot be used.
    """
    unlabelled = with_unlabelled(spec, assembly, listener)
    if unlabelled is not None:
        return Voted(unlabelled)
    shifted = with_shifted(spec, assembly, listener)
    return None if shifted is None else Synthetic(shifted)


def held_gains(objective: Objective, first: int, ours: Score, theirs: Score, metric: Metric) -> Floats:
    """What each validation sample from ``first`` on gains, ``[n]``, in units of a metric."""
    held = [score.outcomes.rest(first) for score in (ours, theirs)]
    return metric.gains(objective.evaluators[VALIDATION].split.labels[first:], *held)
