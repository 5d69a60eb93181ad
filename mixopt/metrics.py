"""Metrics: value and direction in one place.

A metric is a function of what the evaluator keeps per sample: labels ``[n]`` int64, predicted classes ``[n]``
int64 and cross-entropy losses ``[n]`` float64 in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Direction = Literal["maximize", "minimize"]
Labels = NDArray[np.int64]
Losses = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A metric's value and which way is better, in Optuna's word for a direction."""

    name: str
    direction: Direction
    value: Callable[[Labels, Labels, Losses], float]

    def at_least(self, first: float, second: float) -> bool:
        """Whether ``first`` is as good as ``second`` or better."""
        return first >= second if self.direction == "maximize" else first <= second

    def better(self, first: float, second: float) -> bool:
        """Whether ``first`` is strictly better than ``second``."""
        return first > second if self.direction == "maximize" else first < second


def _accuracy(labels: Labels, predicted: Labels, losses: Losses) -> float:
    return float(np.mean(labels == predicted))


def _nll(labels: Labels, predicted: Labels, losses: Losses) -> float:
    return float(np.mean(losses))


def _balanced_accuracy(labels: Labels, predicted: Labels, losses: Losses) -> float:
    """Mean recall over the classes that occur."""
    return float(np.mean([np.mean(predicted[labels == label] == label) for label in np.unique(labels)]))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "maximize", _accuracy),
        Metric("nll", "minimize", _nll),
        Metric("balanced_accuracy", "maximize", _balanced_accuracy),
    )
}
