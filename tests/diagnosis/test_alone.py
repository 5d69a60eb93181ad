"""On how much of the test splits checkpoints are scored, given how much a page may spend."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mixopt.diagnosis.alone import LEAST_ALONE, _affordable_samples
from mixopt.scoring.objective import Objective

SIZES = {"test": 3000, "small": 100, "shift": 2000, "own": 50}


class Split:
    def __init__(self, name: str) -> None:
        self.arrays = {} if name == "own" else {"images": np.zeros(1)}
        self.name = name

    def __len__(self) -> int:
        return SIZES[self.name]


def affordable(tests: list[str], images: float) -> dict[str, int]:
    objective: Any = SimpleNamespace(evaluators={name: SimpleNamespace(split=Split(name)) for name in SIZES})
    return _affordable_samples(cast(Objective, objective), tests, images)


@pytest.mark.parametrize(
    ("tests", "images", "expected"),
    [
        (["test", "small", "shift"], float("inf"), {"test": 3000, "small": 100, "shift": 2000}),
        (["test", "small", "shift"], 2100, {"test": 1000, "small": 100, "shift": 1000}),
        (["test", "small", "shift"], 4500, {"test": 2400, "small": 100, "shift": 2000}),
        (["test", "small", "shift"], 2 * LEAST_ALONE, {"test": 500, "small": 100}),
        (["test", "small", "shift"], 200, {}),
        (["test"], LEAST_ALONE, {"test": LEAST_ALONE}),
        (["test"], LEAST_ALONE - 1, {}),
        (["test", "own"], 450, {"test": 400, "own": 50}),
        (["test", "own"], 90, {}),
        ([], 1000, {}),
    ],
)
def test_splits_share_what_may_be_spent(tests: list[str], images: float, expected: dict[str, int]) -> None:
    found = affordable(tests, images)
    assert found == expected
    assert sum(found.values()) <= images
