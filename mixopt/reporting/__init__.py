"""What a run found: rows for report.json; the tables, the pictures and the page of it are in modules beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mixopt.reporting.tables import REFERENCES, comparisons, front, steering_of, table, tests_of, ties, widths
from mixopt.values.metrics import METRICS, Labels, Losses, Metric, smoothed
from mixopt.values.samples import VALIDATION

__all__ = [
    "CONFIDENCE",
    "FINALISTS",
    "REFERENCES",
    "Failure",
    "Row",
    "Samples",
    "best_row",
    "comparisons",
    "front",
    "interval",
    "make_report",
    "mcnemar",
    "steering_of",
    "table",
    "tests_of",
    "ties",
    "widths",
    "wilson",
]

CONFIDENCE = 0.95
RESAMPLES = 999
# The best by a noisy score are the best and the luckiest; more of them leave the last choice more to luck too.
FINALISTS = 5
Correct = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Samples:
    """What one model did on every sample of a split.

    Attributes:
        labels: ``[n]`` int64.
        predicted: ``[n]`` int64.
        losses: ``[n]`` float64, in nats.
    """

    labels: Labels
    predicted: Labels
    losses: Losses

    @property
    def correct(self) -> Correct:
        """``[n]``, whether each sample was classified correctly."""
        return np.asarray(self.labels == self.predicted)


@dataclass(frozen=True, eq=False)
class Row:
    """One method's result.

    Attributes:
        name: The method, or ``method:variant``.
        metrics: Split name to every metric (fractions; nll in nats).
        samples: Split name to what happened sample by sample.
        evaluations: Distinct mixes it asked for on the selection split, from nothing.
        computed: How many of them were not in the cache.
        images: Images that went through a model for them.
        gradient_images: Those of them that a gradient was taken on.
        seconds: Seconds that all of it takes, from nothing.
        ingredients: Checkpoints with a coefficient other than 0, the base apart.
        models: How many models one inference runs; 1 but for ensembles.
        peak_memory: Bytes at its highest, the pool included; None where it was not measured.
        notes: Facts about the choice.
        curves: What the method saw on the way.
        sweep: Every mix along a sweep: ``{"x": ..., "search": ..., "test": {...}}``.
    """

    name: str
    metrics: dict[str, dict[str, float]]
    samples: dict[str, Samples]
    evaluations: int
    computed: int
    images: int
    gradient_images: int
    seconds: float
    ingredients: int
    models: int = 1
    peak_memory: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sweep: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Failure:
    """A row that could not be made.

    Attributes:
        name: The row's name.
        reason: Why.
    """

    name: str
    reason: str


def make_report(rows: Sequence[Row | Failure], metric: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of report.json.

    Args:
        rows: The methods, in the order of the table.
        metric: The driving metric.
        facts: More keys; ``select`` maps the splits that steered a search to their weights, and those among them
            beside the selection split are no tests.

    Returns:
        Plain JSON values. Scores come with 95 % intervals: accuracies Wilson's (Wilson 1927), other metrics the
        percentile bootstrap's (Efron 1979); and each row with the p-value of an exact McNemar test (McNemar 1947) on
        the same samples against the best individual and the greedy soup. ``optimism`` is how much better a row does on
        the split that it was chosen on than on each test split, ``signals`` the metric and the metric less the loss on
        the samples that steered.
    """
    made = {row.name: row for row in rows if isinstance(row, Row)}
    references = [made[name] for name in REFERENCES if name in made]
    methods = [
        _entry(row, metric, references, facts)
        if isinstance(row, Row)
        else {"name": row.name, "search": None, "test": {}, "error": row.reason}
        for row in rows
    ]
    return {"metric": metric, "methods": methods, **facts}


def best_row(rows: Sequence[Row], metric: str, steering: int | None = None) -> str:
    """The name of the best row; of equals, the first.

    Args:
        rows: Scored on the whole selection split.
        metric: The driving metric.
        steering: How many of the first samples steered. Where there are others, the `FINALISTS` rows that score best on
            the first are compared by metric and loss on those others: what a row was fitted to cannot choose it.
    """
    measure = METRICS[metric]
    if steering is None or steering >= len(rows[0].samples[VALIDATION].labels):
        ranked = _ranked(rows, measure, slice(None))
    else:
        finalists = _ranked(rows, measure, slice(0, steering))[:FINALISTS]
        # In the rows' own order: of equals, the first.
        ranked = _ranked([row for row in rows if row in finalists], smoothed(measure), slice(steering, None))
    return ranked[0].name


def _ranked(rows: Sequence[Row], measure: Metric, part: slice) -> list[Row]:
    """Rows by a metric on a part of the selection split, best first."""

    def value(row: Row) -> float:
        found = row.samples[VALIDATION]
        return measure.sign * measure.value(found.labels[part], found.predicted[part], found.losses[part])

    return sorted(rows, key=lambda row: -value(row))


def interval(metric: str, samples: Samples) -> tuple[float, float]:
    """95 % interval of a metric: Wilson's for accuracy, else the percentile bootstrap's over samples."""
    if metric == "accuracy":
        return wilson(samples.correct)
    if len(samples.labels) < 2:  # nothing to resample
        value = METRICS[metric].value(samples.labels, samples.predicted, samples.losses)
        return value, value
    found = stats.bootstrap(
        (samples.labels, samples.predicted, samples.losses),
        METRICS[metric].value,
        paired=True,
        vectorized=False,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def wilson(correct: Correct) -> tuple[float, float]:
    """95 % interval of an accuracy, ``[n]`` to two fractions."""
    interval = stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(first: Correct, second: Correct) -> float:
    """Two-sided p-value of the exact McNemar test on paired samples, ``[n]`` each."""
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(~first & second))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def _entry(row: Row, metric: str, versus: Sequence[Row], facts: Mapping[str, Any]) -> dict[str, Any]:
    steering = steering_of(facts)
    values = {split: metrics[metric] for split, metrics in row.metrics.items()}
    wilsons = {split: list(wilson(samples.correct)) for split, samples in row.samples.items()}
    return {
        "name": row.name,
        "search": values.pop(VALIDATION),
        **({"select": {name: values.pop(name) for name in steering}} if steering else {}),
        "test": values,
        "optimism": {
            split: METRICS[metric].sign * (row.metrics[VALIDATION][metric] - each) for split, each in values.items()
        },
        "evaluations": row.evaluations,
        "computed": row.computed,
        "images": row.images,
        "gradient_images": row.gradient_images,
        "seconds": round(row.seconds, 3),
        "ingredients": row.ingredients,
        "models": row.models,
        "peak_memory": row.peak_memory,
        "metrics": row.metrics,
        "signals": _signals(row.samples[VALIDATION], metric, facts.get("steering")),
        "interval": {split: list(interval(metric, samples)) for split, samples in row.samples.items()},
        "accuracy_interval": wilsons,
        "mcnemar_p": {
            other.name: {split: mcnemar(row.samples[split].correct, other.samples[split].correct) for split in wilsons}
            for other in versus
            if other.name != row.name
        },
        **{key: value for key, value in _extras(row).items() if value},
    }


def _signals(samples: Samples, metric: str, steering: int | None) -> dict[str, float]:
    """What a sampler could be told of a row: the metric, raw and smoothed, on the samples that steer."""
    first = slice(steering)
    return {
        each.name: each.value(samples.labels[first], samples.predicted[first], samples.losses[first])
        for each in (METRICS[metric], smoothed(METRICS[metric]))
    }


def _extras(row: Row) -> dict[str, Any]:
    return {"notes": row.notes, "curves": row.curves, "sweep": row.sweep}
