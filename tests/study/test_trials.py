"""The search: equal however it is interrupted, refused where something changed, plain Optuna for users."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import mixopt
from mixopt import (
    Listener,
    MixoptError,
    Objective,
    ScoreError,
    Simplex,
    SpecError,
    load_spec,
    one_hot,
    open_objective,
)
from mixopt import study as search
from mixopt.scoring.engine import Engine
from mixopt.scoring.score import Score
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix
from mixopt.weights.saving import load_recipe
from tests.listening import Recorder
from tests.study.killing import Killed, facts_of, kill_after, model_hash, trials_of

SAMPLERS = ("surface", "cmaes", "tpe", "gp", "random")
# The search in its simplest form; tests/test_default_search.py has the default one.
PLAIN = {"space": "simplex", "start": "greedy", "signal": "metric", "confirm": 0, "race": "off"}
TRIALS = 14  # CMA-ES's first generation has 12 trials in these dimensions


def small(pool: Path, folder: Path, sampler: str = "cmaes", **more: Any) -> dict[str, Any]:
    return {
        "models": pool,
        "trials": TRIALS,
        "sampler": sampler,
        "groups": "2",
        "device": "cpu",
        "out": folder / "run",
        "cache": folder / "cache",
        **PLAIN,
        **more,
    }


@pytest.fixture(scope="module")
def whole(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run folder of an uninterrupted search, made once per sampler."""
    made: dict[str, Path] = {}

    def get(sampler: str) -> Path:
        if sampler not in made:
            folder = tmp_path_factory.mktemp(sampler)
            made[sampler] = mixopt.search(**small(clip_pool_template, folder, sampler)).folder
        return made[sampler]

    return get


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("first", "second", "torn"), [(4, 3, False), (4, 1, True), (8, 9, True), (17, 1, True)])
def test_killed_twice_equals_uninterrupted(
    sampler: str,
    first: int,
    second: int,
    torn: bool,
    clip_pool_template: Path,
    tmp_path: Path,
    whole: Callable[[str], Path],
) -> None:
    options = small(clip_pool_template, tmp_path, sampler)
    for writes in (first, second):
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, writes, torn)
            with pytest.raises(Killed):
                mixopt.search(**options)
    result = mixopt.search(**options)
    assert facts_of(result.folder) == facts_of(whole(sampler))
    assert model_hash(result.folder) == model_hash(whole(sampler))
    assert (result.folder / "recipe.json").read_bytes() == (whole(sampler) / "recipe.json").read_bytes()


def test_kill_9_and_sigterm_lose_nothing_finished(clip_pool_template: Path, tmp_path: Path) -> None:
    options = small(clip_pool_template, tmp_path / "killed", "random", trials=400)
    flags = [f"--{key}={value}" for key, value in options.items()]
    command = [sys.executable, "-m", "mixopt", "search", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    journal = options["out"] / "study.journal"
    ended = []
    for stop in (signal.SIGKILL, signal.SIGTERM):
        size = journal.stat().st_size if journal.exists() else 0
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                if journal.exists() and journal.stat().st_size > size + 20_000:
                    break
                time.sleep(0.002)
            process.send_signal(stop)
            _, told = process.communicate()
            ended.append((process.returncode, told.decode()))
    assert ended[0][0] == -signal.SIGKILL
    code, errors = ended[1]
    assert code == 130, errors
    assert "the same command again" in errors
    finished = [facts for facts in facts_of(options["out"]) if facts[1] == TrialState.COMPLETE]
    assert 2 <= len(finished) < 400
    mixopt.search(**options)
    untouched = mixopt.search(**small(clip_pool_template, tmp_path / "whole", "random", trials=400)).folder
    assert facts_of(options["out"]) == facts_of(untouched)
    assert model_hash(options["out"]) == model_hash(untouched)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_a_journal_write_is_whole(
    stop: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    real = JournalFileBackend.append_logs

    def signalled(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        signal.raise_signal(stop)
        real(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", signalled)
    try:
        storage = search.open_storage(tmp_path / "study.journal", None)
        with pytest.raises(KeyboardInterrupt):
            search.open_study(storage, "x", "maximize")
    finally:
        signal.signal(signal.SIGTERM, before)
    monkeypatch.undo()
    assert optuna.load_study(study_name="x", storage=search.open_storage(tmp_path / "study.journal", None)).trials == []
    assert not list(tmp_path.glob("*.lock*"))


def test_a_finished_search_scores_nothing_again(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = small(clip_pool_template, tmp_path, "random")
    before = mixopt.search(**options)

    def fail(*_: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(Engine, "fuse", fail)
    after = mixopt.search(**options)
    rows = [
        {key: entry[key] for key in ("name", "search", "test", "evaluations", "images")}
        for report in (before.report, after.report)
        for entry in report.as_dict()["methods"]
    ]
    assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]


def test_more_trials_continue_the_same_study(clip_pool_template: Path, tmp_path: Path) -> None:
    options = small(clip_pool_template, tmp_path, "random", trials=4)
    mixopt.search(**options)
    before = facts_of(tmp_path / "run")
    mixopt.search(**{**options, "trials": 9})
    after = facts_of(tmp_path / "run")
    assert after[:4] == before
    assert len(after) == 9


def test_trial_0_is_the_start_with_full_parameters(whole: Callable[[str], Path]) -> None:
    first = trials_of(whole("cmaes"))[0]
    assert first.state == TrialState.COMPLETE
    assert set(first.params.values()) == {0.0}
    assert len(first.params) == len(first.distributions) == 8  # 2 groups x 4 ingredients


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trials_wanted_are_complete_trials_and_the_best_is_crowned(sampler: str, whole: Callable[[str], Path]) -> None:
    trials = trials_of(whole(sampler))
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    assert len({tuple(trial.params.values()) for trial in trials}) == TRIALS
    if sampler == "surface":  # the mix that cross-fitting chooses is no trial's: tests/stages/test_crossfit.py
        return
    best = max(trials, key=lambda trial: (trial.value or 0.0, -trial.number))
    recipe = load_recipe(whole(sampler) / "recipe.json")
    assert recipe.mix.coefficients.tolist() == best.user_attrs["coefficients"]


def test_cmaes_is_told_whole_generations(whole: Callable[[str], Path]) -> None:
    trials = trials_of(whole("cmaes"))
    generations = [trial.system_attrs.get("cma:generation") for trial in trials]
    population = search.population_of("cmaes", 8, None)
    assert generations == [None, *[0] * population, *[1] * (TRIALS - 1 - population)]


def test_another_seed_gives_other_trials(
    clip_pool_template: Path, tmp_path: Path, whole: Callable[[str], Path]
) -> None:
    result = mixopt.search(**small(clip_pool_template, tmp_path, "random", seed=1))
    assert [facts[3] for facts in facts_of(result.folder)][1:] != [facts[3] for facts in facts_of(whole("random"))][1:]


def test_a_users_own_sampler_runs_and_resumes(clip_pool_template: Path, tmp_path: Path) -> None:
    options = small(clip_pool_template, tmp_path, "optuna.samplers:QMCSampler", trials=6)
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 9, torn=False)
        with pytest.raises(Killed):
            mixopt.search(**options)
    finished = [facts for facts in facts_of(tmp_path / "run") if facts[1] == TrialState.COMPLETE]
    mixopt.search(**options)
    after = facts_of(tmp_path / "run")
    assert [facts for facts in after if facts[0] < len(finished)] == finished
    assert len(after) == 6


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("optuna.samplers:Nothing", "cannot import"),
        ("builtins:list", "expected an optuna sampler"),
        ("builtins:dict", "cannot be made"),
    ],
)
def test_what_is_not_a_sampler_is_refused(name: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        search.make_sampler(name, 0, None)


def test_timeout_stops_asking_and_crowns_what_is_there(clip_pool_template: Path, tmp_path: Path) -> None:
    heard = Recorder()
    options = small(clip_pool_template, tmp_path, "random", timeout=1e-6)
    result = mixopt.search(listener=heard.listener, **options)
    assert not result.finished
    assert result.report.as_dict()["trials"] == {"complete": 1}
    assert any("--timeout" in text for text in heard.warnings)
    assert mixopt.search(**{**options, "timeout": None}).report.as_dict()["trials"] == {"complete": TRIALS}


class Flaky:
    """An objective that fails where told to."""

    def __init__(self, objective: Objective, failing: Callable[[int], bool]) -> None:
        self._objective = objective
        self._failing = failing
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def score(self, mix: Mix, split: str = "validation") -> Score:
        self.calls += 1
        if self._failing(self.calls - 1):
            raise ScoreError("not finite", "head")
        return self._objective.score(mix, split)


def own_study(
    pool: Path, tmp_path: Path, failing: Callable[[int], bool], listener: Listener | None = None
) -> optuna.Study:
    objective = open_objective(load_spec({"models": pool, "cache": tmp_path / "cache", "device": "cpu"}))
    space = Simplex(
        one_hot(make_groups("2", objective.pool.sizes), objective.pool.columns, "model_0"), ["model_1"], 0.5
    )
    study = search.open_study(search.open_storage(tmp_path / "study.journal", None), "x", "maximize")
    flaky: Any = Flaky(objective, failing)
    search.run_trials(study, flaky, space, search.Schedule("cmaes", 9, seed=0, population=4), listener)
    return study


def test_a_failed_trial_is_told_fail_recorded_and_replaced(clip_pool_template: Path, tmp_path: Path) -> None:
    heard = Recorder()
    study = own_study(clip_pool_template, tmp_path, lambda call: call in (2, 3), heard.listener)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == 9
    assert [number for number, state in enumerate(states) if state == TrialState.FAIL] == [2, 3]
    assert study.trials[2].user_attrs["group"] == "head"
    assert "coefficients" in study.trials[2].user_attrs
    assert sum("failed and is replaced" in text for text in heard.warnings) == 2
    assert [event.value is None for event in heard.trials if event.number in (2, 3)] == [True, True]


def test_three_failures_in_a_row_stop_the_run(clip_pool_template: Path, tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match="three trials in a row"):
        own_study(clip_pool_template, tmp_path, lambda call: call > 1)
    storage = search.open_storage(tmp_path / "study.journal", None)
    states = [trial.state for trial in optuna.load_study(study_name="x", storage=storage).trials]
    assert states.count(TrialState.COMPLETE) == 2
    assert states.count(TrialState.FAIL) == 3


def test_optuna_objective_is_an_ordinary_objective(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = open_objective(load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu"}))
    start = one_hot(make_groups("2", objective.pool.sizes), objective.pool.columns, "model_0")
    space = Simplex(start, objective.pool.ingredients, 0.5)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(search.optuna_objective(objective, space), n_trials=5)
    for trial in study.trials:
        rows = np.array(trial.user_attrs["coefficients"])
        mix = Mix(start.groups, start.columns, rows)
        assert objective.score(mix).value == trial.value
        assert np.array_equal(
            space.to_mix(np.array([trial.params[label] for label in space.labels])).coefficients, rows
        )


def test_a_sqlite_storage_does_as_well(clip_pool_template: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    mixopt.search(**small(clip_pool_template, tmp_path, "random", trials=4, storage=url))
    study = optuna.load_study(study_name=None, storage=url)
    assert len(study.trials) == 4
    assert not (tmp_path / "run" / "study.journal").exists()


def test_start_from_a_recipe_of_another_run(
    clip_pool_template: Path, tmp_path: Path, whole: Callable[[str], Path]
) -> None:
    recipe = whole("cmaes") / "recipe.json"
    result = mixopt.search(**small(clip_pool_template, tmp_path, "random", trials=3, start=str(recipe)))
    old = load_recipe(recipe)
    first = trials_of(result.folder)[0]
    assert np.array_equal(np.array(first.user_attrs["coefficients"]), old.mix.coefficients)
    assert first.value == old.scores["search"]["accuracy"]


def test_nll_is_minimised(clip_pool_template: Path, tmp_path: Path) -> None:
    result = mixopt.search(**small(clip_pool_template, tmp_path, "random", metric="nll", trials=6))
    rows = {entry["name"]: entry["search"] for entry in result.report.as_dict()["methods"]}
    assert rows["search"] <= min(rows["individual"], rows["uniform"], rows["greedy"]) + 1e-6


def test_an_aborted_first_command_leaves_no_direction_behind(clip_pool_template: Path, tmp_path: Path) -> None:
    storage = search.open_storage(tmp_path / "study.journal", None)
    search.open_study(storage, "x", "maximize")
    again = search.open_study(search.open_storage(tmp_path / "study.journal", None), "x", "minimize")
    assert again.direction == optuna.study.StudyDirection.MINIMIZE


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("sampler", "optuna.samplers:Nothing", "cannot import"),
        ("groups", "99999", "expected a number from 1"),
        ("start", "nowhere.json", "no such file"),
        ("storage", "foo://bar", "cannot be opened"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(
    option: str, value: str, told: str, clip_pool_template: Path, tmp_path: Path
) -> None:
    with pytest.raises(MixoptError, match=told):
        mixopt.search(**small(clip_pool_template, tmp_path, **{option: value}))
    assert not (tmp_path / "cache" / "outcomes").exists()
    assert not (tmp_path / "run").exists()


def test_an_existing_result_is_not_overwritten_by_another_storage(clip_pool_template: Path, tmp_path: Path) -> None:
    mixopt.search(**small(clip_pool_template, tmp_path, "random", trials=2))
    before = (tmp_path / "run" / "recipe.json").read_bytes()
    with pytest.raises(MixoptError, match="result of another study"):
        mixopt.search(**small(clip_pool_template, tmp_path, "tpe", trials=2, storage=f"sqlite:///{tmp_path / 'x.db'}"))
    assert (tmp_path / "run" / "recipe.json").read_bytes() == before


def test_one_study_of_a_database_belongs_to_one_run_folder(clip_pool_template: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    mixopt.search(**small(clip_pool_template, tmp_path / "one", "random", trials=2, storage=url))
    with pytest.raises(MixoptError, match=r"belongs to the run folder .*one/run, this is .*two/run"):
        mixopt.search(**small(clip_pool_template, tmp_path / "two", "random", trials=2, storage=url))


def test_failed_trials_count_the_same_after_a_resume(clip_pool_template: Path, tmp_path: Path) -> None:
    study = own_study(clip_pool_template, tmp_path, lambda call: call in (2, 3))
    objective = open_objective(load_spec({"models": clip_pool_template, "cache": tmp_path / "cache", "device": "cpu"}))
    start = one_hot(make_groups("2", objective.pool.sizes), objective.pool.columns, "model_0")
    search.recall_trials(study, objective, Simplex(start, ["model_1"], 0.5))
    rows = {str(trial.user_attrs["coefficients"]) for trial in study.trials}
    complete = {str(trial.user_attrs["coefficients"]) for trial in study.trials if trial.state == TrialState.COMPLETE}
    assert objective.tally.evaluations == len(rows) > len(complete)


def test_one_ingredient_leaves_nothing_to_search(clip_pool: Path, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (clip_pool / f"model_{number}.safetensors").unlink()
    with pytest.raises(MixoptError, match="at least two ingredients"):
        mixopt.search(**small(clip_pool, tmp_path))
