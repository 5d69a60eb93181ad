"""What a study says of itself and its trials to people, and whether Optuna's dashboard shows it while a search runs."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, make_server

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

import mixopt
from mixopt import Objective
from mixopt import study as search
from mixopt.study import readable
from mixopt.values.groups import make_groups
from mixopt.values.metrics import METRICS, own_metric, smoothed
from mixopt.values.mix import Mix, constant
from mixopt.weights.saving import load_recipe
from tests.browser import open_browser
from tests.study.killing import Killed, kill_after, trials_of
from tests.study.near import SPACE, Near, run_at

TRIALS = 5
OWN = {"accuracy", "loss", "largest coefficients", "given up early"}


def options(pool: Path, folder: Path, **more: Any) -> dict[str, Any]:
    kept = {"out": folder / "run", "cache": folder / "cache", "device": "cpu"}
    return {"models": pool, "trials": TRIALS, "sampler": "random", "race": "off", **kept, **more}


@pytest.fixture(scope="module")
def run(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool, a cache and a finished search, which tests here only read."""
    folder = tmp_path_factory.mktemp("watched")
    mixopt.search(**options(clip_pool_template, folder))
    return folder


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=search.open_storage(folder / "run" / "study.journal", None))


def test_a_study_names_what_its_trials_are_told(run: Path) -> None:
    study = study_of(run)
    assert study.metric_names == ["accuracy with nll"]
    assert study.user_attrs["value of a trial"] == "accuracy less the loss in nats; higher is better"
    for trial in study.trials:
        assert trial.user_attrs["accuracy"] == pytest.approx(trial.user_attrs["metrics"]["accuracy"], rel=1e-5)
        assert trial.user_attrs["loss"] == pytest.approx(trial.user_attrs["metrics"]["nll"], rel=1e-5)
        assert trial.value == pytest.approx(trial.user_attrs["accuracy"] - trial.user_attrs["loss"], abs=1e-4)
        assert trial.user_attrs["given up early"] == "no"
        # A dashboard shows the first few of a trial: numbers and lines of text, no records.
        assert [key for key, value in trial.user_attrs.items() if not isinstance(value, str | float | int)] == list(
            trial.user_attrs
        )[-2:]


def test_the_largest_coefficients_are_means_over_layer_groups(run: Path) -> None:
    recipe = load_recipe(run / "run" / "recipe.json")
    for trial in study_of(run).trials:
        means = np.array(trial.user_attrs["coefficients"]).mean(axis=0)
        shown = trial.user_attrs["largest coefficients"].split(", ")
        order = sorted(range(len(means)), key=lambda column: -abs(means[column]))
        named = [f"{recipe.mix.columns[column]} {means[column]:.2f}" for column in order if abs(means[column]) >= 0.005]
        assert shown == named


def test_only_the_largest_coefficients_are_named() -> None:
    columns = tuple(f"model_{number}" for number in range(9))
    row = [0.5, -0.3, 0.004, 0.31, 0.2, 0.1, 0.086, 0.1, 0.0]
    mix = constant(make_groups("whole", {"weight": 4}), columns, row)
    assert readable.largest_coefficients(mix) == (
        "model_0 0.50, model_3 0.31, model_1 -0.30, model_4 0.20, model_5 0.10 and 2 more"
    )
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    groups = make_groups("3", {f"{number}.weight": 4 for number in range(3)})
    assert readable.largest_coefficients(Mix(groups, ("a\x1b[1m", "b"), rows)) == "a\\x1b[1m 0.50, b 0.50"


@pytest.mark.parametrize(
    ("metric", "signal", "weights", "objectives", "names", "meaning"),
    [
        ("accuracy", "smooth", {}, 1, ["accuracy with nll"], "accuracy less the loss in nats; higher is better"),
        ("accuracy", "metric", {}, 1, ["accuracy"], "accuracy; higher is better"),
        ("nll", "smooth", {}, 1, ["nll"], "nll; lower is better"),
        ("ece", "smooth", {}, 1, ["ece with nll"], "ece plus the loss in nats; lower is better"),
        ("accuracy", "metric", {"a": 0.2}, 1, ["accuracy, weighted over validation, a"], "accuracy; higher is better"),
        (
            "accuracy",
            "metric",
            {"a": 0.2},
            2,
            ["accuracy on validation", "accuracy on a"],
            "accuracy; higher is better",
        ),
    ],
)
def test_names_of_what_is_told(
    metric: str, signal: str, weights: dict[str, float], objectives: int, names: list[str], meaning: str
) -> None:
    driving = METRICS[metric]
    told = SimpleNamespace(metric=driving, signal=smoothed(driving) if signal == "smooth" else driving, weights=weights)
    study = optuna.create_study(directions=[driving.direction] * objectives)
    readable.name_objectives(study, cast(Objective, told))
    assert study.metric_names == names
    assert study.user_attrs == {"value of a trial": meaning}


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A version that gave no names and no attributes to read; ``undo`` brings today's back."""
    with monkeypatch.context() as patch:
        patch.setattr("mixopt.study.trials.name_objectives", lambda *_: None)
        patch.setattr("mixopt.study.trials.attributes_of", lambda *_: {})
        yield patch


@pytest.mark.parametrize("is_database", [False, True])
def test_a_study_of_before_gets_names_once(is_database: bool, before: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}" if is_database else None
    journal = tmp_path / "study.journal"
    old = run_at(tmp_path, trials=3, url=url)
    assert old.metric_names is None
    assert not OWN & set(old.trials[0].user_attrs)
    before.undo()
    assert run_at(tmp_path, trials=3, url=url).metric_names == ["accuracy"]
    content = b"" if url else journal.read_bytes()
    run_at(tmp_path, trials=3, url=url)
    assert url or journal.read_bytes() == content, "what is finished is not written again"
    *others, last = run_at(tmp_path, trials=4, url=url).trials
    assert not any(OWN & set(trial.user_attrs) for trial in others)
    assert set(last.user_attrs) >= OWN - {"loss"}


def test_what_is_read_is_the_same_after_a_kill(tmp_path: Path) -> None:
    def read(folder: Path) -> list[dict[str, Any]]:
        return [{key: each.user_attrs.get(key) for key in OWN} for each in run_at(folder).trials]

    (tmp_path / "whole").mkdir()
    expected = read(tmp_path / "whole")
    for writes in (4, 9):
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, writes, torn=True)
            with pytest.raises(Killed):
                run_at(tmp_path)
    assert read(tmp_path) == expected


def test_names_and_attributes_take_no_write_of_their_own(before: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def writes(folder: Path) -> int:
        folder.mkdir()
        counted: list[int] = []
        real = JournalFileBackend.append_logs

        def append(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
            counted.append(len(logs))
            real(self, logs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(JournalFileBackend, "append_logs", append)
            run_at(folder)
        return len(counted)

    expected = writes(tmp_path / "before")
    before.undo()
    assert writes(tmp_path / "now") == expected > 0


@pytest.mark.parametrize("name", ["estimated", "images", "weighted", "loss", "group"])
def test_a_metric_of_ones_own_is_not_taken_for_a_record(name: str) -> None:
    near = Near()
    near.metric = own_metric(name)
    mix = SPACE.to_mix(np.zeros(SPACE.dims))
    score = replace(near.score(mix), metrics={name: 0.25})
    said = readable.attributes_of(cast(Objective, near), mix, score)
    assert said[f"{name} (measured)"] == 0.25
    assert name not in said


def test_an_estimate_is_one_that_can_be() -> None:
    near, mix = Near(), SPACE.to_mix(np.zeros(SPACE.dims))
    for value, shown in ((-0.1, 0.0), (0.4, 0.4), (1.2, 1.0)):
        score = replace(near.score(mix), value=value, estimated=True, metrics={"accuracy": 0.9, "nll": 1.0})
        said = readable.attributes_of(cast(Objective, near), mix, replace(score, outcomes=score.outcomes.first(5)))
        assert said["accuracy"] == shown
        assert said["given up early"] == "after 5 of 12 samples"
        assert "loss" not in said


def test_a_failed_trial_names_its_coefficients() -> None:
    said = readable.attributes_of(cast(Objective, Near()), SPACE.to_mix(np.zeros(SPACE.dims)), None)
    assert said == {"largest coefficients": "a 0.25, b 0.25, c 0.25, d 0.25"}


def test_an_objective_for_studies_of_ones_own_gives_the_same() -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(mixopt.optuna_objective(cast(Objective, Near()), SPACE), n_trials=1)
    assert set(study.trials[0].user_attrs) >= OWN - {"loss"}


# In a browser


class _Quiet(WSGIRequestHandler):
    """Says nothing of requests."""

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def watching(journal: Path) -> Iterator[str]:
    """The address of Optuna's dashboard on a journal, on a free port of this machine alone."""
    dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    server = make_server("127.0.0.1", 0, dashboard.wsgi(str(journal)), handler_class=_Quiet)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dashboard/studies/0"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def text_of(browser: Any, address: str, wanted: str) -> str:
    """Open an address, and give the text of its page once a text is there."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(address)
    body: str = WebDriverWait(browser, 60).until(
        lambda driver: wanted in (found := driver.find_element("tag name", "body").text) and found,
        f"{wanted!r} is not on {address}",
    )
    return body


def test_the_dashboard_shows_a_search_while_it_goes_on(clip_pool_template: Path, run: Path, tmp_path: Path) -> None:
    for folder in ("run", "cache"):
        shutil.copytree(run / folder, tmp_path / folder)
    journal = tmp_path / "run" / "study.journal"
    before = journal.read_bytes()
    with watching(journal) as address, open_browser() as browser:
        page = text_of(browser, address, "Best Trial")
        assert "accuracy with nll" in page
        assert "accuracy less the loss in nats; higher is better" in page
        assert "Objective 0" not in page
        said = trials_of(tmp_path / "run")[2].user_attrs
        page = text_of(browser, f"{address}/trials?numbers=2", "User Attributes")
        for name in ("accuracy", "loss", "largest coefficients", "given up early", "images"):
            assert f"{name} {said[name]}" in page.splitlines()
        assert journal.read_bytes() == before, "looking writes nothing"
        mixopt.search(**options(clip_pool_template, tmp_path, trials=TRIALS + 2))
        last = trials_of(tmp_path / "run")[TRIALS + 1].user_attrs
        page = text_of(browser, f"{address}/trials?numbers={TRIALS + 1}", f"{TRIALS + 2} Trials")
        assert f"largest coefficients {last['largest coefficients']}" in page
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
