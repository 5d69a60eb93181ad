"""Intervals of scores and paired tests between rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mixopt.reporting.rows import Correct, LabelledOutcomes
from mixopt.values.metrics import Metric

CONFIDENCE = 0.95
RESAMPLES = 999
NORMAL = float(stats.norm.ppf((1 + CONFIDENCE) / 2))


def interval(metric: Metric, samples: LabelledOutcomes) -> tuple[float, float]:
    """95 % interval of a metric.

    Wilson's for a share of the samples (accuracy, top-k), the percentile bootstrap's over samples for other means
    (Efron 1979), and for what is no mean the normal one with the jackknife's standard error (Tukey 1958), within the
    metric's bounds: a resample repeats samples, which makes a rare class rarer and a calibration worse than they are.
    """
    if metric.name == "accuracy" or "above" in metric.needs:
        return wilson(np.asarray(metric.per_sample(samples.labels, samples) == 1))
    value = metric.of(samples.labels, samples)
    if len(samples.labels) < 2:  # nothing to resample
        return value, value
    if metric.exact is not None:
        half = NORMAL * float(stats.sem(metric.per_sample(samples.labels, samples)))
        return max(metric.bounds[0], value - half), min(metric.bounds[1], value + half)

    def resampled(numbers: NDArray[np.int64]) -> float:
        drawn = samples.take(numbers)
        return metric.of(drawn.labels, drawn)

    found = stats.bootstrap(
        (np.arange(len(samples.labels)),),
        resampled,
        vectorized=False,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def wilson(correct: Correct) -> tuple[float, float]:
    """95 % interval of an accuracy, ``[n]`` to two fractions (Wilson 1927)."""
    found = stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def paired(gains: NDArray[np.float64]) -> float:
    """Two-sided p-value of the paired t-test on what each sample gains, ``[n]``; see `mixopt.values.counts`."""
    if len(gains) < 2 or not np.any(gains):
        return 1.0
    error = float(stats.sem(gains))
    return float(2 * stats.t.sf(abs(float(gains.mean())) / error, len(gains) - 1)) if error > 0 else 0.0


def gain(gains: NDArray[np.float64]) -> tuple[float, float, float]:
    """A paired difference with the ends of its 95 % interval (normal), from what each sample gains, ``[n >= 2]``."""
    half = NORMAL * float(stats.sem(gains))
    mean = float(gains.mean())
    return mean, mean - half, mean + half


def mcnemar(first: Correct, second: Correct) -> float:
    """Two-sided p-value of the exact McNemar test on paired samples, ``[n]`` each (McNemar 1947)."""
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(~first & second))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)
