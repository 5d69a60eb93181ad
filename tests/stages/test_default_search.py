"""The search as it is by default, end to end: residual space, smooth signal, a surface, racing, a step judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import mixopt
from mixopt import DataError, Objective, ScoreError, SpecError, load_spec, open_objective
from mixopt.runs.search import SearchResult
from mixopt.scoring.engine import Engine
from mixopt.scoring.evaluator import Evaluator
from mixopt.scoring.racing import out_of_reach
from mixopt.scoring.tally import Tally
from mixopt.stages.confirm import Choice
from mixopt.stages.helpful import helpful
from mixopt.stages.plan import LEARNED
from mixopt.stages.refit import refit
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix, combine, constant
from mixopt.weights.saving import load_recipe
from tests.listening import Recorder
from tests.stages.default import HELD, SAMPLES, STEERING, TRIALS, lacking, options_of, rows_of, run_killed
from tests.study.killing import facts_of, model_hash, trials_of


def without_times(result: SearchResult) -> list[dict[str, Any]]:
    volatile = ("computed", "seconds", "peak_memory")  # what a cached run computes is another test's
    return [
        {key: value for key, value in row.items() if key not in volatile} for row in result.report.as_dict()["methods"]
    ]


@pytest.fixture(scope="module")
def searched(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return mixopt.search(**options_of(clip_pool_template, tmp_path_factory.mktemp("default")))


def test_report_of_a_search_with_all_defaults(searched: SearchResult) -> None:
    report, rows = searched.report.as_dict(), rows_of(searched)
    assert list(rows) == ["base", "individual", "uniform", "greedy", LEARNED, "search"]
    assert report["race"] == {"given_up": 0, "images": TRIALS * SAMPLES, "unraced_images": TRIALS * SAMPLES}
    assert report["space"]["kind"] == "residual"
    assert "first/base" in report["space"]["labels"]
    notes = rows["search"]["notes"]
    assert 0 <= notes["share"] <= 1
    assert (notes["share"] > 0 or notes["refit"]) == (searched.recipe.mix != start_of(searched.folder))
    assert all(len(row["metrics"]) == 3 and len(row["test"]) == 2 for row in rows.values())
    assert rows[LEARNED]["gradient_images"] == 3 * STEERING
    assert rows[LEARNED]["evaluations"] == 3


def start_of(folder: Path) -> Any:
    trial = trials_of(folder)[0]
    mix = load_recipe(folder / "recipe.json").mix
    return type(mix)(mix.groups, mix.columns, np.array(trial.user_attrs["coefficients"]))


def test_the_study_holds_metric_less_loss_of_what_steered(searched: SearchResult) -> None:
    for trial in trials_of(searched.folder):
        metrics = trial.user_attrs["metrics"]
        assert trial.value == pytest.approx(metrics["accuracy"] - metrics["nll"])
        assert trial.user_attrs["images"] == SAMPLES
        assert (metrics["accuracy"] * SAMPLES) == pytest.approx(round(metrics["accuracy"] * SAMPLES))


def test_rows_are_of_whole_splits_as_evaluate_says(searched: SearchResult, clip_pool_template: Path) -> None:
    data = {"search": clip_pool_template / "val.npz", "test": {"test": clip_pool_template / "test.npz"}}
    found = mixopt.evaluate(searched.folder / "model.safetensors", data=data, device="cpu")
    row = rows_of(searched)["search"]
    for here, there in (("validation", "val"), ("test", "test")):
        assert found["splits"][there]["samples"] == SAMPLES
        assert row["metrics"][here] == pytest.approx(found["splits"][there]["metrics"], abs=1e-6)


def test_run_again_it_computes_nothing_and_says_the_same(
    searched: SearchResult, clip_pool_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("computed again")

    for name in ("fuse", "slope"):
        monkeypatch.setattr(Engine, name, fail)
    again = mixopt.search(**options_of(clip_pool_template, searched.folder.parent))
    assert without_times(again) == without_times(searched)
    assert again.recipe == searched.recipe
    assert again.report.as_dict()["race"] == searched.report.as_dict()["race"]


def assert_same(one: Path, other: Path) -> None:
    assert facts_of(one) == facts_of(other)
    assert [t.user_attrs.get("estimated") for t in trials_of(one)] == [
        t.user_attrs.get("estimated") for t in trials_of(other)
    ]
    assert model_hash(one) == model_hash(other)
    assert (one / "recipe.json").read_bytes() == (other / "recipe.json").read_bytes()


def test_computed_counts_what_really_ran(clip_pool_template: Path, tmp_path: Path) -> None:
    """Each mix and gradient once, whoever asked for it first and however often, and nothing that the cache had."""
    new = mixopt.search(**options_of(clip_pool_template, tmp_path)).report.row("search")
    assert new.computed == new.evaluations
    again = mixopt.search(**options_of(clip_pool_template, tmp_path)).report.row("search")
    assert (again.computed, again.evaluations, again.images) == (0, new.evaluations, new.images)
    cache, other = tmp_path / "other", tmp_path / "compared"
    mixopt.compare(clip_pool_template, methods="individual", cache=cache, out=other, device="cpu", precision="fp32")
    rest = mixopt.search(**options_of(clip_pool_template, tmp_path, cache=cache, out=tmp_path / "rest")).report
    assert rest.row("search").computed == new.evaluations - 4
    assert (rest.row("individual").computed, rest.row("individual").evaluations) == (0, 4)


def test_killed_it_goes_on_to_the_same_bits(searched: SearchResult, clip_pool_template: Path, tmp_path: Path) -> None:
    result = run_killed((3, 5, 4), **options_of(clip_pool_template, tmp_path))
    assert_same(result.folder, searched.folder)
    for before, after in zip(searched.report.as_dict()["methods"], result.report.as_dict()["methods"], strict=True):
        for key in ("name", "metrics", "evaluations", "images", "notes"):
            assert before.get(key) == after.get(key)


# Racing


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks every 10 samples, and less patience: tiny splits are raced too."""
    monkeypatch.setattr("mixopt.scoring.looks.looks", lambda total, batch: [*range(10, total, 10), total])
    monkeypatch.setattr(
        "mixopt.scoring.looks.out_of_reach", lambda gains, total, level: out_of_reach(gains, total, 0.3)
    )


@pytest.mark.usefixtures("eager")
def test_trials_given_up_are_estimates_and_never_crowned(clip_pool_template: Path, tmp_path: Path) -> None:
    result = mixopt.search(**options_of(clip_pool_template, tmp_path / "whole", confirm=0, sampler="random", trials=24))
    trials = trials_of(result.folder)
    given_up = [trial for trial in trials if trial.user_attrs.get("estimated")]
    assert given_up, "control: there are some"
    assert all(trial.user_attrs["images"] < SAMPLES for trial in given_up)
    for said in (trial.user_attrs for trial in given_up):  # to people: an estimate, and no loss of fewer samples
        assert said["given up early"] == f"after {said['seen']} of {SAMPLES} samples"
        assert 0 <= said["accuracy"] <= 1
        assert "loss" not in said
    full = [trial for trial in trials if trial not in given_up]
    assert all(trial.user_attrs["images"] == SAMPLES for trial in full)
    images = sum(trial.user_attrs["images"] for trial in trials)
    assert result.report.as_dict()["race"] == {
        "given_up": len(given_up), "images": images, "unraced_images": len(trials) * SAMPLES,
    }  # fmt: skip
    best = max(full, key=lambda trial: (trial.value or 0.0, -trial.number))
    assert result.recipe.mix.coefficients.tolist() == best.user_attrs["coefficients"]
    assert result.report.as_dict()["verification"]["trial"] == best.number
    again = run_killed(
        (3, 4), **options_of(clip_pool_template, tmp_path / "killed", confirm=0, sampler="random", trials=24)
    )
    assert_same(again.folder, result.folder)
    # A cache that knows whole outcomes already changes nothing.
    warm = options_of(clip_pool_template, tmp_path / "warm", confirm=0, sampler="random", trials=24)
    mixopt.search(**{**warm, "out": tmp_path / "unraced", "race": "off"})
    assert_same(mixopt.search(**warm).folder, result.folder)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("start", ["greedy", "learned"])
def test_a_surface_races_where_all_samples_judge(clip_pool_template: Path, tmp_path: Path, start: str) -> None:
    """After a learned start those held back judge alone: a trial given up before them tells nothing of them."""
    told = Recorder()
    options = options_of(clip_pool_template, tmp_path, start=start, stop=False, trials=32)
    given_up = mixopt.search(**options, listener=told.listener).report.as_dict()["race"]["given_up"]
    assert (given_up > 0) == (start == "greedy")
    assert any("race: off, because the samples held back alone judge" in text for text in told.infos) == (given_up == 0)


@pytest.mark.usefixtures("eager")
def test_without_racing_every_trial_sees_every_sample(clip_pool_template: Path, tmp_path: Path) -> None:
    result = mixopt.search(**options_of(clip_pool_template, tmp_path, race="off", sampler="random"))
    assert result.report.as_dict()["race"]["given_up"] == 0
    assert {trial.user_attrs["images"] for trial in trials_of(result.folder)} == {STEERING}


# Confirming


@pytest.mark.parametrize("sampler", ["cmaes", "surface"])
def test_nothing_chosen_depends_on_the_samples_held_back(sampler: str, clip_pool: Path, tmp_path: Path) -> None:
    """The labels of the samples held back are changed in memory: trials and space stay, bit for bit.

    Where a surface judges, every sample steers, but none of these teaches the start.
    """
    first = mixopt.search(**options_of(clip_pool, tmp_path / "one", sampler=sampler, start="learned"))
    with pytest.MonkeyPatch.context() as patch:
        real = Evaluator.__init__

        def changed(self: Evaluator, split: Any, *arguments: Any, **options: Any) -> None:
            if split.name == "validation":
                split.labels.setflags(write=True)
                split.labels[STEERING:] = (split.labels[STEERING:] + 1) % 4
            real(self, split, *arguments, **options)

        patch.setattr(Evaluator, "__init__", changed)
        second = mixopt.search(**options_of(clip_pool, tmp_path / "two", sampler=sampler, start="learned"))
    if sampler == "cmaes":
        assert facts_of(second.folder) == facts_of(first.folder)
    assert start_of(second.folder) == start_of(first.folder)
    assert second.report.as_dict()["space"] == first.report.as_dict()["space"]
    assert rows_of(second)["search"]["metrics"] != rows_of(first)["search"]["metrics"]


def test_confirm_0_takes_the_best_trial_of_all_samples(clip_pool_template: Path, tmp_path: Path) -> None:
    result = mixopt.search(**options_of(clip_pool_template, tmp_path, confirm=0, sampler="cmaes"))
    trials = trials_of(result.folder)
    best = max(trials, key=lambda trial: (trial.value or 0.0, -trial.number))
    assert result.recipe.mix.coefficients.tolist() == best.user_attrs["coefficients"]
    assert {trial.user_attrs["images"] for trial in trials} == {SAMPLES}
    notes = rows_of(result)["search"]["notes"]
    assert notes.pop("robust")["judging"] == 0
    assert notes == {"trial": best.number, "share": 1.0, "refit": False}
    assert rows_of(result)["search"]["metrics"]["validation"] == pytest.approx(best.user_attrs["metrics"], abs=1e-6)


# Learning the start again


def test_the_learned_start_is_learned_again_from_all_samples(clip_pool_template: Path, tmp_path: Path) -> None:
    heard = Recorder()
    listener = heard.listener
    options = options_of(clip_pool_template, tmp_path, start="learned", trials=1)
    result = mixopt.search(**options, listener=listener)
    compared = mixopt.compare(
        clip_pool_template, methods=LEARNED, confirm=0, out=tmp_path / "all", cache=tmp_path / "cache", device="cpu"
    )
    assert result.recipe.mix == compared.recipe.mix
    row = rows_of(result)["search"]
    assert row["notes"]["refit"]
    assert row["gradient_images"] == 3 * STEERING + 3 * SAMPLES
    (told,) = [text for text in heard.infos if "learned again" in text]
    held_back = mixopt.search(**{**options, "refit": "off", "out": tmp_path / "off"}).report.as_dict()["methods"][-1]
    assert row["notes"]["held_back"] * HELD == pytest.approx(round(row["notes"]["held_back"] * HELD))
    steered = {**options, "sampler": "cmaes", "out": tmp_path / "steered"}
    (start,) = trials_of(mixopt.search(**steered).folder)
    right = held_back["search"] * SAMPLES - start.user_attrs["metrics"]["accuracy"] * STEERING
    assert row["notes"]["held_back"] * HELD == pytest.approx(right)
    assert f"from all {SAMPLES} selection samples" in told
    assert f"the {HELD} held back" in told
    without = mixopt.search(**options, refit="off")
    assert without.recipe.mix == start_of(without.folder)
    assert not rows_of(without)["search"]["notes"]["refit"]
    assert facts_of(without.folder) == facts_of(result.folder)


def test_learning_again_takes_seconds_beside_those_of_the_start(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Tally] = []

    def watched(*given: Any) -> Any:
        found = refit(*given)
        assert found is not None
        taken.append(found.tally)
        return found

    monkeypatch.setattr("mixopt.runs.search.refit", watched)
    mixopt.search(**options_of(clip_pool_template, tmp_path, start="learned", trials=1))
    assert Tally(own={LEARNED: 1000.0}).merged(taken[0]).seconds == pytest.approx(1000 + taken[0].seconds)


def test_a_confirmed_step_is_taken_from_what_is_learned_again(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(objective: Objective, start: Mix, candidates: Sequence[Mix]) -> Choice:
        return Choice(combine([start, candidates[0]], [0.5, 0.5]), 0, 0.5, 0.1, 0.05)

    monkeypatch.setattr("mixopt.stages.confirm.choose_candidate", half)
    options = options_of(clip_pool_template, tmp_path, start="learned", trials=4, sampler="cmaes")
    plain = mixopt.search(**options, refit="off").recipe.mix
    again = mixopt.search(**options).recipe.mix
    compared = mixopt.compare(
        clip_pool_template, methods=LEARNED, confirm=0, out=tmp_path / "all", cache=tmp_path / "cache", device="cpu"
    )
    start = start_of(tmp_path / "run")
    assert plain != start, "control: a step is taken"
    expected = combine([plain, compared.recipe.mix, start], [1, 1, -1])
    assert again == expected


def test_where_learning_again_fails_the_mix_stays(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Objective.gradient

    def gradient(self: Objective, mix: Mix, samples: Any, scale: float = 1.0) -> Any:
        if self.samples == SAMPLES:
            raise ScoreError("the loss is not finite")
        return real(self, mix, samples, scale)

    monkeypatch.setattr(Objective, "gradient", gradient)
    heard = Recorder()
    listener = heard.listener
    result = mixopt.search(**options_of(clip_pool_template, tmp_path, start="learned", trials=1), listener=listener)
    assert result.recipe.mix == start_of(result.folder)
    assert any("not learned again" in text and "the loss is not finite" in text for text in heard.warnings)


def test_a_comparison_holds_samples_back_too(clip_pool_template: Path, run_options: dict[str, Any]) -> None:
    result = mixopt.compare(clip_pool_template, methods="individual,learned", **run_options)
    rows = {row["name"]: row for row in result.report.as_dict()["methods"]}
    assert rows["individual"]["images"] == 4 * STEERING
    assert rows["learned"]["gradient_images"] == 3 * STEERING
    assert rows["individual"]["search"] * SAMPLES == pytest.approx(round(rows["individual"]["search"] * SAMPLES))


# Starts and spaces


def test_a_learned_row_that_cannot_be_is_left_out_with_a_warning(clip_pool: Path, tmp_path: Path) -> None:
    lacking(clip_pool)
    heard = Recorder()
    listener = heard.listener
    result = mixopt.search(**options_of(clip_pool, tmp_path, trials=3), listener=listener)
    assert any(
        text.startswith(f"{LEARNED} is left out") and "no samples of 1 of the model's 4" in text
        for text in heard.warnings
    )
    assert "no samples" in rows_of(result)[LEARNED]["error"]
    assert rows_of(result)["search"]["search"] > 0
    assert not any(LEARNED in label for label in result.report.as_dict()["space"]["labels"])
    with pytest.raises(DataError, match="no samples of 1"):
        mixopt.search(**options_of(clip_pool, tmp_path / "learned", trials=3, start="learned"))


def test_start_learned_is_the_rows_mix(clip_pool_template: Path, tmp_path: Path) -> None:
    result = mixopt.search(**options_of(clip_pool_template, tmp_path, trials=2, start="learned", race="off"))
    labels = result.report.as_dict()["space"]["labels"]
    assert labels[:2] == ["first/individual", "first/uniform"]
    assert not any(LEARNED in label for label in labels)
    compared = mixopt.compare(
        clip_pool_template, methods=LEARNED, out=tmp_path / "compared", cache=tmp_path / "cache", device="cpu"
    )
    groups, columns = compared.recipe.mix.groups, compared.recipe.mix.columns
    start = start_of(result.folder)
    assert (start.groups, start.columns) == (groups, columns)
    np.testing.assert_array_equal(start.coefficients, compared.recipe.mix.coefficients)


@pytest.mark.parametrize(
    ("space", "dims"), [("residual", 12), ("simplex", 16), ("affine", 12), ("shared", 3), ("depth", 9)]
)
def test_each_space_runs_and_resumes(space: str, dims: int, clip_pool_template: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"space": space, "start": "greedy", "trials": 5}
    whole = mixopt.search(**options_of(clip_pool_template, tmp_path / "whole", **options))
    assert whole.report.as_dict()["space"]["kind"] == space
    assert whole.report.as_dict()["space"]["dims"] == len(whole.report.as_dict()["space"]["labels"]) == dims
    killed = run_killed((3, 3), **options_of(clip_pool_template, tmp_path / "killed", **options))
    assert_same(killed.folder, whole.folder)


def test_plain_optuna_opens_a_raced_study(searched: SearchResult) -> None:
    storage = JournalStorage(JournalFileBackend(str(searched.folder / "study.journal")))
    study = optuna.load_study(study_name=None, storage=storage)
    assert study.best_value == max(trial.value or 0.0 for trial in trials_of(searched.folder))


def test_ingredients_by_gradient_are_those_that_lower_the_loss(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = open_objective(load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu"}))
    found = helpful(objective)
    assert objective.tally.evaluations == 1
    pool = objective.pool
    groups = make_groups("whole", pool.sizes)

    def loss(towards: str, step: float) -> float:
        row = np.array([(name in pool.ingredients) / len(pool.ingredients) for name in pool.columns])
        row = (1 - step) * row + step * np.array([float(name == towards) for name in pool.columns])
        return objective.score(constant(groups, pool.columns, row)).metrics["nll"]

    slopes = {name: loss(name, 0.01) - loss(name, -0.01) for name in pool.ingredients}
    ranked = sorted(slopes, key=lambda name: slopes[name])
    assert list(found) == ranked[: max(2, sum(slope < 0 for slope in slopes.values()))]


@pytest.mark.parametrize(("option", "value"), [("groups", "2"), ("ingredients", 3)])
def test_residual_takes_no_columns_or_groups(
    option: str, value: str | int, clip_pool_template: Path, run_options: dict[str, Any]
) -> None:
    options: dict[str, Any] = {**run_options, option: value}
    with pytest.raises(SpecError, match="--space residual: moves towards whole mixes"):
        mixopt.search(clip_pool_template, space="residual", trials=2, **options)


def test_ingredients_auto_searches_over_them(clip_pool_template: Path, run_options: dict[str, Any]) -> None:
    result = mixopt.search(clip_pool_template, ingredients="auto", trials=3, **run_options)
    assert result.report.as_dict()["space"]["kind"] in ("simplex", "affine")
    assert result.report.as_dict()["trials"] == {"complete": 3}
