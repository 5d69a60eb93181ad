"""Several splits as several objectives: what the study is told, the front, the rule that picks from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from typer.testing import CliRunner

import mixopt
from mixopt import MixoptError, SpecError, load_spec
from mixopt import study as search
from mixopt.cli import app
from mixopt.reporting.build import FINALISTS
from mixopt.reporting.schema import FrontPoint
from mixopt.runs.search import SearchResult
from mixopt.study.fronts import undominated
from mixopt.values.mix import Mix
from mixopt.weights.saving import load_recipe
from tests.stages.default import run_killed
from tests.stages.several import objective_of, options_of, pool
from tests.study.killing import trials_of

__all__ = ["pool"]
TRIALS = 14
WEIGHTS = {"validation": 0.5, "extra": 0.2, "synthetic": 0.3}


def pareto_options(pool: Path, folder: Path, **more: Any) -> dict[str, Any]:
    changed: dict[str, Any] = {"pareto": True, "sampler": "auto", "trials": TRIALS, "population": 4, **more}
    return options_of(pool, folder, **changed)


@pytest.fixture(scope="module")
def done(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return mixopt.search(**pareto_options(pool, tmp_path_factory.mktemp("pareto")))


def points_of(result: SearchResult) -> dict[int, list[float]]:
    return {point["trial"]: point["values"] for point in result.report.as_dict()["front"]["points"]}


def mean_of(values: list[float]) -> float:
    return sum(weight * value for weight, value in zip(WEIGHTS.values(), values, strict=True))


def test_every_split_that_steers_is_an_objective(pool: Path, done: SearchResult) -> None:
    from mixopt.values.metrics import smoothed

    objective = objective_of(pool, done.folder.parent)
    objective = objective.steered_by(smoothed(objective.metric))
    rows = load_recipe(done.folder / "recipe.json").mix
    for trial in trials_of(done.folder):
        mix = Mix(rows.groups, rows.columns, np.array(trial.user_attrs["coefficients"]))
        assert trial.values == pytest.approx([objective.score(mix, name).signal for name in WEIGHTS], abs=1e-12)
        assert trial.user_attrs["weighted"] == pytest.approx(mean_of(trial.values))
        assert "estimated" not in trial.user_attrs
    assert done.report.as_dict()["sampler"] == "nsgaii"


def test_the_report_holds_the_front(done: SearchResult) -> None:
    front, trials = done.report.as_dict()["front"], trials_of(done.folder)
    assert front["objectives"] == [{"name": name, "weight": pytest.approx(each)} for name, each in WEIGHTS.items()]
    assert (front["signal"], front["direction"]) == ("accuracy with nll", "maximize")
    assert points_of(done) == {trial.number: trial.values for trial in trials}
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(done.folder / "study.journal"))
    )
    optunas = {trial.number for trial in optuna.load_study(study_name="run", storage=storage).best_trials}
    assert {point["trial"] for point in front["points"] if point["on_front"]} == optunas
    assert 1 <= len(optunas) < TRIALS, "a front of all or none would show nothing"
    assert front["picked"] == done.report.as_dict()["verification"]["trial"]
    assert json.loads((done.folder / "report.json").read_text()) == done.report.as_dict()


def test_the_best_of_the_front_by_weighted_mean_go_to_the_last_choice(
    pool: Path, tmp_path: Path, finalists: list[list[Mix]]
) -> None:
    result = mixopt.search(**pareto_options(pool, tmp_path))
    front = [point for point in result.report.as_dict()["front"]["points"] if point["on_front"]]
    ranked = sorted(front, key=lambda point: (-mean_of(point["values"]), point["trial"]))
    assert len(ranked) > 1
    trials = trials_of(result.folder)
    expected = [trials[point["trial"]].user_attrs["coefficients"] for point in ranked[:FINALISTS]]
    assert [mix.coefficients.tolist() for mix in finalists[0]] == expected
    every = [mean_of(values) for values in points_of(result).values()]
    assert mean_of(ranked[0]["values"]) == max(every), "the best of all trials lies on the front"


def test_trials_are_told_by_the_best_weighted_mean(pool: Path, tmp_path: Path) -> None:
    from mixopt import Listener

    events: list[Any] = []
    result = mixopt.search(listener=Listener(trial=events.append), **pareto_options(pool, tmp_path))
    trials = trials_of(result.folder)
    assert [event.number for event in events] == list(range(TRIALS))
    for event in events:
        seen = trials[: event.number + 1]
        best = max(seen, key=lambda trial: (trial.user_attrs["weighted"], -trial.number))
        assert event.best == best.user_attrs["metrics"]["accuracy"]
        assert event.value == seen[-1].user_attrs["metrics"]["accuracy"]


@pytest.mark.parametrize("writes", [(3, 4), (8, 12)])
def test_killed_twice_equals_uninterrupted(
    writes: tuple[int, int], pool: Path, tmp_path: Path, done: SearchResult
) -> None:
    killed = run_killed(writes, **pareto_options(pool, tmp_path))
    assert_values(killed, done)
    assert killed.report.as_dict()["front"] == done.report.as_dict()["front"]


def assert_values(one: SearchResult, other: SearchResult) -> None:
    """As `assert_same`, of trials with several values."""
    first, second = trials_of(one.folder), trials_of(other.folder)
    for here, there in zip(first, second, strict=True):
        assert (here.values, here.params, here.state) == (there.values, there.params, there.state)
        assert here.user_attrs["coefficients"] == there.user_attrs["coefficients"]
    assert (one.folder / "recipe.json").read_bytes() == (other.folder / "recipe.json").read_bytes()


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "optuna.samplers:QMCSampler"])
def test_other_samplers_take_several_objectives_and_resume(sampler: str, pool: Path, tmp_path: Path) -> None:
    options = {"sampler": sampler, "trials": 13 if sampler in ("tpe", "gp") else 6, "population": None}
    whole = mixopt.search(**pareto_options(pool, tmp_path / "whole", **options))
    assert all(len(trial.values) == 3 for trial in trials_of(whole.folder))
    if ":" not in sampler:
        assert_values(run_killed((5,), **pareto_options(pool, tmp_path / "killed", **options)), whole)


def test_a_loss_that_is_minimised(pool: Path, tmp_path: Path) -> None:
    result = mixopt.search(**pareto_options(pool, tmp_path, metric="nll", trials=6, shifts="none"))
    front = result.report.as_dict()["front"]
    assert front["direction"] == "minimize"
    lowest = min(points_of(result), key=lambda number: points_of(result)[number][1])
    assert next(point["on_front"] for point in front["points"] if point["trial"] == lowest)


def test_a_search_by_weighted_mean_reports_its_front_too(pool: Path, tmp_path: Path) -> None:
    result = mixopt.search(**options_of(pool, tmp_path))
    points = points_of(result)
    for trial in trials_of(result.folder):
        assert mean_of(points[trial.number]) == pytest.approx(trial.value)
    flags = undominated(np.array(list(points.values())))
    assert [point["on_front"] for point in result.report.as_dict()["front"]["points"]] == flags.tolist()
    assert "front" not in mixopt.search(**options_of(pool, tmp_path / "one", select=None, shifts=None)).report.as_dict()


def test_a_resumed_study_keeps_to_its_objectives(pool: Path, done: SearchResult) -> None:
    with pytest.raises(MixoptError, match="pareto was true, now null"):
        mixopt.search(**pareto_options(pool, done.folder.parent, pareto=False, sampler="tpe"))


def test_the_front_is_optunas_own() -> None:
    random = np.random.default_rng(0)
    for objectives in (2, 3):
        values = random.integers(0, 6, (60, objectives)).astype(float)
        study = optuna.create_study(directions=["maximize"] * objectives)
        for row in values:
            study.add_trial(optuna.trial.create_trial(state=TrialState.COMPLETE, values=row.tolist()))
        expected = {trial.number for trial in study.best_trials}
        assert set(np.flatnonzero(undominated(values)).tolist()) == expected


def test_a_failed_trial_is_no_point() -> None:
    def trial(number: int, state: TrialState, attributes: dict[str, Any]) -> FrozenTrial:
        return optuna.trial.create_trial(state=state, values=[1.0, 1.0] if attributes else None, user_attrs=attributes)

    from mixopt.values.metrics import METRICS

    trials = {0: trial(0, TrialState.COMPLETE, {"signals": {"a": 1, "b": 2}}), 1: trial(1, TrialState.FAIL, {})}
    found = search.front(trials, {"a": 0.5, "b": 0.5}, METRICS["nll"], 0)
    assert found.points == (FrontPoint(trial=0, values=(1, 2), on_front=True),)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pareto": True}, "--pareto: one split alone has no front; add another that steers: --shifts synthetic"),
        ({"pareto": True, "shifts": "synthetic", "sampler": "cmaes"}, "cmaes takes one objective"),
        ({"sampler": "nsgaii", "shifts": "synthetic"}, "the sampler nsgaii is for several objectives; add pareto"),
    ],
)
def test_what_makes_no_front_is_refused(given: dict[str, Any], told: str, pool: Path) -> None:
    with pytest.raises(SpecError, match=told):
        load_spec({"models": pool, **given})


def test_the_sampler_is_chosen_by_the_objectives(pool: Path) -> None:
    assert load_spec({"models": pool}).sampler_name == "surface"
    assert load_spec({"models": pool, "refine": 2}).sampler_name == "cmaes"
    own = Path("tests.own_functions:fixed")
    assert load_spec({"models": pool, "data": {"validation": own}, "metric": "score"}).sampler_name == "cmaes"
    assert load_spec({"models": pool, "select": {"own": (own, 0.5)}}).sampler_name == "cmaes"
    assert load_spec({"models": pool, "shifts": "synthetic", "pareto": True}).sampler_name == "nsgaii"
    assert load_spec({"models": pool, "sampler": "tpe", "shifts": "synthetic", "pareto": True}).sampler_name == "tpe"


def test_a_flag_asks_for_it(pool: Path) -> None:
    result = CliRunner().invoke(app, ["search", "--models", str(pool), "--pareto"])
    assert result.exit_code == 2
    assert "one split alone has no front" in " ".join(result.output.replace("│", " ").split())


def test_a_sampler_of_one_objective_is_refused_before_any_work(pool: Path, tmp_path: Path) -> None:
    options = pareto_options(pool, tmp_path, sampler="optuna.samplers:CmaEsSampler")
    with pytest.raises(SpecError, match="CmaEsSampler: does not take the 3 objectives of --pareto"):
        mixopt.search(**options)
    assert not Path(options["out"]).exists()
