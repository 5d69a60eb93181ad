"""Trials asked ahead: those of a run that asks one after another, and nobody waits for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from mixopt import Objective, load_spec, open_objective
from mixopt import study as studies
from mixopt.listener import Listener, TrialEvent
from mixopt.spaces.linear import Residual
from mixopt.study.samplers import STARTUP, draws_alone
from mixopt.values.groups import make_groups
from mixopt.values.mix import one_hot
from tests.workers.scripted import crewed

TRIALS = 16


def space_of(objective: Objective) -> Residual:
    groups, columns = make_groups("block", objective.pool.sizes), objective.pool.columns
    first, *others = [one_hot(groups, columns, name) for name in columns]
    return Residual(first, dict(zip(columns[1:], others, strict=True)), 0.5)


def run(objective: Objective, folder: Path, sampler: str, trials: int, **more: Any) -> list[optuna.trial.FrozenTrial]:
    """Bring a study to so many trials; what it holds then."""
    storage = studies.open_storage(folder / "study.journal", None, objective.stopwatch)
    study = studies.open_study(storage, "study", "maximize", metric="accuracy")
    schedule = studies.Schedule(sampler=sampler, trials=trials, seed=3, **more)
    studies.run_trials(study, objective, space_of(objective), schedule)
    return study.get_trials(deepcopy=False)


def facts(trials: list[optuna.trial.FrozenTrial]) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.state, trial.values, trial.params, trial.user_attrs["metrics"]) for trial in trials]


@pytest.mark.parametrize("race", [False, True])
@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "optuna.samplers:QMCSampler"])
def test_trials_are_those_of_one_process(
    sampler: str, race: bool, clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixopt.scoring.racing.FEWEST", 10)
    plain = {"models": clip_pool_template, "cache": tmp_path / "one", "device": "cpu", "precision": "fp32"}
    one = open_objective(load_spec({**plain, "batch_size": 10}))
    expected = run(one, tmp_path, sampler, TRIALS, race=race)
    folder = tmp_path / "crew"
    with crewed(clip_pool_template, folder, count=3) as (objective, _):
        run(objective, folder, sampler, 7, race=race)
        run(objective, folder, sampler, 12, race=race)  # goes on
    again = open_objective(load_spec({**plain, "cache": folder, "batch_size": 10}))
    found = run(again, folder, sampler, TRIALS, race=race)  # without workers
    assert facts(found) == facts(expected)


def test_trials_that_need_no_values_are_under_way_before_their_turn(clip_pool_template: Path, tmp_path: Path) -> None:
    open_trials: list[int] = []
    with crewed(clip_pool_template, tmp_path, count=3) as (objective, _):
        storage = studies.open_storage(tmp_path / "study.journal", None, objective.stopwatch)
        study = studies.open_study(storage, "study", "maximize", metric="accuracy")

        def told(event: TrialEvent) -> None:
            states = [trial.state for trial in study.get_trials(deepcopy=False)]
            open_trials.append(states.count(optuna.trial.TrialState.RUNNING))

        schedule = studies.Schedule(sampler="random", trials=10, seed=0)
        studies.run_trials(study, objective, space_of(objective), schedule, Listener(trial=told))
    assert max(open_trials) == objective.ahead
    assert open_trials[-1] == 0, "none is asked that is not wanted"


@pytest.mark.parametrize(
    ("sampler", "alone"),
    [
        ("random", range(99)),
        ("optuna.samplers:QMCSampler", range(99)),
        ("tpe", range(STARTUP)),
        ("gp", range(STARTUP)),
        ("cmaes", range(0)),
        ("surface", range(0)),
        ("optuna.samplers:TPESampler", range(0)),
    ],
)
def test_which_trials_need_no_values(sampler: str, alone: range) -> None:
    assert [draws_alone(sampler, number) for number in range(99)] == [number in alone for number in range(99)]


def test_draws_of_a_startup_are_the_same_whatever_was_told(clip_pool_template: Path, tmp_path: Path) -> None:
    """What `draws_alone` rests on."""
    drawn = []
    for known in (0, STARTUP - 2):
        study = optuna.create_study(sampler=studies.make_sampler("tpe", 5, None))
        for number in range(known):
            study.add_trial(
                optuna.trial.create_trial(
                    value=float(number),
                    params={"x": 0.1},
                    distributions={"x": optuna.distributions.FloatDistribution(-1, 1)},
                )
            )
        drawn.append(study.ask().suggest_float("x", -1, 1))
    assert np.ptp(drawn) == 0
