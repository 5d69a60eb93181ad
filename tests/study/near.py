"""A search without models: a space of four columns and two layer groups, and a score by distance from a point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mixopt import Objective, ScoreError, Simplex
from mixopt import study as search
from mixopt.scoring.outcomes import Outcomes
from mixopt.scoring.score import Score
from mixopt.scoring.stopwatch import Stopwatch
from mixopt.values.groups import Groups
from mixopt.values.kept_logits import KeptLogits
from mixopt.values.metrics import METRICS
from mixopt.values.mix import Mix, constant
from mixopt.values.samples import VALIDATION
from tests.unhurried import Unhurried
from tests.values.kept import rounded

POPULATION = 4
TRIALS = 14  # the start, three generations, and one trial of a fourth
COLUMNS = ("a", "b", "c", "d")
GROUPS = Groups((("lower", ("one",)), ("upper", ("two",))))
SPACE = Simplex(constant(GROUPS, COLUMNS, np.full(4, 0.25)), COLUMNS, 0.5)
SAMPLES, CLASSES = 12, 3
IDENTITY = {**{f"checkpoint {name}": "0" * 12 for name in COLUMNS}, "metric": "accuracy", "seed": 5}


class Near(Unhurried):
    """Scores a mix by its distance from a point, and fails where told to."""

    def __init__(self, failing: Callable[[int], bool] = lambda call: False) -> None:
        self.stopwatch = Stopwatch()
        self.samples = 3
        self.metric = self.signal = METRICS["accuracy"]
        self.weights: dict[str, float] = {}
        split = SimpleNamespace(labels=np.arange(SAMPLES) % CLASSES)
        self.evaluators = {VALIDATION: SimpleNamespace(split=split, device=torch.device("cpu"))}
        self.calls = 0
        self._failing = failing

    def score(self, mix: Mix) -> Score:
        self.calls += 1
        if self._failing(self.calls - 1):
            raise ScoreError("not finite", "upper")
        value = 1 - float(np.sum((mix.coefficients - [0.7, 0.1, 0.2, 0.0]) ** 2))
        return Score(value, {"accuracy": value}, outcomes_at(mix), 0.0, cached=True, signal=value)

    def needing(self, *fields: str) -> Near:
        """Its outcomes always have logits."""
        return self

    def count(self, split: str) -> int:
        """Samples of the one split."""
        return SAMPLES

    def outcomes(self, mix: Mix, split: str, count: int) -> Outcomes:
        """What a mix does on the first samples."""
        return outcomes_at(mix).first(count)


def outcomes_at(mix: Mix) -> Outcomes:
    """Logits that are quadratic functions of the coefficients, with little meaning."""
    random = np.random.default_rng(0)
    rows = mix.coefficients.ravel()
    slopes = random.normal(size=(SAMPLES, CLASSES, rows.size))
    logits = slopes @ rows + (slopes @ rows) ** 2
    chances = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    kept = KeptLogits(rounded(chances), None, None, CLASSES)
    return Outcomes(chances.argmax(axis=1), -chances[np.arange(SAMPLES), np.arange(SAMPLES) % CLASSES], logits=kept)


def run_at(
    folder: Path,
    sampler: str = "cmaes",
    objective: Near | None = None,
    trials: int = TRIALS,
    url: str | None = None,
    name: str = "x",
) -> optuna.Study:
    """A study of so many trials, new or gone on with; as `mixopt.search` opens, checks and runs one."""
    near, journal = objective or Near(), folder / "study.journal"
    with search.storage_errors(journal, url):
        storage = search.open_storage(journal, url, near.stopwatch)
        study = search.open_study(storage, name, "maximize", metric="accuracy")
        search.check_identity(study, IDENTITY, folder, ["maximize"])
        space = search.keep_space(study, IDENTITY, lambda: SPACE)
        schedule = search.Schedule(sampler, trials, seed=5, population=POPULATION)
        search.run_trials(study, cast(Objective, near), space, schedule)
    return study


def plain(folder: Path) -> optuna.Study:
    """The study as Optuna by itself reads it."""
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name="x", storage=storage)


def facts_of(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [
        (trial.number, trial.state, trial.value, trial.params, trial.user_attrs.get("coefficients"))
        for trial in study.trials
    ]
