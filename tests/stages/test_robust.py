"""The last step under shift: what it is judged by, where it is taken, and that it is said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mixopt
from mixopt import DataError, Mix, Objective, load_spec, open_objective
from mixopt.comparison.running import ingredient_mixes
from mixopt.runs.search import SearchResult
from mixopt.scoring.score import Score
from mixopt.stages.robust import LEAST, SHARES, Point, Robust, describe_robust
from mixopt.stages.shift_evidence import Mean
from mixopt.values.mix import combine, constant
from mixopt.values.samples import SYNTHETIC, VALIDATION
from tests.listening import Recorder
from tests.stages.default import SAMPLES, options_of
from tests.study.killing import trials_of

HELD = 67


def options_for(pool: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """A search of four trials from the greedy soup, of which most samples are held back."""
    own = {"trials": 4, "sampler": "random", "start": "greedy", "confirm": HELD / SAMPLES, "refit": "off"}
    return options_of(pool, folder, **{**own, **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("robust")


@pytest.fixture(scope="module")
def stepped(clip_pool_template: Path, folder: Path) -> SearchResult:
    return mixopt.search(**options_for(clip_pool_template, folder))


@pytest.fixture(scope="module")
def without(clip_pool_template: Path, folder: Path) -> SearchResult:
    return mixopt.search(**{**options_for(clip_pool_template, folder, robust="off"), "out": folder / "off"})


def notes_of(result: SearchResult) -> dict[str, Any]:
    return dict(result.report.row("search").notes["robust"])


def end_of(towards: str, without: SearchResult) -> Mix:
    mix = without.recipe.mix
    if towards == "uniform":
        return constant(mix.groups, mix.columns, [(name != "base") / (len(mix.columns) - 1) for name in mix.columns])
    return constant(mix.groups, mix.columns, [float(name == "base") for name in mix.columns])


def test_what_a_step_costs_and_gains(stepped: SearchResult, without: SearchResult, clip_pool_template: Path) -> None:
    """Every point that was tried, by the outcomes of its mix: held-out samples, and all of them shifted."""
    spec = load_spec({
        **options_for(clip_pool_template, stepped.folder.parent),
        "shifts": "synthetic", "precision": stepped.report.precision["mode"],
    })  # fmt: skip
    objective = open_objective(spec)
    mix, labels = without.recipe.mix, objective.evaluators[VALIDATION].split.labels
    told = [point for point in notes_of(stepped)["tried"] if point["towards"] != "middle"]
    assert {point["towards"] for point in told} == {"uniform", "base"}
    for point in told:
        share = point["share"]
        ours, theirs = combine([mix, end_of(point["towards"], without)], [1 - share, share]), mix
        gains = {}
        for split in (VALIDATION, SYNTHETIC):
            one, two = (objective.outcomes(each, split, SAMPLES) for each in (ours, theirs))
            right = (one.predicted == labels).astype(float) - (two.predicted == labels)
            gains[split] = right, right + two.losses - one.losses
        held = [each[-HELD:] for each in gains[VALIDATION]]
        shifted = gains[SYNTHETIC][1]
        error = [each.std(ddof=1) / math.sqrt(len(each)) for each in (*held, shifted)]
        assert (point["cost"], point["cost_error"]) == pytest.approx((-held[0].mean(), error[0]))
        assert point["gain"] == pytest.approx(held[1].mean() + shifted.mean(), abs=1e-9)
        assert point["gain_error"] == pytest.approx(math.hypot(error[1], error[2]))


def test_the_step_taken_is_the_one_that_gains_most(stepped: SearchResult, without: SearchResult) -> None:
    notes = notes_of(stepped)
    points = [Point(**each) for each in notes["tried"]]
    helping = [point for point in points if point.helps]
    assert helping, "control: there are some"
    best = max(helping, key=lambda point: point.gain)
    assert (notes["towards"], notes["share"], notes["judging"]) == (best.towards, best.share, HELD)
    assert stepped.recipe.mix != without.recipe.mix
    assert "robust" not in without.report.row("search").notes
    # Counted: each mix on all samples, plain and shifted, but for what the search had scored of them.
    more = stepped.report.row("search").images - without.report.row("search").images
    assert len(points) * SAMPLES < more <= (len(points) + 5) * 2 * SAMPLES


def test_ways_are_followed_as_long_as_they_gain(stepped: SearchResult) -> None:
    ways: dict[str, list[Point]] = {}
    for each in notes_of(stepped)["tried"]:
        ways.setdefault(each["towards"], []).append(Point(**each))
    assert list(ways) == ["uniform", "base", "middle"]
    for points in ways.values():
        assert [point.share for point in points] == list(SHARES[: len(points)])
        before = 0.0
        for point in points[:-1]:
            assert point.is_free
            assert point.gain >= before
            before = point.gain
        last = points[-1]
        assert len(points) == len(SHARES) or not last.is_free or last.gain < before


def test_the_middle_is_the_mean_of_trials_that_are_level(
    stepped: SearchResult, without: SearchResult, clip_pool_template: Path
) -> None:
    notes = notes_of(stepped)
    assert notes["towards"] == "middle", "control: the step is towards it"
    spec = load_spec({**options_for(clip_pool_template, stepped.folder.parent), "precision": "fp32"})
    objective = open_objective(spec)
    labels = objective.evaluators[VALIDATION].split.labels[-HELD:]
    start = without.recipe.mix

    def signals(mix: Mix) -> NDArray[np.float64]:
        held = objective.outcomes(mix, VALIDATION, SAMPLES).rest(SAMPLES - HELD)
        return np.asarray((held.predicted == labels) - held.losses)

    level = []
    for trial in trials_of(stepped.folder):
        rows = np.array(trial.user_attrs["coefficients"])
        mix = Mix(start.groups, start.columns, rows)
        gains = signals(mix) - signals(start)
        if not trial.user_attrs.get("estimated") and gains.mean() >= -gains.std(ddof=1) / math.sqrt(HELD):
            level.append(rows)
    share = notes["share"]
    expected = (1 - share) * start.coefficients + share * np.mean(level, axis=0)
    assert stepped.recipe.mix.coefficients == pytest.approx(expected, abs=1e-9)


def test_it_is_said(clip_pool_template: Path, folder: Path, stepped: SearchResult) -> None:
    told = Recorder()
    mixopt.search(**options_for(clip_pool_template, folder), listener=told.listener)
    step = notes_of(stepped)
    (line,) = [text for text in told.infos if "--robust" in text]
    assert line.startswith(
        f"a step for shifts (--robust): {step['share']:.0%} of the way to middle; accuracy on the 67"
    )


@pytest.mark.parametrize(
    ("cost", "gain", "helps"), [(0.01, 0.03, True), (0.02, 0.03, True), (0.021, 0.03, False), (-0.1, 0.02, False)]
)
def test_a_step_must_be_free_and_gain(cost: float, gain: float, helps: bool) -> None:
    assert Point("uniform", 0.25, cost, 0.02, gain, 0.02).helps == helps


def test_too_few_samples_tell_no_cost(clip_pool_template: Path, tmp_path: Path) -> None:
    told = Recorder()
    few = (LEAST - 1) / SAMPLES
    result = mixopt.search(**options_for(clip_pool_template, tmp_path, confirm=few), listener=told.listener)
    notes = notes_of(result)
    assert notes["evidence"] == "synthetic"
    assert (notes["towards"], notes["share"], notes["judging"], notes["tried"]) == (None, 0.0, LEAST - 1, [])
    assert any("19 samples held back are too few to tell its cost" in text for text in told.infos)


def test_where_other_splits_steer_there_is_no_step(clip_pool_template: Path, tmp_path: Path) -> None:
    result = mixopt.search(**options_for(clip_pool_template, tmp_path, shifts="synthetic"))
    assert "robust" not in result.report.row("search").notes


def test_words_of_a_step_that_was_not_taken() -> None:
    mix = constant(mixopt.Mix.from_dict(ONE).groups, ("a", "b"), [1, 0])
    points = (Point("uniform", 0.125, 0.03, 0.01, 0.01, 0.02), Point("base", 0.125, 0.01, 0.01, -0.01, 0.02))
    assert describe_robust(Robust(mix, points, None, 40, EVIDENCE), "accuracy") == (
        "no step for shifts is supported (--robust; the likeliest, 12% of the way to uniform: accuracy on the 40 "
        "samples held back -0.0300 ± 0.0100, with the shifted images +0.0100 ± 0.0200)"
    )
    lost = describe_robust(Robust(mix, (), None, 40, EVIDENCE), "accuracy")
    assert lost == "no step for shifts (--robust): no mix on the way to another has finite losses on shifted samples"


class Told:
    """Evidence that is only told of."""

    split = "synthetic"
    words = "with the shifted images"

    @property
    def objective(self) -> Objective:
        raise NotImplementedError

    def gain(self, ours: Score, theirs: Score) -> Mean:
        raise NotImplementedError


EVIDENCE = Told()
ONE = {"columns": ["a", "b"], "groups": [["whole", ["weight"]]], "coefficients": [[1.0, 0.0]]}


# With samples of the target, whose labels nobody knows


@pytest.fixture(scope="module")
def voted(clip_pool_template: Path, folder: Path) -> SearchResult:
    with np.load(clip_pool_template / "test.npz") as arrays:
        np.savez(folder / "target.npz", x=arrays["x"])
    options = options_for(clip_pool_template, folder, unlabelled=folder / "target.npz")
    return mixopt.search(**{**options, "out": folder / "voted"})


def test_the_vote_of_the_ingredients_judges(
    voted: SearchResult, without: SearchResult, clip_pool_template: Path
) -> None:
    """How much more often it is met on the target than on held-out samples, and what these gain."""
    notes = notes_of(voted)
    assert (notes["evidence"], notes["samples"]) == ("unlabelled", SAMPLES)
    objective = open_objective(load_spec({**options_for(clip_pool_template, voted.folder.parent), "precision": "fp32"}))
    mix, labels = without.recipe.mix, objective.evaluators[VALIDATION].split.labels
    ones = list(ingredient_mixes(objective).values())
    told = [point for point in notes["tried"] if point["towards"] != "middle"]
    assert told
    for point in told:
        share = point["share"]
        ours = combine([mix, end_of(point["towards"], without)], [1 - share, share])
        more = {}
        for split in (VALIDATION, "test"):  # the same images, with labels
            vote = objective.whole().score_ensemble(ones, split).outcomes.predicted
            one, two = (objective.outcomes(each, split, SAMPLES).predicted for each in (ours, mix))
            more[split] = (one == vote).astype(float) - (two == vote)
            if split == VALIDATION:
                right = ((one == labels).astype(float) - (two == labels))[-HELD:]
        here = right - more[VALIDATION][-HELD:]
        assert point["gain"] == pytest.approx(here.mean() + more["test"].mean(), abs=1e-9)
        errors = [each.std(ddof=1) / math.sqrt(len(each)) for each in (here, more["test"])]
        assert point["gain_error"] == pytest.approx(math.hypot(*errors))
    assert voted.report.tests == without.report.tests, "no test split of the report"
    # Each ingredient votes on every unlabelled sample.
    extra = voted.report.row("search").images - without.report.row("search").images
    assert extra >= (len(ones) + 2 * len(notes["tried"])) * SAMPLES


def test_unlabelled_samples_that_cannot_be_used_fail_before_any_trial(clip_pool_template: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        mixopt.search(**options_for(clip_pool_template, tmp_path, unlabelled=tmp_path / "none.npz"))
    assert not (tmp_path / "run" / "study.journal").exists()
