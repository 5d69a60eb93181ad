"""Searches on a surface, end to end on the tiny pool: the last choice, stopping, and what was scored before."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixopt
from mixopt import Listener, SpecError, load_spec
from mixopt import study as studies
from mixopt.assemble import assemble
from mixopt.runs.search import SearchResult
from mixopt.scoring.outcomes import Outcomes
from mixopt.stages.confirm import Choice
from mixopt.stages.crossfit import CrossFitted, describe_cross_fitted, doubt, judges_from, metric_cost
from mixopt.stages.plan import plan_search
from mixopt.stages.shift_evidence import Mean
from mixopt.stages.start import find_start
from mixopt.values.groups import Groups
from mixopt.values.metrics import METRICS
from mixopt.values.mix import constant
from mixopt.weights.saving import load_recipe
from tests.listening import Recorder
from tests.stages.default import SAMPLES, rows_of
from tests.study.killing import facts_of, trials_of

TRIALS = 30  # it stops at 25, and goes on to these


def options_of(pool: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "models": pool,
        "trials": TRIALS,
        "sampler": "surface",
        "metric": "nll",
        "space": "shared",
        "start": "uniform",
        "device": "cpu",
        "precision": "fp32",
        "out": folder / "run",
        "cache": folder / "cache",
        **more,
    }


@pytest.fixture(scope="module")
def stopped(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Recorder]:
    """A search that stopped, and what it said."""
    recorder = Recorder()
    folder = tmp_path_factory.mktemp("surface")
    return mixopt.search(listener=recorder.listener, **options_of(clip_pool_template, folder)), recorder


def test_a_step_is_taken_and_the_report_says_how(stopped: tuple[SearchResult, Recorder]) -> None:
    result, recorder = stopped
    row = rows_of(result)["search"]
    start = rows_of(result)["uniform"]["metrics"]["validation"]["nll"]
    notes = row["notes"]
    assert notes["judging"] == SAMPLES
    assert notes["procedure"] == "all dimensions, 100% of the way"
    assert 0 < notes["share"] <= 1
    assert notes["gain"] > 2 * notes["error"]
    assert not notes["refit"]
    assert 0.95 < notes["explained"] < 1
    assert not any("predicts poorly" in text for text in recorder.warnings)
    # What is expected is about what it scored, and the gain is over the start.
    assert notes["expected"] == pytest.approx(row["metrics"]["validation"]["nll"], abs=0.1 * notes["gain"])
    assert notes["expected"] == pytest.approx(start - notes["gain"], abs=0.1 * notes["gain"])
    said = f"the mix that the surface chooses ({notes['procedure']}) gains +"
    assert any(text.startswith(said) for text in recorder.infos)
    # What is exported is what was chosen, and no trial's mix.
    mix = load_recipe(result.folder / "recipe.json").mix
    trials = [np.array(trial.user_attrs["coefficients"]) for trial in trials_of(result.folder)]
    assert not any(each.shape == mix.coefficients.shape and np.allclose(each, mix.coefficients) for each in trials)


def test_it_says_that_it_stops_and_goes_on_where_asked(
    stopped: tuple[SearchResult, Recorder], clip_pool_template: Path, tmp_path: Path
) -> None:
    result, recorder = stopped
    trials = trials_of(result.folder)
    assert 16 < len(trials) < TRIALS
    begins = f"stopped after {len(trials)} trials: the surface promises"
    (said,) = [text for text in recorder.infos if text.startswith(begins)]
    assert said.endswith("(--no-stop goes on)")
    shutil.copytree(result.folder.parent, tmp_path, dirs_exist_ok=True)
    options, gone_on = options_of(clip_pool_template, tmp_path, stop=False), Recorder()
    mixopt.search(listener=gone_on.listener, **options)
    whole = facts_of(tmp_path / "run")
    assert len(whole) == TRIALS
    assert whole[: len(trials)] == facts_of(result.folder)
    assert not any("promises" in text for text in gone_on.infos)
    never = mixopt.search(**{**options, "out": tmp_path / "never"})
    assert facts_of(never.folder) == whole


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"refine": 2},
            "--refine 2: --sampler surface has one round, .*; leave out --refine, or choose another sampler",
        ),
        (
            {"data": {"validation": Path("tests.own_functions:fixed")}, "metric": "score"},
            "--sampler surface: the split validation is scored by your own function, which gives no logits; choose "
            "cmaes, tpe, gp or random",
        ),
    ],
)
def test_what_has_no_surface_is_refused(
    more: dict[str, Any], told: str, clip_pool_template: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=told):
        mixopt.search(**options_of(clip_pool_template, tmp_path, **more))
    assert not (tmp_path / "run" / "study.journal").exists()


def test_a_warm_cache_changes_nothing_unless_it_is_asked_for(
    stopped: tuple[SearchResult, Recorder], clip_pool_template: Path, tmp_path: Path
) -> None:
    """With ``run``, what others scored is not used. With ``cache`` it is, and what a learned row scored on its way."""
    result, _ = stopped
    shutil.copytree(result.folder.parent / "cache", tmp_path / "cache")
    options = options_of(clip_pool_template, tmp_path, trials=18, stop=False)
    warm = mixopt.search(**{**options, "out": tmp_path / "warm"})
    first = facts_of(result.folder)[:18]
    assert facts_of(warm.folder) == first
    cold = mixopt.search(**{**options, "evidence": "cache", "cache": tmp_path / "new", "out": tmp_path / "cold"})
    more = mixopt.search(**{**options, "evidence": "cache"})
    known = [evidence_in(each.folder) for each in (warm, cold, more)]
    assert known[0] == evidence_in(result.folder)
    # The uniform soup and the checkpoints are among them, and then the trials of the earlier run.
    assert 5 <= len(known[0]) <= len(known[1]) < len(known[2])
    assert len(known[2]) >= len(known[0]) + 18
    assert all(each in known[1] for each in known[0])
    assert all(each in known[2] for each in known[1])
    facts = facts_of(more.folder)
    assert facts[:9] == first[:9]  # a design asks no evidence
    assert facts[9:] != first[9:]
    assert min(fact[2] for fact in facts[9:]) < min(fact[2] for fact in first[:9])


def evidence_in(folder: Path) -> list[Any]:
    """What a run's study keeps of mixes scored before."""
    for line in (folder / "study.journal").read_text(encoding="utf-8").splitlines():
        kept = json.loads(line).get("user_attr", {}).get("mixopt")
        if kept:
            return list(kept["evidence"])
    raise AssertionError("no study")


GROUPS = Groups((("all", ("one",)),))


@pytest.mark.parametrize(
    ("candidate", "error", "told"),
    [
        (None, float("nan"), "9 samples are too few to judge what the others choose: the start stays"),
        (None, 0.02, r"no step from the start is supported \(the likeliest, along the depth, gains \+0.0100 ± 0.0200"),
        (0, 0.004, r"chooses \(along the depth\) gains \+0.0100 ± 0.0040 .*; 84% of that step is taken, and 0.7000 is"),
    ],
)
def test_the_choice_in_words(candidate: int | None, error: float, told: str) -> None:
    mix = constant(GROUPS, ("a", "b"), np.array([0.5, 0.5]))
    share = 0.0 if candidate is None else 0.84
    choice = Choice(mix, candidate, share, 0.01, error)
    found = CrossFitted(choice, "along the depth", 0.7, 9, 0.9)
    assert re.search(told, describe_cross_fitted(found))


def test_what_does_not_score_as_predicted_is_learned_and_chosen_again(
    stopped: tuple[SearchResult, Recorder], clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[int] = []
    chosen = studies.cross_fit

    def counted(landscape: studies.Landscape, *given: Any, **more: Any) -> studies.CrossFit:
        learned.append(len(landscape.surface))
        return chosen(landscape, *given, **more)

    result, _ = stopped
    shutil.copytree(result.folder.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(studies, "cross_fit", counted)
    before = rows_of(mixopt.search(**options_of(clip_pool_template, tmp_path)))["search"]
    assert len(learned) == 1, "control: it scores as predicted"
    learned.clear()
    monkeypatch.setattr("mixopt.stages.crossfit._is_as_predicted", lambda *_: False)
    after = rows_of(mixopt.search(**options_of(clip_pool_template, tmp_path)))["search"]
    assert learned == [learned[0] + number for number in range(4)]
    # Here it was as predicted, and so it stays about what it was.
    assert after["metrics"]["validation"]["nll"] == pytest.approx(before["metrics"]["validation"]["nll"], abs=0.01)


def test_a_surface_that_predicts_badly_says_so() -> None:
    found = CrossFitted(
        Choice(constant(GROUPS, ("a", "b"), np.array([0.5, 0.5])), None, 0.0, 0.01, 0.02), "", 0.7, 9, 0.9
    )
    assert doubt(found) is None
    told = doubt(replace(found, explained=0.421))
    assert told is not None
    assert told.startswith(
        "the surface predicts poorly here: of how the logits of trials differ from the start's it explains 42%"
    )
    assert "a smaller --radius" in told


def test_where_every_sample_taught_the_start_none_judges(clip_pool_template: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    options = options_of(clip_pool_template, tmp_path, start="learned", confirm=0.0, trials=9, space="residual")
    result = mixopt.search(listener=recorder.listener, **options)
    notes = rows_of(result)["search"]["notes"]
    assert notes["share"] == 0
    assert notes["judging"] == 0
    assert "expected" not in notes
    assert any(text.startswith("every sample taught the start by gradient") for text in recorder.infos)


def outcomes_of(predicted: list[int]) -> Outcomes:
    return Outcomes(np.array(predicted), np.zeros(len(predicted)))


@pytest.mark.parametrize(
    ("ours", "cost"),
    [
        ([0, 0, 0, 0, 0, 0, 0, 0], None),  # level
        ([1, 0, 0, 0, 0, 0, 0, 0], None),  # one lost: as much as its error
        ([1, 1, 1, 0, 0, 0, 0, 0], 3 / 8),
    ],
)
def test_a_step_may_cost_of_the_metric_what_is_noise(ours: list[int], cost: float | None) -> None:
    labels = np.zeros(8, dtype=np.int64)
    origin = constant(GROUPS, ("a", "b"), np.array([0.5, 0.5]))
    found = studies.CrossFit(origin, None, 0.5, 0.1, 0.01, (), {"validation": outcomes_of(ours)})
    said = metric_cost(METRICS["accuracy"], labels, found, outcomes_of([0] * 8))
    assert (said and said.value) == cost


def test_a_step_that_costs_the_metric_is_not_taken(
    stopped: tuple[SearchResult, Recorder], clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = stopped
    shutil.copytree(result.folder.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("mixopt.stages.crossfit.metric_cost", lambda *_: Mean(0.02, 0.01))
    told = Recorder()
    stayed = rows_of(mixopt.search(**options_of(clip_pool_template, tmp_path), listener=told.listener))
    assert stayed["search"]["notes"]["share"] == 0
    ours, theirs = (stayed[name]["metrics"]["validation"]["nll"] for name in ("search", "uniform"))
    assert ours == pytest.approx(theirs, abs=1e-6)
    said = "a step from the start is not taken (all dimensions, 100% of the way): it gains"
    (line,) = [text for text in told.infos if text.startswith(said)]
    assert line.endswith("costs 0.0200 ± 0.0100 of the metric on them: the start stays")


@pytest.mark.parametrize(
    ("start", "metric", "first"),
    [("learned", "accuracy", 77), ("learned", "f1_macro", 0), ("learned", "nll", 77), ("greedy", "accuracy", 0)],
)
def test_samples_judge_what_they_did_not_teach(
    start: str, metric: str, first: int, clip_pool_template: Path, tmp_path: Path
) -> None:
    spec = load_spec(options_of(clip_pool_template, tmp_path, start=start, metric=metric))
    assembly = assemble(spec, Listener())
    found = find_start(plan_search(spec, assembly), assembly, Listener())
    assert judges_from(found, assembly.objective) == first
