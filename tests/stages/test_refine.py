"""The second stage: which layer groups it moves, around what, and that two stages are one search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import mixopt
from mixopt import DataError, Listener, MixoptError, Objective, SpecError, load_spec, open_objective
from mixopt.listener import TrialEvent
from mixopt.runs.search import SearchResult
from mixopt.stages.plan import plan_refine
from mixopt.stages.refine import refine
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix, combine, constant, rows_on
from mixopt.weights.saving import load_recipe
from tests.stages.default import SAMPLES, STEERING, lacking, options_of, rows_of, run_killed
from tests.stages.several import options_of as several_options
from tests.stages.several import pool

__all__ = ["pool"]
TRIALS, FIRST = 11, 6


def refined_options(pool: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return options_of(pool, folder, **{"refine": 2, "trials": TRIALS, "population": 4, **more})


def trials_of(out: Path) -> tuple[list[optuna.trial.FrozenTrial], list[optuna.trial.FrozenTrial]]:
    """Of the first and the second stage."""
    storage = JournalStorage(JournalFileBackend(str(out / "study.journal")))
    first, second = (optuna.load_study(study_name=name, storage=storage).trials for name in ("run", "run-refine"))
    return first, second


def facts_of(out: Path) -> list[list[tuple[Any, ...]]]:
    return [
        [(trial.number, trial.state, trial.value, trial.params, trial.user_attrs["coefficients"]) for trial in stage]
        for stage in trials_of(out)
    ]


@pytest.fixture(scope="module")
def done(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, list[TrialEvent]]:
    events: list[TrialEvent] = []
    options = refined_options(clip_pool_template, tmp_path_factory.mktemp("refined"))
    return mixopt.search(listener=Listener(trial=events.append), **options), events


def test_the_second_half_moves_the_layer_groups_named_around_the_best_of_the_first(
    done: tuple[SearchResult, list[TrialEvent]], clip_pool_template: Path
) -> None:
    result = done[0]
    first, second = trials_of(result.folder)
    assert (len(first), len(second)) == (FIRST, TRIALS - FIRST)
    best = max(first, key=lambda trial: (trial.value or 0.0, -trial.number))
    space = result.report.as_dict()["space"]
    refined = space["refined"]
    assert (space["kind"], refined["kind"], refined["around"]) == ("residual", "layers", best.number)
    groups = list(refined["effects"])
    matter = sorted(groups, key=lambda name: -refined["effects"][name])[:2]
    assert sorted(refined["groups"]) == sorted(matter)
    assert refined["dims"] == len(refined["labels"]) == 2 * 3, "two groups, four ingredients"
    assert second[0].value == best.value
    start = np.array(second[0].user_attrs["coefficients"])
    for trial in second[1:]:
        moved = np.any(np.array(trial.user_attrs["coefficients"]) != start, axis=1)
        assert {groups[number] for number in np.flatnonzero(moved)} == set(matter)


def test_trial_numbers_go_on_counting(done: tuple[SearchResult, list[TrialEvent]]) -> None:
    result, events = done
    assert [event.number for event in events] == list(range(TRIALS))
    assert [event.complete for event in events] == list(range(1, TRIALS + 1))
    assert {event.total for event in events} == {TRIALS}
    assert result.report.trials == {"complete": TRIALS}
    assert result.report.as_dict()["race"]["unraced_images"] == TRIALS * STEERING


def test_the_gradient_counts_as_a_pass(done: tuple[SearchResult, list[TrialEvent]]) -> None:
    rows = rows_of(done[0])
    # The baseline learned by gradient makes three passes; it is the start, and three teach it again from all samples.
    assert rows["search"]["gradient_images"] == 4 * STEERING + 3 * SAMPLES


def test_the_best_of_both_stages_go_to_the_last_choice(
    clip_pool_template: Path, tmp_path: Path, finalists: list[list[Mix]]
) -> None:
    result = mixopt.search(**refined_options(clip_pool_template, tmp_path, race="off", confirm=0))
    first, second = trials_of(result.folder)
    numbered = dict(enumerate([*first, *second]))
    del numbered[FIRST]  # the second stage's start is the first's best
    best = sorted(numbered, key=lambda number: (-(numbered[number].value or 0.0), number))
    coefficients = [numbered[number].user_attrs["coefficients"] for number in best[:5]]
    assert [mix.coefficients.tolist() for mix in finalists[0]] == coefficients
    assert result.report.as_dict()["verification"]["trial"] == best[0]
    recipe = load_recipe(result.folder / "recipe.json").mix
    assert recipe.coefficients.tolist() == coefficients[0]


@pytest.mark.parametrize("writes", [(3, 4), (9, 1), (10, 2)])
def test_killed_twice_equals_uninterrupted(
    writes: tuple[int, int],
    clip_pool_template: Path,
    tmp_path: Path,
    done: tuple[SearchResult, list[TrialEvent]],
) -> None:
    killed = run_killed(writes, **refined_options(clip_pool_template, tmp_path))
    whole = done[0]
    assert facts_of(killed.folder) == facts_of(whole.folder)
    assert killed.report.as_dict()["space"] == whole.report.as_dict()["space"]
    assert (killed.folder / "recipe.json").read_bytes() == (whole.folder / "recipe.json").read_bytes()
    rows = [rows_of(result)["search"] for result in (killed, whole)]
    for key in ("evaluations", "images", "gradient_images", "notes"):
        assert rows[0][key] == rows[1][key]


def test_more_trials_go_to_the_second_stage(
    clip_pool_template: Path, tmp_path: Path, done: tuple[SearchResult, list[TrialEvent]]
) -> None:
    mixopt.search(**refined_options(clip_pool_template, tmp_path))
    mixopt.search(**refined_options(clip_pool_template, tmp_path, trials=TRIALS + 3))
    first, second = facts_of(tmp_path / "run")
    before = facts_of(done[0].folder)
    assert first == before[0]
    assert second[: TRIALS - FIRST] == before[1]
    assert len(second) == TRIALS - FIRST + 3
    fewer = mixopt.search(**refined_options(clip_pool_template, tmp_path, trials=2))
    assert fewer.report.as_dict()["trials"] == {"complete": TRIALS + 3}


def test_a_deadline_in_the_first_stage_leaves_the_second_for_later(clip_pool_template: Path, tmp_path: Path) -> None:
    early = mixopt.search(**refined_options(clip_pool_template, tmp_path, timeout=1e-6))
    assert not early.finished
    assert "refined" not in early.report.as_dict()["space"]
    assert mixopt.search(**refined_options(clip_pool_template, tmp_path)).report.as_dict()["trials"] == {
        "complete": TRIALS
    }


def test_stages_of_a_search_that_several_splits_steer_have_one_front(pool: Path, tmp_path: Path) -> None:
    report = mixopt.search(**several_options(pool, tmp_path, refine=1, trials=6)).report.as_dict()
    assert [point["trial"] for point in report["front"]["points"]] == list(range(6))
    assert report["space"]["refined"]["dims"] == 3


def objective_of(pool: Path, folder: Path) -> Objective:
    return open_objective(load_spec({"models": pool, "cache": folder, "device": "cpu", "confirm": 0}))


def test_effects_are_slopes_of_the_loss(clip_pool_template: Path, tmp_path: Path) -> None:
    """Against differences of the loss, one coefficient of one layer group after the other."""
    objective = objective_of(clip_pool_template, tmp_path)
    columns = objective.pool.columns
    row = np.array([0.0 if name == objective.pool.base else 0.25 for name in columns])
    soup = constant(make_groups("whole", objective.pool.sizes), columns, row)
    spec = load_spec({"models": clip_pool_template, "refine": 1})
    found = refine(plan_refine(spec, 1, objective.pool), objective, soup, 0)
    groups = make_groups("block", objective.pool.sizes)
    assert tuple(found.effects) == groups.names
    rows = rows_on(soup, groups)

    def loss(group: int, column: int, other: int, step: float) -> float:
        changed = rows.copy()
        changed[group, [column, other]] += [step, -step]
        return objective.score(Mix(groups, columns, changed)).metrics["nll"]

    for number, name in enumerate(groups.names):
        first, *rest = (columns.index(each) for each in objective.pool.ingredients)
        pairs = [(loss(number, each, first, 0.02), loss(number, each, first, -0.02)) for each in rest]
        slopes = np.array([0.0, *((above - below) / 0.04 for above, below in pairs)])
        expected = np.linalg.norm(slopes - slopes.mean())
        assert found.effects[name] == pytest.approx(expected, rel=0.05, abs=2e-4)
    assert found.space.moving == (max(found.effects, key=lambda name: found.effects[name]),)
    assert objective.tally.gradient_images == 96


def test_a_number_of_ingredients_bounds_those_that_move(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = objective_of(clip_pool_template, tmp_path)
    groups = make_groups("block", objective.pool.sizes)
    one = constant(groups, objective.pool.columns, np.eye(len(objective.pool.columns))[0])
    mix = combine([one], [1.0])
    wide = refine(plan_refine(load_spec({"models": clip_pool_template}), 2, objective.pool), objective, mix, 0)
    assert wide.space.active == objective.pool.ingredients
    narrow = refine(
        plan_refine(load_spec({"models": clip_pool_template, "ingredients": 2}), 2, objective.pool), objective, mix, 0
    )
    assert len(narrow.space.active) == 2
    assert set(narrow.space.active) < set(objective.pool.ingredients)
    assert np.array_equal(narrow.space.to_mix(np.zeros(2)).coefficients, mix.coefficients)


def test_more_layer_groups_than_there_are_are_refused_before_any_work(clip_pool_template: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--refine 9: expected at most 3, the layer groups"):
        mixopt.search(**refined_options(clip_pool_template, tmp_path, refine=9, groups="3"))
    assert not (tmp_path / "run").exists()


def test_a_pool_without_gradients_is_refused_before_any_trial(clip_pool: Path, tmp_path: Path) -> None:
    lacking(clip_pool)
    events: list[TrialEvent] = []
    with pytest.raises(DataError, match="no samples of 1"):
        mixopt.search(listener=Listener(trial=events.append), **refined_options(clip_pool, tmp_path))
    assert not events


def test_a_front_has_no_second_stage(clip_pool_template: Path) -> None:
    with pytest.raises(SpecError, match="--refine: a second stage begins at one best mix"):
        load_spec({"models": clip_pool_template, "shifts": "synthetic", "pareto": True, "refine": 2})


def test_a_resumed_study_keeps_to_its_stages(
    clip_pool_template: Path, done: tuple[SearchResult, list[TrialEvent]]
) -> None:
    with pytest.raises(MixoptError, match="refine was 2, now 3"):
        mixopt.search(**refined_options(clip_pool_template, done[0].folder.parent, refine=3))
