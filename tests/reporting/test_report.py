"""Reports: intervals and tests against the formulas, and the tables."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb, sqrt
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mixopt.reporting.build import best_row
from mixopt.reporting.rows import Failure, LabelledOutcomes, Row
from mixopt.reporting.schema import SplitInfo, SweepPoint
from mixopt.reporting.statistics import interval, mcnemar, paired, wilson
from mixopt.reporting.stored import report_from
from mixopt.reporting.tables import compared_by, comparisons, table, ties, widths
from mixopt.values.metrics import METRICS, measured
from tests.reports import report_of


def samples(correct: list[bool], losses: list[float] | None = None) -> LabelledOutcomes:
    flags = np.array(correct)
    labels = np.zeros(len(flags), dtype=np.int64)
    return LabelledOutcomes(labels, np.where(flags, 0, 1), np.array(losses or [1.0] * len(flags)))


def row(name: str, correct: list[bool], evaluations: int = 3, **more: object) -> Row:
    found = samples(correct)
    scores = {"accuracy": float(found.correct.mean()), "nll": 1.0}
    return Row(
        name,
        metrics={"validation": scores, "test": scores},
        samples={"validation": found, "test": found},
        evaluations=evaluations,
        computed=2,
        images=1200,
        gradient_images=0,
        seconds=1.5,
        ingredients=1,
        **more,  # type: ignore[arg-type]
    )


def test_wilson_is_the_formula() -> None:
    correct = np.array([True] * 40 + [False] * 10)
    n, p, z = 50, 0.8, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(correct) == pytest.approx((middle - half, middle + half))
    assert interval(METRICS["accuracy"], samples(correct.tolist())) == wilson(correct)


def test_other_metrics_get_a_bootstrap_of_the_samples() -> None:
    random = np.random.default_rng(0)
    losses = random.exponential(1.0, 400)
    found = interval(METRICS["nll"], samples([True] * 400, losses.tolist()))
    half = 1.96 * losses.std(ddof=1) / sqrt(400)
    assert found == pytest.approx((losses.mean() - half, losses.mean() + half), abs=0.15 * half)
    assert found == interval(METRICS["nll"], samples([True] * 400, losses.tolist())), "the same every time"


def random_samples(count: int, seed: int, right: float = 0.8) -> LabelledOutcomes:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 10 % 4 % 3
    predicted = np.where(random.random(count) < right, labels, (labels + 1) % 3)
    above = np.where(predicted == labels, 0, random.integers(1, 9, count))
    return LabelledOutcomes(labels, predicted, random.random(count), above, 0.6 + 0.3 * random.random(count))


@pytest.mark.parametrize("name", ["f1_macro", "matthews", "worst_class_recall", "ece"])
def test_what_is_no_mean_gets_the_jackknifes_interval(name: str) -> None:
    """It holds the value of a far larger sample in about 95 % of the draws."""
    metric, truth = METRICS[name], random_samples(400_000, seed=1)
    true = metric.of(truth.labels, truth)
    held = 0
    for seed in range(200):
        low, high = interval(metric, random_samples(400, seed))
        held += low <= true <= high
    assert 180 <= held <= 200
    alone = random_samples(1, 0)
    assert interval(metric, alone) == (metric.of(alone.labels, alone),) * 2
    perfect = random_samples(50, 0, right=1.0)
    low, high = interval(metric, perfect)
    assert metric.bounds[0] <= low <= metric.of(perfect.labels, perfect) <= high <= metric.bounds[1]


def test_a_top_accuracy_gets_wilsons() -> None:
    found = random_samples(80, seed=0)
    assert found.above is not None
    assert interval(METRICS["top5"], found) == wilson(found.above < 5)


def test_paired_is_the_t_test() -> None:
    gains = np.random.default_rng(0).normal(0.1, 1.0, 50)
    assert paired(gains) == pytest.approx(float(stats.ttest_1samp(gains, 0).pvalue))
    assert paired(-gains) == pytest.approx(paired(gains))
    assert paired(np.zeros(9)) == paired(gains[:1]) == 1
    assert paired(np.full(9, 0.25)) == 0


def test_another_metric_is_tested_and_compared_by_itself() -> None:
    names = {"individual": 0.8, "greedy": 0.8, "search": 0.95}
    found = {name: random_samples(300, seed, right) for seed, (name, right) in enumerate(names.items())}
    rows = [
        replace(
            row(name, [True]),
            samples={"validation": each, "test": each},
            metrics=dict.fromkeys(("validation", "test"), measured(each.labels, each, 3)),
        )
        for name, each in found.items()
    ]
    report = report_of(rows, metric="f1_macro")
    assert report_from(report.to_json(), "report.json") == report
    p = report.row("search").paired_p
    assert p.keys() == {"individual", "greedy"}
    assert p["greedy"]["test"] < 0.001 < report.row("greedy").paired_p["individual"]["test"]
    assert compared_by(report) == "difference in f1_macro, p of a paired t-test"
    header, cells = comparisons(report)
    gain = report.row("search").search - report.row("greedy").search
    assert cells[2][header.index("test - greedy")] == f"{gain:+.4f} (p<0.001)"
    accuracy = report_of(rows, metric="accuracy")
    assert "paired_p" not in accuracy.as_dict()["methods"][0]
    assert compared_by(accuracy) == "difference in accuracy, exact McNemar p"


def test_a_users_own_number_may_have_a_metrics_name() -> None:
    """Its mean is what counts, higher is better, and no metric of classes stands in for it."""
    own = LabelledOutcomes(np.zeros(3, np.int64), np.full(3, -1), -np.array([0.2, 0.4, 0.9]))
    rows = [replace(row("one", [True]), samples={"validation": own}, metrics={"validation": {"ece": 0.5}})]
    report = report_of(rows, metric="ece")
    (made,) = report.made
    assert made.signals == {"ece": pytest.approx(0.5)}
    assert made.interval["validation"][1] > 0.5
    assert (
        best_row([*rows, replace(rows[0], name="two", samples={"validation": own.take(slice(2, 3))})], "ece") == "two"
    )


@pytest.mark.parametrize(("only_first", "only_second"), [(5, 1), (0, 7), (3, 3), (0, 0)])
def test_mcnemar_is_the_exact_binomial(only_first: int, only_second: int) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True] * 9)
    second = np.array([False] * only_first + [True] * only_second + [True] * 9)
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(comb(n, i) for i in range(k + 1)) / 2**n
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))


def test_report_has_the_promised_keys_and_is_json() -> None:
    curve = {"alpha": [{"x": 0.5, "value": 1.0}]}
    along: list[dict[str, Any]] = [{"x": 0.5, "search": 1.0, "test": {"test": 0.5}}]
    rows: list[Row | Failure] = [
        row("individual", [True, False]),
        row(
            "greedy",
            [True, True],
            curves=curve,
            sweep=[SweepPoint(**point) for point in along],
            notes={"rule": "strict"},
        ),
        Failure("model_stock", "no base"),
        row("search", [True, True], evaluations=9, models=3, peak_memory=5),
    ]
    report = report_of(rows, best="search")
    methods = {entry["name"]: entry for entry in json.loads(report.to_json())["methods"]}
    assert report_from(report.to_json(), "here") == report
    entry = methods["search"]
    assert entry["search"] == 1.0
    assert entry["test"] == {"test": 1.0}
    assert (entry["evaluations"], entry["images"], entry["seconds"], entry["ingredients"]) == (9, 1200, 1.5, 1)
    assert (entry["models"], entry["peak_memory"], entry["gradient_images"]) == (3, 5, 0)
    assert set(entry["mcnemar_p"]) == {"individual", "greedy"}
    assert set(methods["greedy"]["mcnemar_p"]) == {"individual"}
    assert entry["accuracy_interval"]["test"] == entry["interval"]["test"]
    assert entry["interval"]["test"][0] < 1.0
    assert (methods["greedy"]["curves"], methods["greedy"]["sweep"]) == (curve, along)
    assert methods["greedy"]["notes"] == {"rule": "strict"}
    assert methods["model_stock"] == {"name": "model_stock", "search": None, "test": {}, "error": "no base"}


def test_best_is_the_first_of_equals_in_the_metrics_direction() -> None:
    rows = [row("one", [True, False]), row("two", [True, True]), row("three", [True, True])]
    assert best_row(rows, "accuracy") == "two"
    assert best_row(rows, "nll") == "one"


def test_ties_are_single_models_as_good_as_the_best() -> None:
    rows = [row("one", [True]), row("two", [False]), row("three", [True]), row("four", [True], models=2)]
    assert ties(report_of(rows, best="one")) == ["three"]


def test_table_shows_every_split_and_cost() -> None:
    report = report_of([row("individual", [True, False])])
    header, cells = table(report)
    assert header == ["method", "selection", "test", "evaluations", "seconds", "ingredients"]
    assert cells == [["individual", "0.5000", "0.5000", "3", "1.5", "1"]]


def test_classes_left_out_are_named_in_report_and_table() -> None:
    splits = {
        "validation": SplitInfo(samples=9, fingerprint="f"),
        "test": SplitInfo(samples=9, fingerprint="a", among=2),
    }
    report = report_of([row("individual", [True, False])], splits=splits)
    assert report.as_dict()["splits"]["validation"] == {"samples": 9, "fingerprint": "f"}
    assert report.as_dict()["splits"]["test"]["among"] == 2
    assert table(report)[0][:3] == ["method", "selection", "test (among 2 classes)"]
    assert report_from(report.to_json(), "report.json") == report


def test_table_shows_intervals_memory_ensembles_and_failures() -> None:
    rows: list[Row | Failure] = [
        row("individual", [True, False] * 20, peak_memory=7_000_000),
        Failure("wise_ft", "no base"),
        row("ensemble", [True, True] * 20, models=4),
    ]
    header, cells = table(report_of(rows), intervals=True, details=True)
    assert header[4:6] == ["images", "seconds"]
    assert header[-2:] == ["peak MB", "inference"]
    low, high = wilson(np.array([True, False] * 20))
    assert cells[0][1] == f"0.5000 ±{(high - low) / 2:.4f}"
    assert cells[0][-2:] == ["7", "1x"]
    assert cells[1] == ["wise_ft", *["-"] * (len(header) - 1)]
    assert cells[2][-2:] == ["-", "4x"]


def test_widths_are_the_widest_half_intervals() -> None:
    report = report_of([row("a", [True] * 20), row("b", [True, False] * 10), Failure("c", "")])
    low, high = wilson(np.array([True, False] * 10))
    assert widths(report) == {"selection": pytest.approx((high - low) / 2), "test": pytest.approx((high - low) / 2)}


def test_comparisons_are_paired_differences_with_p_values() -> None:
    rows: list[Row | Failure] = [
        row("individual", [True, False] * 20),
        row("greedy", [True, True] * 20),
        Failure("wise_ft", "no base"),
        row("uniform", [False, True] * 20),
    ]
    header, cells = comparisons(report_of(rows))
    assert header == ["method", "selection - individual", "test - individual", "selection - greedy", "test - greedy"]
    assert [line[0] for line in cells] == ["individual", "greedy", "uniform"]
    assert cells[0] == ["individual", "-", "-", "-0.5000 (p<0.001)", "-0.5000 (p<0.001)"]
    assert cells[2][1:3] == ["+0.0000 (p=1.000)"] * 2


def test_the_best_row_is_chosen_by_samples_that_steered_nothing() -> None:
    labels = np.zeros(40, dtype=np.int64)

    def scored(name: str, steered: int, held: int) -> Row:
        """So many right of the first 30, and of the last 10."""
        predicted = np.ones(40, dtype=np.int64)
        predicted[:steered] = 0
        predicted[30 : 30 + held] = 0
        samples = LabelledOutcomes(labels, predicted, np.where(predicted == 0, 0.1, 2.0))
        accuracy = float(np.mean(predicted == 0))
        return Row(name, {"validation": {"accuracy": accuracy}}, {"validation": samples}, 0, 0, 0, 0, 0.0, 1)

    fitted, sound, poor = scored("fitted", 30, 4), scored("sound", 27, 6), scored("poor", 5, 10)
    between = [scored(f"row {number}", 20 + number, 1) for number in range(4)]
    rows = [poor, fitted, *between, sound]
    assert best_row(rows, "accuracy") == "fitted"
    assert best_row(rows, "accuracy", 40) == "fitted"
    # The poor one does best on the samples held back, but is not among the best five where all steered.
    assert best_row(rows, "accuracy", 30) == "sound"
    assert best_row([scored("first", 20, 5), scored("second", 20, 5)], "accuracy", 30) == "first"
