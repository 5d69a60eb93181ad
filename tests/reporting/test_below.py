"""The line on a search's own row that is not the highest: there where it is not, and with the reason that holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixopt.reporting.below import why_below
from mixopt.reporting.rows import LabelledOutcomes, Row
from mixopt.reporting.schema import Report
from tests.reports import report_of


def row(name: str, right: int, loss: float, samples: int = 100, **more: Any) -> Row:
    """A row with so many right answers of 100, and a mean loss."""
    labels = np.zeros(samples, dtype=np.int64)
    found = LabelledOutcomes(
        labels, (np.arange(samples) >= right * samples // 100).astype(np.int64), np.full(samples, loss)
    )
    scores = {"accuracy": float(found.correct.mean()), "nll": loss}
    counts: dict[str, Any] = dict.fromkeys(("evaluations", "computed", "images", "gradient_images", "ingredients"), 1)
    return Row(name, metrics={"validation": scores}, samples={"validation": found}, seconds=1.0, **counts, **more)


def told(*rows: Row, **fields: Any) -> str:
    return why_below(report_of(rows, **fields)) or ""


STEPPED = {"share": 0.5, "refit": False}


@pytest.mark.parametrize("right", [90, 91])
def test_a_row_that_is_highest_needs_no_reason(right: int) -> None:
    assert why_below(report_of([row("greedy", 90, 0.3), row("search", right, 0.4)])) is None


def test_a_comparison_needs_none_and_an_ensemble_is_no_single_model() -> None:
    worse = [row("greedy", 95, 0.3), row("search", 90, 0.4)]
    assert why_below(report_of(worse, command="compare")) is None
    assert why_below(report_of([row("ensemble", 95, 0.3, models=4), row("search", 90, 0.4)])) is None


def test_the_loss_chose() -> None:
    line = told(row("greedy", 92, 0.30), row("learned", 91, 0.25), row("search", 90, 0.20, notes=STEPPED))
    assert line == (
        "search scores 0.9000 on selection and greedy 0.9200 (2 rows do better): what chooses weighs the loss too "
        "(accuracy with nll), and that is 0.2000 against 0.3000"
    )


def test_a_loss_that_is_lower_by_less_than_accuracy_is_no_reason() -> None:
    line = told(row("greedy", 92, 0.30), row("search", 90, 0.29, notes=STEPPED))
    assert line.startswith("search scores 0.9000 on selection and greedy 0.9200: ")
    assert "loss" not in line


def test_a_signal_without_the_loss_is_not_explained_by_it() -> None:
    rows = (row("greedy", 92, 0.30), row("search", 90, 0.20, notes=STEPPED))
    assert "intervals (0.8256 to 0.9448, 0.8500 to 0.9589) overlap" in told(*rows, signal="accuracy")


def test_the_start_stayed() -> None:
    before = [row("uniform", 90, 0.4), row("greedy", 92, 0.2)]
    ours = row("search", 90, 0.4, notes={"share": 0.0, "refit": False})
    assert told(*before, ours).endswith("it is its start, and samples that did not choose a step from it support none")
    again = row("search", 90, 0.4, notes={"share": 0.0, "refit": True})
    for rows in ((*before, again), (before[1], ours)):
        assert "too close to tell apart" in told(*rows), "learned again, or moved later, it is another than its start"


def test_what_is_worse_beyond_chance_is_not_excused() -> None:
    line = told(row("greedy", 95, 0.2, 2000), row("search", 90, 0.4, 2000, notes=STEPPED))
    assert line.endswith("do not overlap, that may be the better model: mixopt compare --methods greedy")


def test_a_metric_to_minimize() -> None:
    rows = (row("greedy", 90, 0.20), row("search", 92, 0.25, notes=STEPPED))
    assert told(*rows, metric="nll").startswith("search scores 0.2500 on selection and greedy 0.2000: ")
    assert why_below(report_of(list(reversed(rows)), "nll")) is None


def test_other_splits_steered_too() -> None:
    def both(each: Row) -> Row:
        each.metrics["sketch"], each.samples["sketch"] = each.metrics["validation"], each.samples["validation"]  # type: ignore[index]
        return each

    rows = [both(row("greedy", 92, 0.3)), both(row("search", 90, 0.2, notes=STEPPED))]
    report: Report = report_of(rows, select={"validation": 0.5, "sketch": 0.5})
    assert (why_below(report) or "").endswith(": sketch steered too")
