"""The journal of a search: few writes, never a study that plain Optuna cannot read, nothing lost by a kill."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import CmaEsSampler
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mixopt import RunError
from mixopt import study as search
from tests.study.near import POPULATION, SPACE, TRIALS, Near, facts_of, plain, run_at

WRITES = 3 + 4 + 13  # study, space and start, generations asked, trials told


class Killed(BaseException):
    """Stands in for a kill: nothing in the package may catch it."""


def watch_writes(patch: pytest.MonkeyPatch, told: Callable[[int, JournalFileBackend, list[Any]], None]) -> list[int]:
    """Have ``told`` called before every write, with its number from 1; returns the logs of each."""
    real = JournalFileBackend.append_logs
    sizes: list[int] = []

    def append(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        sizes.append(len(logs))
        told(len(sizes), self, logs)
        real(self, logs)

    patch.setattr(JournalFileBackend, "append_logs", append)
    return sizes


def test_a_generation_and_a_told_trial_are_one_write_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = watch_writes(monkeypatch, lambda *_: None)
    study = run_at(tmp_path)
    assert len(sizes) == WRITES
    assert facts_of(plain(tmp_path)) == facts_of(study)


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("sampler", ["surface", "cmaes", "nsgaii", "tpe", "random"])
def test_a_kill_at_any_write_is_resumed_to_equality(sampler: str, torn: bool, tmp_path: Path) -> None:
    def kill(number: int, backend: JournalFileBackend, logs: list[Any]) -> None:
        if number != at:
            return
        if torn:
            with Path(backend._file_path).open("ab") as stream:
                lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
                stream.write(lines[: len(lines) * 2 // 3].encode())
        raise Killed

    whole = facts_of(run_at(tmp_path, sampler))
    for at in range(1, WRITES + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            watch_writes(patch, kill)
            with pytest.raises(Killed):
                run_at(folder, sampler)
        if not torn and at > 1:
            states = [trial.state for trial in plain(folder).trials]
            assert states == sorted(states, key=lambda state: state == TrialState.RUNNING), "told in order"
        assert facts_of(run_at(folder, sampler)) == whole
        assert facts_of(plain(folder)) == whole


def test_plain_optuna_reads_the_study_while_a_trial_is_scored(tmp_path: Path) -> None:
    seen: list[FrozenTrial] = []

    def look(call: int) -> bool:
        if call:
            seen.append(plain(tmp_path).trials[call])
        return False

    study = run_at(tmp_path, objective=Near(look))
    assert [trial.state for trial in seen] == [TrialState.RUNNING] * (TRIALS - 1)
    assert [trial.params for trial in seen] == [trial.params for trial in study.trials[1:]]


def test_an_interrupted_generation_is_written_as_far_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    whole = facts_of(run_at(tmp_path / "whole"))
    real = CmaEsSampler.sample_relative

    def interrupted(self: CmaEsSampler, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        if trial.number == POPULATION + 3:
            raise KeyboardInterrupt
        return real(self, study, trial, search_space)

    monkeypatch.setattr(CmaEsSampler, "sample_relative", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_at(tmp_path)
    monkeypatch.undo()
    states = [trial.state for trial in plain(tmp_path).trials]
    assert states == [TrialState.COMPLETE] * (POPULATION + 1) + [TrialState.RUNNING] * 3
    assert not list(tmp_path.glob("*.lock*"))
    assert facts_of(run_at(tmp_path)) == whole


def test_another_writer_waits_for_the_generation(tmp_path: Path) -> None:
    study = run_at(tmp_path, trials=1)
    other = plain(tmp_path)
    writer = threading.Thread(target=lambda: other.set_user_attr("note", "mine"))
    with search.storage.write_together(study):
        writer.start()
        for _ in range(3):
            study.ask()
        writer.join(0.05)
        assert writer.is_alive()
        assert len(study.trials) == 4
        assert len(plain(tmp_path).trials) == 1
    writer.join(10)
    study.set_user_attr("after", 1)
    for seen in (study, plain(tmp_path)):
        assert list(seen.user_attrs.items())[-2:] == [("note", "mine"), ("after", 1)]
        assert [trial.number for trial in seen.trials] == [0, 1, 2, 3]


@pytest.mark.parametrize("sampler", search.samplers.SPACE_LEARNERS)
def test_the_space_is_the_one_that_optuna_works_out(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(call: int) -> bool:
        return call == 3

    for name in ("told", "worked out"):
        (tmp_path / name).mkdir()
    told = run_at(tmp_path / "told", sampler, Near(fail))
    monkeypatch.setattr(search.samplers, "SPACE_LEARNERS", ())
    assert facts_of(run_at(tmp_path / "worked out", sampler, Near(fail))) == facts_of(told)


def test_cmaes_proposes_what_optunas_own_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = run_at(tmp_path).trials
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(
        search.samplers,
        "_CmaEs",
        lambda seed, size, *_: CmaEsSampler(seed=seed, popsize=size, warn_independent_sampling=False),
    )
    theirs = run_at(tmp_path / "own").trials
    for one, other in zip(ours, theirs, strict=True):
        assert one.params == pytest.approx(other.params, abs=1e-9)
        assert one.system_attrs.get("cma:generation") == other.system_attrs.get("cma:generation")


def has_optimizer(trial: FrozenTrial) -> bool:
    return "cma:optimizer:0" in trial.system_attrs


def test_cmaes_is_stored_once_per_generation(tmp_path: Path) -> None:
    trials = run_at(tmp_path).trials
    assert [trial.number for trial in trials if has_optimizer(trial)] == [5, 9, 13]


def test_cmaes_is_stored_again_where_its_trial_failed(tmp_path: Path) -> None:
    study = run_at(tmp_path, objective=Near(lambda call: call == 5))
    assert study.trials[5].state == TrialState.FAIL
    assert [trial.number for trial in study.trials if has_optimizer(trial)] == [5, 9, 10, 14]
    generations = [trial.system_attrs.get("cma:generation") for trial in study.trials]
    assert generations == [None, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_plain_optuna_goes_on_with_the_study(tmp_path: Path) -> None:
    run_at(tmp_path, trials=1 + 3 * POPULATION)
    study = plain(tmp_path)
    study.sampler = CmaEsSampler(seed=0, popsize=POPULATION)
    study.optimize(lambda trial: sum(trial.suggest_float(label, -1, 1) for label in SPACE.labels), n_trials=1)
    assert study.trials[-1].system_attrs["cma:generation"] == 3


def test_trials_are_read_for_reports_and_nothing_is_written(tmp_path: Path) -> None:
    study = run_at(tmp_path, objective=Near(failing=lambda call: call == 5))
    [journal] = tmp_path.glob("*.journal")
    before = journal.read_bytes()
    found = search.read_trials(journal)
    complete = study.get_trials(states=[TrialState.COMPLETE])
    assert len(complete) == TRIALS < len(study.trials)
    assert [(each.number, each.value) for each in found] == [(each.number, each.value) for each in complete]
    assert all(each.images == 0 and not each.estimated for each in found)
    assert journal.read_bytes() == before
    assert list(tmp_path.iterdir()) == [journal]
    journal.write_text("nothing\n")
    with pytest.raises(RunError, match=r"study\.journal: line 1: not JSON"):
        search.read_trials(journal)


def test_nsgaii_stores_generations_as_optuna_does_and_counts_the_start(tmp_path: Path) -> None:
    trials = run_at(tmp_path, "nsgaii").trials
    generations = [trial.system_attrs["NSGAIISampler:generation"] for trial in trials]
    assert generations == [0] * (1 + POPULATION) + [1] * POPULATION + [2] * POPULATION + [3]
    study = plain(tmp_path)
    study.sampler = optuna.samplers.NSGAIISampler(seed=0, population_size=POPULATION)
    study.optimize(lambda trial: sum(trial.suggest_float(label, -1, 1) for label in SPACE.labels), n_trials=1)
    assert study.trials[-1].system_attrs["NSGAIISampler:generation"] == 3
    kept = set(study._storage.get_study_system_attrs(study._study_id)) - {"study:metric_names"}
    assert kept == {f"NSGAIISampler:parent:{generation}" for generation in (1, 2, 3)}


def test_nsgaii_learns_from_the_generations_before(tmp_path: Path) -> None:
    trials = run_at(tmp_path, "nsgaii", trials=1 + 10 * POPULATION).trials
    values = [trial.values[0] for trial in trials]
    assert np.mean(values[-2 * POPULATION :]) > np.mean(values[1 : 1 + 2 * POPULATION])


def test_generations_of_nsgaii() -> None:
    assert search.population_of("nsgaii", 8, None) == 20
    assert search.population_of("nsgaii", 8, 7) == 7
