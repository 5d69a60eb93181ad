"""The answer in a sentence: the row, its gains with intervals, and what is not told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixopt.reporting.answer import answer, differences
from mixopt.reporting.rows import LabelledOutcomes, Row
from mixopt.reporting.schema import Report
from tests.reports import report_of

COUNT = 400


def row(name: str, right: dict[str, float], ingredients: int = 3, **notes: Any) -> Row:
    """A row that is right on the first so many samples of each split."""
    samples, metrics = {}, {}
    for split, share in right.items():
        labels = np.zeros(COUNT, dtype=np.int64)
        predicted = np.where(np.arange(COUNT) < round(share * COUNT), 0, 1)
        samples[split] = LabelledOutcomes(labels, predicted, np.where(predicted, 1.0, 0.5))
        metrics[split] = {"accuracy": float((predicted == 0).mean()), "nll": float(samples[split].losses.mean())}
    return Row(name, metrics, samples, 1, 1, 1, 0, 1.0, ingredients, notes=notes)


def report(
    metric: str = "accuracy", best: str = "search", splits: tuple[str, ...] = ("test",), **shares: float
) -> Report:
    rows = [
        row(name, {"validation": 0.8, **dict.fromkeys(splits, share)}, best="model_4" if name == "individual" else "")
        for name, share in shares.items()
    ]
    return report_of(rows, metric, best=best, command="search")


def test_gains_stand_beside_their_intervals() -> None:
    said = answer(report(individual=0.70, greedy=0.79, search=0.80))
    assert said.startswith(
        "Use search, a mix of 3 checkpoints: accuracy 0.8000 on test, +10.0 points against model_4, the best single "
        "checkpoint (+7.1 to +12.9) and +1.0 points against greedy (+0.0 to +2.0)."
    )


def test_interval_is_of_the_paired_difference() -> None:
    (found, _) = differences(report(individual=0.70, greedy=0.79, search=0.80), ["test"])
    half = 1.959964 * np.std([1] * 40 + [0] * 360, ddof=1) / np.sqrt(COUNT)
    assert found.row == "individual"
    assert (found.gain, found.low, found.high) == pytest.approx((0.1, 0.1 - half, 0.1 + half), abs=1e-6)


def test_what_is_not_told_apart_is_said() -> None:
    said = answer(report(individual=0.8, greedy=0.8, search=0.8))
    assert said.count("not told apart") == 2
    assert said.endswith("any of them may be the better model.")


def test_a_loss_beyond_chance_is_said() -> None:
    said = answer(report(individual=0.9, greedy=0.8, search=0.8))
    assert "-10.0 points against model_4" in said
    assert said.endswith("It is worse than individual on test, beyond what chance explains.")


def test_less_of_a_loss_is_better_and_no_points() -> None:
    said = answer(report("nll", individual=0.7, search=0.8))
    assert "nll 0.6000 on test, +0.05 against model_4, the best single checkpoint (+0.03" in said
    assert " points" not in said


def test_the_best_single_checkpoint_is_called_by_its_name() -> None:
    said = answer(report(best="individual", individual=0.8, greedy=0.7))
    assert said.startswith("Use model_4, the best single checkpoint (row individual): accuracy 0.8000 on test, +10.0")


def test_without_a_test_split_the_selection_split_is_told_with_its_doubt() -> None:
    said = answer(report(individual=0.7, search=0.8, splits=()))
    assert "on selection" in said
    assert "which chose it: no test split was given" in said


def test_splits_beyond_three_are_left_to_the_table() -> None:
    said = answer(report(individual=0.7, search=0.8, splits=("a", "b", "c", "d", "e")))
    assert "on c" in said
    assert "on d" not in said
    assert "2 more splits are in the report" in said


def test_a_report_from_before_there_were_gains_has_no_interval() -> None:
    made = report(individual=0.7, search=0.8)
    old = made.model_copy(update={"methods": tuple(each.model_copy(update={"gains": {}}) for each in made.made)})
    assert "+10.0 points against model_4, the best single checkpoint (no interval)" in answer(old)
