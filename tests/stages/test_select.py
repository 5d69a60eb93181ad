"""Several splits that steer: the weighted signal, what it costs, what it may not touch."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from typer.testing import CliRunner

import mixopt
from mixopt import DataError, MixoptError, Objective, SpecError, load_spec, open_objective
from mixopt.cli import app
from mixopt.cli.flags import named
from mixopt.reporting.tables import table
from mixopt.runs.search import SearchResult
from mixopt.stages.confirm import choose_candidate
from mixopt.values.groups import make_groups
from mixopt.values.metrics import smoothed
from mixopt.values.mix import Mix, one_hot
from mixopt.weights.saving import load_recipe
from tests.conftest import make_images
from tests.listening import Recorder
from tests.stages.several import TRIALS, objective_of, options_of, pool

__all__ = ["pool"]  # a fixture


def trials_of(out: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(out / "study.journal")))
    return optuna.load_study(study_name=None, storage=storage).trials


def ingredient(objective: Objective, number: int) -> Mix:
    groups = make_groups("whole", objective.pool.sizes)
    return one_hot(groups, objective.pool.columns, objective.pool.columns[number])


@pytest.fixture(scope="module")
def done(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, list[str]]:
    heard = Recorder()
    return mixopt.search(listener=heard.listener, **options_of(pool, tmp_path_factory.mktemp("done"))), heard.told


def test_the_signal_is_the_weighted_mean_of_the_tuning_samples(pool: Path, tmp_path: Path) -> None:
    plain = objective_of(pool, tmp_path)
    mix = ingredient(plain, 1)
    weighed = plain.weighing({"extra": 0.2, "synthetic": 0.3}).score(mix)
    alone = {name: plain.score(mix, name) for name in ("validation", "extra", "synthetic")}
    assert {name: len(score.outcomes) for name, score in alone.items()} == {
        "validation": 72,
        "extra": 40,
        "synthetic": 72,
    }
    expected = 0.5 * alone["validation"].signal + 0.2 * alone["extra"].signal + 0.3 * alone["synthetic"].signal
    assert weighed.signal == pytest.approx(expected)
    assert weighed.value == alone["validation"].value
    assert weighed.images == 72 + 40 + 72
    assert len({score.value for score in alone.values()}) == 3, "splits that score alike would hide a mistake"


def test_its_images_are_tallied_and_its_mixes_count_once(pool: Path, tmp_path: Path) -> None:
    plain = objective_of(pool, tmp_path)
    weighed = plain.weighing({"extra": 0.2, "synthetic": 0.3})
    for number in (0, 1, 1):
        weighed.score(ingredient(plain, number))
    assert (weighed.tally.evaluations, weighed.tally.images, weighed.samples) == (2, 2 * 184, 184)
    assert plain.tally.evaluations == 0
    assert plain.samples == 72


def test_trials_are_told_the_weighted_signal_and_all_are_scored_fully(
    pool: Path, done: tuple[SearchResult, list[str]]
) -> None:
    folder = done[0].folder
    objective = objective_of(pool, folder.parent)
    objective = objective.steered_by(smoothed(objective.metric))
    first = load_recipe(folder / "recipe.json").mix
    for trial in trials_of(folder):
        mix = Mix(first.groups, first.columns, np.array(trial.user_attrs["coefficients"]))
        assert objective.weighing({"extra": 0.2, "synthetic": 0.3}).score(mix).signal == pytest.approx(trial.value)
        assert trial.user_attrs["images"] == 184
        assert set(trial.user_attrs["beside"]) == {"extra", "synthetic"}
        for name, metrics in trial.user_attrs["beside"].items():
            assert trial.user_attrs[f"accuracy on {name}"] == pytest.approx(metrics["accuracy"], rel=1e-5)
            assert trial.user_attrs[f"loss on {name}"] == pytest.approx(metrics["nll"], rel=1e-5)
        assert "estimated" not in trial.user_attrs


def test_the_report_marks_what_steered_and_counts_no_test(done: tuple[SearchResult, list[str]]) -> None:
    made, report = done[0].report, done[0].report.as_dict()
    assert report["select"] == {"validation": pytest.approx(0.5), "extra": 0.2, "synthetic": 0.3}
    assert list(report["shifts"]["shifts"]) == ["blur", "noise", "contrast", "edges", "resolution"]
    for entry in report["methods"]:
        assert list(entry["test"]) == ["test", "shift"]
        assert list(entry["select"]) == ["extra", "synthetic"]
    assert table(made)[0][:6] == ["method", "selection", "extra (steers)", "synthetic (steers)", "test", "shift"]
    assert report["race"] == {"given_up": 0, "images": TRIALS * 184, "unraced_images": TRIALS * 184}
    assert any("race: off" in text for text in done[1])
    assert json.loads((done[0].folder / "report.json").read_text()) == report


def test_baselines_are_those_of_a_search_that_one_split_steers(
    pool: Path, tmp_path: Path, done: tuple[SearchResult, list[str]]
) -> None:
    alone = mixopt.search(**options_of(pool, tmp_path, select=None, shifts=None)).report.as_dict()
    assert "select" not in alone
    of_robust = {entry["name"]: entry for entry in done[0].report.as_dict()["methods"]}
    for entry in alone["methods"]:
        if entry["name"] != "search":
            for key in ("search", "test", "evaluations", "images", "ingredients"):
                assert entry[key] == of_robust[entry["name"]][key], (entry["name"], key)


def test_a_resumed_study_ends_as_one_that_was_never_stopped(
    pool: Path, tmp_path: Path, done: tuple[SearchResult, list[str]]
) -> None:
    for trials in (3, TRIALS):
        mixopt.search(**options_of(pool, tmp_path, trials=trials))
    assert [trial.value for trial in trials_of(tmp_path / "run")] == [
        trial.value for trial in trials_of(done[0].folder)
    ]
    crowned = [(folder / "recipe.json").read_bytes() for folder in (tmp_path / "run", done[0].folder)]
    assert crowned[0] == crowned[1]


@pytest.mark.parametrize(
    ("change", "told"),
    [({"shifts": "synthetic:0.2"}, "select was"), ({"shifts": "none"}, "shifts was"), ({"select": {}}, "select was")],
)
def test_a_resumed_study_keeps_what_steers_it(
    change: dict[str, Any], told: str, pool: Path, done: tuple[SearchResult, list[str]]
) -> None:
    with pytest.raises(MixoptError, match=told):
        mixopt.search(**options_of(pool, done[0].folder.parent, **change))


def test_run_toml_holds_what_steered(done: tuple[SearchResult, list[str]], pool: Path) -> None:
    kept = tomllib.loads((done[0].folder / "run.toml").read_text())
    again = load_spec({"models": pool, "select": kept["select"], "shifts": kept["shifts"]})
    assert again.steering == {"extra": 0.2, "synthetic": 0.3}
    assert again.select["extra"][0] == (pool / "extra.npz").resolve()


def test_confirming_shifted_images_weigh_in_the_last_choice(pool: Path, tmp_path: Path) -> None:
    plain = objective_of(pool, tmp_path)
    objective = plain.weighing({"extra": 0.2, "synthetic": 0.3})
    start, other = ingredient(plain, 0), ingredient(plain, 1)
    whole = plain.whole()
    labels = plain.evaluators["validation"].split.labels

    def gains(split: str) -> Any:
        ours, theirs = (whole.score(mix, split).outcomes for mix in (other, start))
        return plain.signal.gains(labels, ours, theirs)[72:]

    expected = (0.5 * gains("validation") + 0.3 * gains("synthetic")) / 0.8
    forward, backward = choose_candidate(objective, start, [other]), choose_candidate(objective, other, [start])
    better = forward if expected.mean() > 0 else backward
    assert better.gain == pytest.approx(abs(expected.mean()))
    assert better.error == pytest.approx(expected.std(ddof=1) / np.sqrt(24))
    assert better.tally.images == 2 * (96 + 40 + 96)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"select": {"a": "x.npz"}}, "expected FILE:WEIGHT"),
        ({"select": {"a": "x.npz:heavy"}}, "above 0 and below 1"),
        ({"select": {"a": "x.npz:0"}}, "above 0 and below 1"),
        ({"select": {"a": ("x.npz", 1.5)}}, "above 0 and below 1"),
        ({"select": {"a": "x.npz:0.6", "b": "y.npz:0.4"}}, "leave nothing for the validation split"),
        ({"select": {"a": "x.npz:0.6"}, "shifts": "synthetic"}, "leave nothing for the validation split"),
        ({"select": {"test": "x.npz:0.5"}}, "cannot also test"),
        ({"select": {"search": "x.npz:0.5"}}, "cannot be called 'search'"),
        ({"select": {"synthetic": "x.npz:0.5"}}, "cannot be called 'synthetic'"),
        ({"shifts": "natural"}, "expected none, synthetic or synthetic:WEIGHT"),
        ({"shifts": "synthetic:"}, "expected none, synthetic or synthetic:WEIGHT"),
        ({"shifts": "synthetic:2"}, "above 0 and below 1"),
        ({"shifts": "synthetic", "data": {"test": {"synthetic": "x.npz"}}}, "give that another name"),
    ],
)
def test_what_cannot_steer_is_refused(given: dict[str, Any], told: str, pool: Path) -> None:
    with pytest.raises(SpecError, match=told):
        load_spec({"models": pool, **given})


def test_a_split_that_steers_cannot_be_a_test_split_under_another_name(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="what selects cannot also test"):
        objective_of(pool, tmp_path, select={"other": f"{pool / 'shift.npz'}:0.2"}, shifts="none")


def test_images_that_steer_twice_are_told(pool: Path, tmp_path: Path) -> None:
    heard = Recorder()
    options = options_of(pool, tmp_path, select={"other": f"{pool / 'val.npz'}:0.2"}, shifts=None)
    open_objective(load_spec(options), heard.listener)
    assert heard.warnings == ["96 images of split other, which steers, are in the validation split too"]


def test_a_command_line_that_weighs_too_much_is_refused(pool: Path) -> None:
    arguments = ["search", "--models", str(pool), "--select", "a=x.npz:0.6", "--shifts", "synthetic:0.4"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "leave nothing for the validation split" in result.output


@pytest.mark.parametrize("value", ['"extra.npz:0.25"', '["extra.npz", 0.25]'])
def test_a_pool_toml_names_splits_from_its_own_folder(value: str, clip_pool: Path) -> None:
    np.savez(clip_pool / "extra.npz", **make_images(8, seed=9))
    text = (clip_pool / "pool.toml").read_text()
    (clip_pool / "pool.toml").write_text(f"select = {{ extra = {value} }}\n{text}")
    assert load_spec({"models": clip_pool}).select == {"extra": (clip_pool.resolve() / "extra.npz", 0.25)}


def test_flags_are_read_as_names_and_files() -> None:
    form = "NAME=FILE:WEIGHT"
    assert named("--select", ["a=x:0.1", "b=y=z:0.2"], form) == {"a": "x:0.1", "b": "y=z:0.2"}
    with pytest.raises(Exception, match="--select a: expected NAME=FILE:WEIGHT"):
        named("--select", ["a"], form)


def test_a_comparison_is_steered_by_the_selection_split_alone(pool: Path, tmp_path: Path) -> None:
    options = options_of(pool, tmp_path, methods="individual,uniform")
    report = mixopt.compare(**options).report.as_dict()
    assert "select" not in report
    assert list(report["methods"][-1]["test"]) == ["test", "shift"]
