"""What a journal says for reports: what the value varied by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest

from mixopt.errors import RunError
from mixopt.study import open_storage, read_importances
from mixopt.study.reading import IMPORTANCE_TRIALS
from mixopt.study.samplers import BOX


def told(folder: Path, count: int, directions: int = 1) -> Path:
    """A journal of trials whose value depends on ``a`` alone."""
    journal, random = folder / "study.journal", np.random.default_rng(0)
    storage = open_storage(journal, None)
    study = optuna.create_study(study_name="run", storage=storage, directions=["maximize"] * directions)
    for _ in range(count):
        a, b = random.uniform(-1, 1, 2).tolist()
        values = [-((a - 0.5) ** 2)] * directions
        study.add_trial(
            optuna.trial.create_trial(values=values, params={"a": a, "b": b}, distributions={"a": BOX, "b": BOX})
        )
    return journal


def test_importances_name_the_dimension_that_matters(tmp_path: Path) -> None:
    found = read_importances(told(tmp_path, 80))
    assert set(found) == {"a", "b"}
    assert found["a"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(("count", "directions"), [(IMPORTANCE_TRIALS - 1, 1), (40, 2)])
def test_too_few_trials_and_several_values_tell_nothing(tmp_path: Path, count: int, directions: int) -> None:
    assert read_importances(told(tmp_path, count, directions)) == {}


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text("nothing\n")
    with pytest.raises(RunError, match=r"study\.journal: line 1"):
        read_importances(tmp_path / "study.journal")
