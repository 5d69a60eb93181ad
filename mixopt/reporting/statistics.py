"""Intervals of scores and paired tests between rows."""

from __future__ import annotations

import numpy as np
from scipy import stats

from mixopt.reporting.rows import Correct, LabelledOutcomes
from mixopt.values.metrics import metric_named

CONFIDENCE = 0.95
RESAMPLES = 999


def interval(metric: str, samples: LabelledOutcomes) -> tuple[float, float]:
    """95 % interval of a metric: Wilson's for accuracy, else the percentile bootstrap's over samples."""
    if metric == "accuracy":
        return wilson(samples.correct)
    measure = metric_named(metric)
    if len(samples.labels) < 2:  # nothing to resample
        value = measure.value(samples.labels, samples.predicted, samples.losses)
        return value, value
    found = stats.bootstrap(
        (samples.labels, samples.predicted, samples.losses),
        measure.value,
        paired=True,
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


def mcnemar(first: Correct, second: Correct) -> float:
    """Two-sided p-value of the exact McNemar test on paired samples, ``[n]`` each (McNemar 1947)."""
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(~first & second))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)
