"""Half-way mixes: what they are compared with, and how many can be afforded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mixopt
from mixopt.diagnosis.midpoints import LEAST, MOST, affordable, midpoints
from mixopt.listener import Listener
from mixopt.scoring.objective import Objective
from mixopt.values.groups import make_groups
from mixopt.values.mix import constant


@pytest.fixture
def objective(clip_pool: Path, tmp_path: Path) -> Objective:
    spec = mixopt.load_spec({"models": clip_pool, "cache": tmp_path / "cache", "device": "cpu", "precision": "fp32"})
    return mixopt.open_objective(spec)


def test_midpoints_are_the_mean_model_less_the_mean_of_the_scores(objective: Objective) -> None:
    names, samples = objective.pool.ingredients[:3], 40
    found = midpoints(objective, names, samples, Listener())
    labels = objective.evaluators["validation"].split.labels[:samples]
    groups = make_groups("whole", objective.pool.sizes)

    def reference(one: str, other: str) -> tuple[float, float]:
        """From whole outcomes of mixes made here."""
        values = []
        for row in ({one: 0.5, other: 0.5}, {one: 1.0}, {other: 1.0}):
            row_of = [row.get(column, 0.0) for column in objective.pool.columns]
            seen = objective.outcomes(constant(groups, objective.pool.columns, np.array(row_of)), "validation", samples)
            values.append((float(np.mean(seen.predicted == labels)), -float(seen.losses.mean())))
        middle, first, second = values
        return middle[0] - (first[0] + second[0]) / 2, middle[1] - (first[1] + second[1]) / 2

    for one in range(3):
        assert found.gains[one][one] is None
        for other in range(3):
            if one != other:
                gain, loss = reference(names[one], names[other])
                assert found.gains[one][other] == pytest.approx(gain, abs=1e-6)
                assert found.loss_gains[one][other] == pytest.approx(loss, abs=1e-5)
    assert not objective.tally.asked, "nothing is tallied"


def test_a_checkpoint_with_itself_gains_nothing(objective: Objective) -> None:
    name = objective.pool.ingredients[0]
    found = midpoints(objective, [name, name], 20, Listener())
    assert found.gains[0][1] == pytest.approx(0, abs=1e-6)
    assert found.loss_gains[0][1] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("checkpoints", "samples", "images", "expected"),
    [
        (16, 5000, 60_000, (16, 500)),
        (16, 5000, 36_000, (16, 300)),
        (72, 5000, 60_000, (35, 100)),
        (4, 50, 10**6, (4, 50)),
        (16, 5000, 99, (1, 99)),
        (2, 5000, 10**6, (2, MOST)),
    ],
)
def test_what_can_be_afforded(checkpoints: int, samples: int, images: int, expected: tuple[int, int]) -> None:
    count, each = affordable(checkpoints, samples, images)
    assert (count, each) == expected
    assert count < 2 or each >= min(samples, LEAST)
    assert count * (count - 1) // 2 * each <= images
