"""What a row of the report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt.reporting.schema import SweepPoint
from mixopt.values.metrics import HasOutcomes, Labels, Losses, metric_named
from mixopt.values.samples import VALIDATION

Correct = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class LabelledOutcomes:
    """What one model did on every sample of a split.

    Attributes:
        labels: ``[n]`` int64.
        predicted: ``[n]`` int64.
        losses: ``[n]`` float64, in nats.
        above: ``[n]`` int64, how many classes come before the right one; None where that was not kept.
        confidence: ``[n]`` float64, the probability of the predicted class; None where that was not kept.
    """

    labels: Labels
    predicted: Labels
    losses: Losses
    above: Labels | None = None
    confidence: Losses | None = None

    @classmethod
    def of(cls, labels: Labels, outcomes: HasOutcomes) -> LabelledOutcomes:
        """Labels ``[n]`` and what a model did on the same samples."""
        return cls(labels, outcomes.predicted, outcomes.losses, outcomes.above, outcomes.confidence)

    def take(self, part: slice | NDArray[np.int64]) -> LabelledOutcomes:
        """Those of some samples."""
        more: list[Any] = [None if each is None else each[part] for each in (self.above, self.confidence)]
        return LabelledOutcomes(self.labels[part], self.predicted[part], self.losses[part], *more)

    @property
    def correct(self) -> Correct:
        """``[n]``, whether each sample was classified correctly."""
        return np.asarray(self.labels == self.predicted)

    @property
    def are_classified(self) -> bool:
        """Whether there are predictions: a user's own objective gives none."""
        return bool(np.all(self.predicted >= 0))


@dataclass(frozen=True, eq=False)
class Row:
    """One method's result.

    Attributes:
        name: The method, or ``method:variant``.
        metrics: Split name to every metric (fractions; nll in nats).
        samples: Split name to what happened sample by sample.
        evaluations: Distinct mixes it asked for on the validation split, from nothing.
        computed: How many of them were not in the cache.
        images: Samples that went through a model for them.
        gradient_images: Those of them that a gradient was taken on.
        seconds: Seconds that all of it takes, from nothing.
        ingredients: Checkpoints with a coefficient other than 0, the base apart.
        models: How many models one inference runs; 1 but for ensembles.
        peak_memory: Bytes at its highest, the pool included; None where it was not measured.
        notes: More about the choice.
        curves: What the method saw on the way.
        sweep: Every mix along a sweep.
    """

    name: str
    metrics: Mapping[str, Mapping[str, float]]
    samples: Mapping[str, LabelledOutcomes]
    evaluations: int
    computed: int
    images: int
    gradient_images: int
    seconds: float
    ingredients: int
    models: int = 1
    peak_memory: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    sweep: Sequence[SweepPoint] = ()


@dataclass(frozen=True)
class TrialPoint:
    """A complete trial of a search, for its picture.

    Attributes:
        number: Its number; that of a second round's goes on counting.
        value: What the sampler was told.
        images: Samples that it was scored on.
        estimated: Whether it was given up early.
    """

    number: int
    value: float
    images: int
    estimated: bool


def split_shown(split: str) -> str:
    """A split as readers know it."""
    return "selection" if split == VALIDATION else split


def best_so_far(metric: str, trials: Sequence[TrialPoint]) -> tuple[list[int], list[float]]:
    """Images that trials were scored on, summed up, and the best value told so far; both by trial, the start first.

    A trial that was given up early has an estimate for a value, and cannot be the best.

    Args:
        metric: The driving metric, which says which way is better.
        trials: In number order.
    """
    sign = metric_named(metric).sign
    values = [float("-inf") if trial.estimated else sign * trial.value for trial in trials]
    return list(accumulate(trial.images for trial in trials)), [sign * value for value in accumulate(values, max)]


@dataclass(frozen=True)
class Failure:
    """A row that could not be made.

    Attributes:
        name: The row's name.
        reason: Why.
    """

    name: str
    reason: str
