"""The last choice: by samples that steered nothing, as far as the evidence carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt import load_spec, open_objective
from mixopt.scoring.objective import Objective
from mixopt.scoring.outcomes import Outcomes
from mixopt.scoring.score import Score
from mixopt.stages.confirm import choose_candidate, describe
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix, one_hot


@pytest.fixture
def objective(clip_pool_template: Path, tmp_path: Path) -> Objective:
    return open_objective(load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu", "confirm": 0.5}))


@pytest.fixture
def pretend(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets each checkpoint be right on so many of the samples held back, and on all that steer."""
    rights: dict[Mix, int] = {}
    labels = objective.evaluators["validation"].split.labels
    steering = objective.tuning

    def score(self: Objective, mix: Mix, split: str = "validation") -> Score:
        predicted = labels.copy()
        predicted[steering + rights[mix] :] = (labels[steering + rights[mix] :] + 1) % 3
        found = Outcomes(predicted[: self.tuning], np.zeros(self.tuning))
        self.tally.ask(self.key(mix, split), len(found), 0.0)
        return Score(0.0, {}, found, 0.0, cached=False)

    monkeypatch.setattr(Objective, "score", score)
    groups = make_groups("whole", objective.pool.sizes)

    def call(*counts: int) -> list[Mix]:
        mixes = [one_hot(groups, objective.pool.columns, name) for name in objective.pool.columns[: len(counts)]]
        rights.update(zip(mixes, counts, strict=True))
        return mixes

    return call


def test_the_candidate_that_gains_most_is_taken_as_far_as_the_evidence_carries(
    objective: Objective, pretend: Any
) -> None:
    held = len(objective.evaluators["validation"].split) - objective.tuning
    start, worse, better = pretend(held // 2, held // 3, held)
    choice = choose_candidate(objective, start, [worse, better])
    gains = np.array([0.0] * (held // 2) + [1.0] * (held - held // 2))
    error = gains.std(ddof=1) / np.sqrt(held)
    assert choice.candidate == 1
    assert choice.gain == pytest.approx(gains.mean())
    assert choice.share == pytest.approx(1 - 2 * np.log(2) * (error / gains.mean()) ** 2)
    expected = (1 - choice.share) * start.coefficients + choice.share * better.coefficients
    np.testing.assert_allclose(choice.mix.coefficients, expected)
    assert choice.tally.images == 3 * len(objective.evaluators["validation"].split)
    assert "lies" in describe(choice, objective)


def test_the_best_of_many_needs_more_evidence_than_one_alone(objective: Objective, pretend: Any) -> None:
    held = len(objective.evaluators["validation"].split) - objective.tuning
    start, candidate = pretend(held // 2, held // 2 + 2)  # a gain of 1.4 standard errors
    alone = choose_candidate(objective, start, [candidate])
    assert alone.candidate == 0
    assert 0 < alone.share < 1
    among = choose_candidate(objective, start, [candidate] * 5)
    assert among.gain == alone.gain
    assert among.mix == start


@pytest.mark.parametrize("more", [0, 1, -5])
def test_thin_evidence_leaves_the_start(objective: Objective, pretend: Any, more: int) -> None:
    held = len(objective.evaluators["validation"].split) - objective.tuning
    start, candidate = pretend(held // 2, held // 2 + more)
    choice = choose_candidate(objective, start, [candidate])
    assert choice.mix == start
    assert choice.candidate is None
    assert choice.share == 0
    assert "the start stays" in describe(choice, objective)


def test_with_nothing_to_confirm_by_the_first_candidate_is_taken(clip_pool_template: Path, tmp_path: Path) -> None:
    spec = load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu", "confirm": 0})
    objective = open_objective(spec)
    groups = make_groups("whole", objective.pool.sizes)
    mixes = [one_hot(groups, objective.pool.columns, name) for name in objective.pool.columns[:3]]
    choice = choose_candidate(objective, mixes[0], mixes[1:])
    assert choice.mix == mixes[1]
    assert choice.evidence == {}
    assert objective.tally.evaluations == 0
    assert "--confirm 0" in describe(choice, objective)
