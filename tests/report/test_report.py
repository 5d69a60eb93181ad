"""Reports: intervals and tests against statsmodels-free references, and the table."""

from __future__ import annotations

import json
from math import comb, sqrt

import numpy as np
import pytest

from mixopt.report import Row, make_report, mcnemar, table, wilson


def row(name: str, correct: list[bool], evaluations: int = 3) -> Row:
    flags = np.array(correct)
    scores = {"accuracy": float(flags.mean()), "nll": 1.0}
    return Row(
        name,
        metrics={"search": scores, "test": scores},
        correct={"search": flags, "test": flags},
        evaluations=evaluations,
        computed=2,
        images=12,
        seconds=1.5,
        ingredients=1,
    )


def test_wilson_is_the_formula() -> None:
    correct = np.array([True] * 40 + [False] * 10)
    n, p, z = 50, 0.8, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(correct) == pytest.approx((middle - half, middle + half))


@pytest.mark.parametrize(("only_first", "only_second"), [(5, 1), (0, 7), (3, 3), (0, 0)])
def test_mcnemar_is_the_exact_binomial(only_first: int, only_second: int) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True] * 9)
    second = np.array([False] * only_first + [True] * only_second + [True] * 9)
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(comb(n, i) for i in range(k + 1)) / 2**n
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))


def test_report_has_the_promised_keys_and_is_json() -> None:
    rows = [row("individual", [True, False]), row("greedy", [True, True]), row("search", [True, True], evaluations=9)]
    report = make_report(rows, "accuracy", {"best": "search"}, versus=("individual", "greedy"))
    entry = json.loads(json.dumps(report))["methods"][2]
    assert entry["name"] == "search"
    assert entry["search"] == 1.0
    assert entry["test"] == {"test": 1.0}
    assert (entry["evaluations"], entry["images"], entry["seconds"], entry["ingredients"]) == (9, 12, 1.5, 1)
    assert set(entry["mcnemar_p"]) == {"individual", "greedy"}
    assert set(report["methods"][1]["mcnemar_p"]) == {"individual"}
    assert entry["accuracy_interval"]["test"][0] < 1.0


def test_table_shows_every_split_and_cost() -> None:
    report = make_report([row("individual", [True, False])], "accuracy", {}, versus=())
    header, cells = table(report)
    assert header == ["method", "selection", "test", "evaluations", "seconds", "ingredients"]
    assert cells == [["individual", "0.5000", "0.5000", "3", "1.5", "1"]]
