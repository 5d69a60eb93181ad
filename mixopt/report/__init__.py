"""What a run found: rows for report.json, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
Correct = NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """One method's result.

    Attributes:
        name: The method, or ``method:variant``.
        metrics: Split name to every metric (fractions; nll in nats).
        correct: Split name to ``[n]``, whether each sample was classified correctly.
        evaluations: Distinct mixes it asked for on the selection split, from nothing.
        computed: How many of them were not in the cache.
        images: Images scored for them.
        seconds: Seconds of evaluation for them, from nothing.
        ingredients: Columns with a coefficient other than 0.
        notes: Facts about the choice.
    """

    name: str
    metrics: dict[str, dict[str, float]]
    correct: dict[str, Correct]
    evaluations: int
    computed: int
    images: int
    seconds: float
    ingredients: int
    notes: dict[str, Any] = field(default_factory=dict)


def make_report(rows: Sequence[Row], metric: str, facts: Mapping[str, Any], versus: Sequence[str]) -> dict[str, Any]:
    """The content of report.json.

    Args:
        rows: The methods, in the order of the table.
        metric: The driving metric.
        facts: More keys.
        versus: Names of the rows that every other is tested against.

    Returns:
        Plain JSON values. Accuracies come with 95 % Wilson intervals (Wilson 1927), and with the p-value of an
        exact McNemar test (McNemar 1947) on the same samples against each row of ``versus``.
    """
    by_name = {row.name: row for row in rows}
    methods = [_entry(row, metric, [by_name[name] for name in versus if name in by_name]) for row in rows]
    return {"metric": metric, "methods": methods, **facts}


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


def table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table that a terminal or a README shows."""
    methods = report["methods"]
    tests = list(methods[0]["test"]) if methods else []
    header = ["method", "selection", *tests, "evaluations", "seconds", "ingredients"]
    cells = [
        [
            entry["name"],
            _number(entry["search"]),
            *(_number(entry["test"][name]) for name in tests),
            str(entry["evaluations"]),
            f"{entry['seconds']:.1f}",
            str(entry["ingredients"]),
        ]
        for entry in methods
    ]
    return header, cells


def _entry(row: Row, metric: str, versus: Sequence[Row]) -> dict[str, Any]:
    values = {split: metrics[metric] for split, metrics in row.metrics.items()}
    return {
        "name": row.name,
        "search": values.pop("search"),
        "test": values,
        "evaluations": row.evaluations,
        "computed": row.computed,
        "images": row.images,
        "seconds": round(row.seconds, 3),
        "ingredients": row.ingredients,
        "metrics": row.metrics,
        "accuracy_interval": {split: list(wilson(correct)) for split, correct in row.correct.items()},
        "mcnemar_p": {
            other.name: {split: mcnemar(row.correct[split], other.correct[split]) for split in row.correct}
            for other in versus
            if other.name != row.name
        },
        **({"notes": row.notes} if row.notes else {}),
    }


def _number(value: float) -> str:
    return f"{value:.4f}"
