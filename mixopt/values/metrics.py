"""Metrics: value and direction in one place.

A metric is a function of what the evaluator keeps per sample: labels ``[n]`` int64, predicted classes ``[n]``
int64 and cross-entropy losses ``[n]`` float64 in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Direction = Literal["maximize", "minimize"]
Labels = NDArray[np.int64]
Losses = NDArray[np.float64]


class HasOutcomes(Protocol):
    """What one model did on each sample."""

    @property
    def predicted(self) -> Labels:
        """``[n]`` classes."""

    @property
    def losses(self) -> Losses:
        """``[n]`` nats."""


@dataclass(frozen=True)
class Metric:
    """A mean over samples, and which way is better, in Optuna's word for a direction.

    Attributes:
        name: Its name.
        direction: Which way is better.
        per_sample: What each sample adds, ``[n]`` float64; the metric is the mean.
    """

    name: str
    direction: Direction
    per_sample: Callable[[Labels, Labels, Losses], NDArray[np.float64]]

    def value(self, labels: Labels, predicted: Labels, losses: Losses) -> float:
        """The metric."""
        return float(np.mean(self.per_sample(labels, predicted, losses)))

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.direction == "maximize" else -1

    def of(self, labels: Labels, outcomes: HasOutcomes) -> float:
        """The metric of what a model did."""
        return self.value(labels, outcomes.predicted, outcomes.losses)

    def gains(self, labels: Labels, ours: HasOutcomes, theirs: HasOutcomes) -> NDArray[np.float64]:
        """How much better the first outcomes are than the second, sample by sample, ``[n]``."""
        found = [self.per_sample(labels, each.predicted, each.losses) for each in (ours, theirs)]
        return np.asarray(self.sign * (found[0] - found[1]))

    def at_least(self, first: float, second: float) -> bool:
        """Whether ``first`` is as good as ``second`` or better."""
        return first >= second if self.direction == "maximize" else first <= second

    def better(self, first: float, second: float) -> bool:
        """Whether ``first`` is strictly better than ``second``."""
        return first > second if self.direction == "maximize" else first < second


def _accuracy(labels: Labels, predicted: Labels, losses: Losses) -> NDArray[np.float64]:
    return np.asarray(labels == predicted, dtype=np.float64)


def _nll(labels: Labels, predicted: Labels, losses: Losses) -> NDArray[np.float64]:
    return losses


def _balanced_accuracy(labels: Labels, predicted: Labels, losses: Losses) -> NDArray[np.float64]:
    """Mean recall over the classes that occur: a hit counts the more, the rarer its class."""
    classes, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = len(labels) / (len(classes) * counts)
    return np.asarray(weights[places] * (labels == predicted), dtype=np.float64)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "maximize", _accuracy),
        Metric("nll", "minimize", _nll),
        Metric("balanced_accuracy", "maximize", _balanced_accuracy),
    )
}


def own_metric(name: str) -> Metric:
    """The mean of a user's own scores, which are kept as minus the losses; higher is better."""
    return Metric(name, "maximize", lambda labels, predicted, losses: np.asarray(-losses))


def metric_named(name: str) -> Metric:
    """A metric by name; any other name is that of a user's own objective."""
    return METRICS[name] if name in METRICS else own_metric(name)


def shown_metric(name: str, measured: Mapping[str, float]) -> str:
    """What a split is shown by: the driving metric, or where it has no such number accuracy, or its first."""
    return next(each for each in (name, "accuracy", *measured) if each in measured)


def smoothed(metric: Metric) -> Metric:
    """A metric less the loss in nats; the loss itself stays as it is, and so does a user's own.

    Accuracy is stepped: a sample counts where its class comes out first, by whatever margin; the loss tells more of a
    sample, and something else than accuracy. Their sum tells the accuracy on other samples about as well as the
    loss does, and among good mixes better than accuracy alone: measured in studies/cifar10.
    """
    if metric.name == "nll" or metric.name not in METRICS:
        return metric

    def per_sample(labels: Labels, predicted: Labels, losses: Losses) -> NDArray[np.float64]:
        return np.asarray(metric.per_sample(labels, predicted, losses) - losses)

    return Metric(f"{metric.name} with nll", metric.direction, per_sample)
