"""Metrics: value and direction in one place.

A metric is a function of what the evaluator keeps per sample, `HasOutcomes`, and of labels ``[n]`` int64.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import SpecError
from mixopt.values import counts
from mixopt.values.counts import pseudo_values

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
        """``[n]`` cross-entropy in nats."""

    @property
    def above(self) -> Labels | None:
        """``[n]``, how many classes come before the right one; None where that was not kept."""

    @property
    def confidence(self) -> Losses | None:
        """``[n]``, the probability of the predicted class; None where that was not kept."""


PerSample = Callable[[Labels, HasOutcomes], NDArray[np.float64]]


@dataclass(frozen=True)
class Metric:
    """What is measured over samples, and which way is better, in Optuna's word for a direction.

    Attributes:
        name: Its name.
        direction: Which way is better.
        per_sample: What each sample adds, ``[n]`` float64; the metric is the mean. Of a metric that is no mean these
            are jackknife pseudo-values, see `mixopt.values.counts`.
        exact: Of a metric that is no mean: its value, from whole counts.
        needs: What it needs beside classes and losses, as fields of `HasOutcomes`.
        limits: From the number of classes of a split, or the least that it can be, to why the metric is not for it.
        bounds: The least and the largest value that it can have.
    """

    name: str
    direction: Direction
    per_sample: PerSample
    exact: Callable[[Labels, HasOutcomes], float] | None = None
    needs: tuple[str, ...] = ()
    limits: Callable[[int, int | None], str] = lambda least, known: ""
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.direction == "maximize" else -1

    def of(self, labels: Labels, outcomes: HasOutcomes) -> float:
        """The metric of what a model did."""
        return float(np.mean(self.per_sample(labels, outcomes))) if self.exact is None else self.exact(labels, outcomes)

    def gains(self, labels: Labels, ours: HasOutcomes, theirs: HasOutcomes) -> NDArray[np.float64]:
        """How much better the first outcomes are than the second, sample by sample, ``[n]``."""
        found = [self.per_sample(labels, each) for each in (ours, theirs)]
        return np.asarray(self.sign * (found[0] - found[1]))

    def at_least(self, first: float, second: float) -> bool:
        """Whether ``first`` is as good as ``second`` or better."""
        return first >= second if self.direction == "maximize" else first <= second

    def better(self, first: float, second: float) -> bool:
        """Whether ``first`` is strictly better than ``second``."""
        return first > second if self.direction == "maximize" else first < second

    def why_not(self, labels: Labels, classes: int | None) -> str:
        """Why it is not for a split, or nothing.

        Args:
            labels: The split's.
            classes: How many classes it has, where that is known.
        """
        return self.limits(1 + int(labels.max(initial=0)) if classes is None else classes, classes)

    def lacks(self, outcomes: HasOutcomes) -> bool:
        """Whether something that it needs was not kept."""
        return any(getattr(outcomes, name) is None for name in self.needs)


def _accuracy(labels: Labels, outcomes: HasOutcomes) -> NDArray[np.float64]:
    return np.asarray(labels == outcomes.predicted, dtype=np.float64)


def _nll(labels: Labels, outcomes: HasOutcomes) -> NDArray[np.float64]:
    return outcomes.losses


def _balanced_accuracy(labels: Labels, outcomes: HasOutcomes) -> NDArray[np.float64]:
    """Mean recall over the classes that occur: a hit counts the more, the rarer its class."""
    classes, places, occur = np.unique(labels, return_inverse=True, return_counts=True)
    weights = len(labels) / (len(classes) * occur)
    return np.asarray(weights[places] * (labels == outcomes.predicted), dtype=np.float64)


def _calibration_error(labels: Labels, outcomes: HasOutcomes) -> counts.LeftOut:
    return counts.calibration_error(labels == outcomes.predicted, _kept(outcomes.confidence))


def _counted(name: str, direction: Direction, count: Callable[[Labels, HasOutcomes], counts.LeftOut]) -> Metric:
    """A metric of `mixopt.values.counts`."""

    def per_sample(labels: Labels, outcomes: HasOutcomes) -> NDArray[np.float64]:
        return pseudo_values(count(labels, outcomes))

    def exact(labels: Labels, outcomes: HasOutcomes) -> float:
        return count(labels, outcomes)[0]

    return Metric(name, direction, per_sample, exact)


def _of_classes(count: Callable[[Labels, Labels], counts.LeftOut]) -> Callable[[Labels, HasOutcomes], counts.LeftOut]:
    return lambda labels, outcomes: count(labels, outcomes.predicted)


def _two_classes(least: int, known: int | None) -> str:
    many = f"f1 is of two classes, 0 and 1, of which 1 is the positive one, and there are {least}: use f1_macro"
    return many if least > 2 else ""


def _top(k: int) -> Metric:
    """The share of samples whose class is among the ``k`` largest logits; of equal ones the lower class comes first."""

    def per_sample(labels: Labels, outcomes: HasOutcomes) -> NDArray[np.float64]:
        return np.asarray(_kept(outcomes.above) < k, dtype=np.float64)

    def limits(least: int, known: int | None) -> str:
        few = known is not None and known <= k
        return f"top{k} is 1 whatever a model does where there are {known} classes: use accuracy" if few else ""

    return Metric(f"top{k}", "maximize", per_sample, needs=("above",), limits=limits)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "maximize", _accuracy),
        Metric("nll", "minimize", _nll, bounds=(0.0, np.inf)),
        Metric("balanced_accuracy", "maximize", _balanced_accuracy),
        replace(_counted("f1", "maximize", _of_classes(counts.f1)), limits=_two_classes),
        _counted("f1_macro", "maximize", _of_classes(counts.f1_macro)),
        replace(_counted("matthews", "maximize", _of_classes(counts.matthews)), bounds=(-1.0, 1.0)),
        _top(5),
        _counted("worst_class_recall", "maximize", _of_classes(counts.worst_class_recall)),
        replace(_counted("ece", "minimize", _calibration_error), needs=("confidence",)),
    )
}


def find_metric(name: str) -> Metric | None:
    """One of `METRICS`, or ``top<k>`` for any other k; None where the name is neither."""
    top = re.fullmatch(r"top([1-9]\d{0,5})", name)
    return METRICS.get(name) or (_top(int(top[1])) if top else None)


def own_metric(name: str) -> Metric:
    """The mean of a user's own scores, which are kept as minus the losses; higher is better."""
    return Metric(name, "maximize", _own_scores, bounds=(-np.inf, np.inf))


def _own_scores(labels: Labels, outcomes: HasOutcomes) -> NDArray[np.float64]:
    return np.asarray(-outcomes.losses)


def _is_own(metric: Metric) -> bool:
    """Whether it is a user's own number, whatever its name."""
    return metric.per_sample is _own_scores


def metric_named(name: str) -> Metric:
    """A metric by name; any other name is that of a user's own objective."""
    return find_metric(name) or own_metric(name)


def check_metric(metric: Metric, labels: Labels, classes: int | None, source: str) -> None:
    """Refuse a metric that is not for a split.

    Args:
        metric: What is to drive.
        labels: The split's.
        classes: How many classes it has, where that is known.
        source: Its file, for the message.

    Raises:
        SpecError: It is not.
    """
    if why := metric.why_not(labels, classes):
        raise SpecError(f"--metric {metric.name}: {source}: {why}")


def measured(
    labels: Labels, outcomes: HasOutcomes, classes: int | None, driving: Metric | None = None
) -> dict[str, float]:
    """Every metric by name that there is for a split and for what was kept of a model, the driving one included.

    Args:
        labels: Of the samples.
        outcomes: What a model did on them.
        classes: How many classes the split has, where that is known.
        driving: A metric beside `METRICS`.
    """
    every = METRICS if driving is None or _is_own(driving) else {**METRICS, driving.name: driving}
    return {
        name: metric.of(labels, outcomes)
        for name, metric in every.items()
        if not metric.why_not(labels, classes) and not metric.lacks(outcomes)
    }


def shown_metric(name: str, measured: Mapping[str, float]) -> str:
    """What a split is shown by: the driving metric, or where it has no such number accuracy, or its first."""
    return next(each for each in (name, "accuracy", *measured) if each in measured)


def smoothed(metric: Metric) -> Metric:
    """A metric less the loss in nats; the loss itself stays as it is, and so does a user's own.

    Accuracy is stepped: a sample counts where its class comes out first, by whatever margin; the loss tells more of a
    sample, and something else than accuracy. Their sum tells the accuracy on other samples about as well as the
    loss does, and among good mixes better than accuracy alone: measured in studies/cifar10.
    """
    if metric.name == "nll" or _is_own(metric):
        return metric

    def per_sample(labels: Labels, outcomes: HasOutcomes) -> NDArray[np.float64]:
        return np.asarray(metric.per_sample(labels, outcomes) - metric.sign * outcomes.losses)

    def exact(labels: Labels, outcomes: HasOutcomes) -> float:
        return metric.of(labels, outcomes) - metric.sign * float(np.mean(outcomes.losses))

    # The mean of the sums, where there is one, as ever.
    whole = None if metric.exact is None else exact
    return Metric(f"{metric.name} with nll", metric.direction, per_sample, whole, metric.needs, metric.limits)


def _kept(values: NDArray[np.generic] | None) -> NDArray[np.float64]:
    if values is None:
        raise ValueError("the metric needs what was not kept of these outcomes")
    return np.asarray(values, dtype=np.float64)
