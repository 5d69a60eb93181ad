"""Rows to the entries of a report, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence

from mixopt.reporting.rows import Failure, LabelledOutcomes, Row
from mixopt.reporting.schema import FailedRow, MadeRow
from mixopt.reporting.statistics import gain, interval, mcnemar, paired, wilson
from mixopt.values.metrics import Metric, metric_named, own_metric, shown_metric, smoothed
from mixopt.values.samples import VALIDATION

REFERENCES = ("individual", "greedy")
# The best by a noisy score are the best and the luckiest; more of them leave the last choice more to luck too.
FINALISTS = 5


def entries(
    rows: Sequence[Row | Failure],
    metric: str,
    tuning: int | None = None,
    steering: Sequence[str] = (),
    best: str = "",
) -> tuple[MadeRow | FailedRow, ...]:
    """What the report says of each row.

    Scores come with 95 % intervals, see `mixopt.reporting.statistics.interval`; each row comes with the p-value of an
    exact McNemar test on the same samples against the best individual and the greedy soup, and where another metric
    than accuracy drives, with that of a paired t-test of it; and with how much better it is than these two, with the
    95 % interval of that.

    Args:
        rows: The methods, in the order of the table.
        metric: The driving metric.
        tuning: How many of the validation samples tuned; all without.
        steering: The splits that steered a search beside the validation split, which are no tests.
        best: The best row, whose differences from all others are told too; none without.
    """
    made = {row.name: row for row in rows if isinstance(row, Row)}
    references = [made[name] for name in REFERENCES if name in made]
    compared = [*references, *([made[best]] if best in made and best not in REFERENCES else [])]
    return tuple(
        _made(row, _driving(row, metric), tuning, steering, references).model_copy(
            update={"gains": _gains(row, _driving(row, metric), compared)}
        )
        if isinstance(row, Row)
        else FailedRow(name=row.name, error=row.reason)
        for row in rows
    )


def best_row(rows: Sequence[Row], metric: str, tuning: int | None = None) -> str:
    """The name of the best row; of equals, the first.

    Args:
        rows: Scored on the whole validation split.
        metric: The driving metric.
        tuning: How many of the first samples tuned. Where there are others, the `FINALISTS` rows that score best on
            the first are compared by metric and loss on those others: what a row was fitted to cannot choose it.
    """
    measure = _driving(rows[0], metric)
    if tuning is None or tuning >= len(rows[0].samples[VALIDATION].labels):
        ranked = _ranked(rows, measure, slice(None))
    else:
        finalists = _ranked(rows, measure, slice(0, tuning))[:FINALISTS]
        # In the rows' own order: of equals, the first.
        ranked = _ranked([row for row in rows if row in finalists], smoothed(measure), slice(tuning, None))
    return ranked[0].name


def _ranked(rows: Sequence[Row], measure: Metric, part: slice) -> list[Row]:
    """Rows by a metric on a part of the validation split, best first."""

    def value(row: Row) -> float:
        found = row.samples[VALIDATION].take(part)
        return measure.sign * measure.of(found.labels, found)

    return sorted(rows, key=lambda row: -value(row))


def _made(row: Row, metric: Metric, tuning: int | None, steering: Sequence[str], versus: Sequence[Row]) -> MadeRow:
    driving = {split: shown_metric(metric.name, each) for split, each in row.metrics.items()}
    values = {split: row.metrics[split][name] for split, name in driving.items()}
    search = values.pop(VALIDATION)
    select = {name: values.pop(name) for name in steering}
    # A split that a user's own objective scored has no predictions to compare.
    classified = {split: samples for split, samples in row.samples.items() if samples.are_classified}
    return MadeRow(
        name=row.name,
        search=search,
        select=select,
        test=values,
        optimism={
            split: metric.sign * (search - each) for split, each in values.items() if driving[split] == metric.name
        },
        evaluations=row.evaluations,
        computed=row.computed,
        images=row.images,
        gradient_images=row.gradient_images,
        seconds=round(row.seconds, 3),
        ingredients=row.ingredients,
        models=row.models,
        peak_memory=row.peak_memory,
        metrics={split: dict(metrics) for split, metrics in row.metrics.items()},
        signals=_signals(row.samples[VALIDATION], metric, tuning),
        interval={
            split: interval(
                metric_named(driving[split]) if samples.are_classified else own_metric(metric.name), samples
            )
            for split, samples in row.samples.items()
            if samples.are_classified or len(samples.labels) > 1
        },
        accuracy_interval={split: wilson(samples.correct) for split, samples in classified.items()},
        mcnemar_p={
            other.name: {
                split: mcnemar(each.correct, other.samples[split].correct) for split, each in classified.items()
            }
            for other in versus
            if other.name != row.name
        },
        paired_p={
            other.name: {
                split: paired(metric.gains(each.labels, each, other.samples[split]))
                for split, each in classified.items()
                if driving[split] == metric.name != "accuracy" and not metric.lacks(other.samples[split])
            }
            for other in versus
            if other.name != row.name and metric.name != "accuracy" and row.samples[VALIDATION].are_classified
        },
        notes=dict(row.notes),
        curves=dict(row.curves),
        sweep=tuple(row.sweep),
    )


def _gains(row: Row, metric: Metric, versus: Sequence[Row]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """How much better a row is than others in the driving metric, split by split, with the interval of that."""
    return {
        other.name: {
            split: gain(metric.gains(samples.labels, samples, other.samples[split]))
            for split, samples in row.samples.items()
            if shown_metric(metric.name, row.metrics[split]) == metric.name
            and len(samples.labels) > 1
            and not metric.lacks(other.samples[split])
            and not metric.lacks(samples)
        }
        for other in versus
        if other.name != row.name
    }


def _signals(samples: LabelledOutcomes, metric: Metric, tuning: int | None) -> dict[str, float]:
    """What a sampler could be told of a row: the metric, raw and smoothed, on the samples that tune."""
    first = samples.take(slice(tuning))
    return {each.name: each.of(first.labels, first) for each in (metric, smoothed(metric))}


def _driving(row: Row, name: str) -> Metric:
    """The driving metric: of a user's own objective its number, whatever name it has."""
    return metric_named(name) if row.samples[VALIDATION].are_classified else own_metric(name)
