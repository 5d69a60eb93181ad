"""A crew: the bits of one process whoever computes, who is asked first, and what becomes of workers that are lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt import DataError, Mix, Objective, ScoreError, load_spec, open_objective
from mixopt.scoring.crew import dispatch
from mixopt.scoring.jobs import Part, Rows
from mixopt.scoring.outcomes import PER_SAMPLE, Outcomes
from mixopt.values.groups import make_groups
from tests.conftest import random_mix
from tests.listening import Recorder
from tests.scoring.batchnorm_pool import ingredients, trained, write_pool
from tests.text_family import write_text_pool
from tests.workers.scripted import DiedError, IdleError, crewed


def plain(pool: Path, cache: Path, **options: Any) -> Objective:
    """The same scored by this process."""
    given = {"models": pool, "cache": cache, "device": "cpu", "precision": "fp32", "batch_size": 10, **options}
    return open_objective(load_spec(given))


def mixes_of(objective: Objective, count: int, scheme: str = "block") -> list[Mix]:
    groups = make_groups(scheme, objective.pool.sizes)
    return [random_mix(groups, objective.pool.columns, seed) for seed in range(count)]


def same(first: Outcomes, second: Outcomes) -> bool:
    """Whether both are the same bits, logits included."""
    arrays = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in PER_SAMPLE)
    if first.logits is None or second.logits is None:
        return arrays and first.logits is second.logits
    return arrays and first.logits.values.tobytes() == second.logits.values.tobytes()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_pool(tmp_path_factory.mktemp("texts") / "pool")


@pytest.fixture(scope="module")
def batchnorm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    states = ingredients(trained(own_statistics=True), shift=0.7)
    return write_pool(tmp_path_factory.mktemp("batchnorm") / "pool", states)


@pytest.mark.parametrize("kind", ["images", "texts", "recomputed statistics"])
def test_scores_are_the_bits_of_one_process(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    fixture = {"images": "clip_pool_template", "texts": "texts", "recomputed statistics": "batchnorm"}[kind]
    pool: Path = request.getfixturevalue(fixture)
    options: dict[str, Any] = {"batchnorm": "recompute"} if kind == "recomputed statistics" else {}
    one = plain(pool, tmp_path / "one", **options)
    with crewed(pool, tmp_path / "crew", **options) as (objective, hands):
        for mix in mixes_of(one, 3):
            for split in one.evaluators:
                expected, found = one.score(mix, split), objective.score(mix, split)
                assert same(found.outcomes, expected.outcomes)
                assert (found.value, found.images) == (expected.value, expected.images)
        # From the samples that tune to all, in another number of batches.
        assert same(objective.whole().score(mix).outcomes, one.whole().score(mix).outcomes)
        assert hands.given
    parts = [job for job in hands.given if job.split == "validation"]
    assert (len(parts) > 4) == (kind != "recomputed statistics"), "statistics are set once per mix"


def test_a_few_first_samples_and_then_more_are_the_bits_of_one_process(
    clip_pool_template: Path, tmp_path: Path
) -> None:
    one = plain(clip_pool_template, tmp_path / "one", confirm=0)
    (mix,) = mixes_of(one, 1)
    with crewed(clip_pool_template, tmp_path / "crew", confirm=0) as (objective, _):
        for count in (7, 33, 96):
            expected, found = one.outcomes(mix, "validation", count), objective.outcomes(mix, "validation", count)
            assert same(found, expected)


def test_a_function_of_ones_own_is_called_once_per_mix(batchnorm: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {"data": {"validation": "tests.own_functions:each"}, "metric": "accuracy"}
    one = plain(batchnorm, tmp_path / "one", **data)
    with crewed(batchnorm, tmp_path / "crew", **data) as (objective, hands):
        for mix in mixes_of(one, 2):
            assert same(objective.score(mix).outcomes, one.score(mix).outcomes)
    assert len(hands.given) == 2


def test_ensembles_and_gradients_are_those_of_one_process(clip_pool_template: Path, tmp_path: Path) -> None:
    one = plain(clip_pool_template, tmp_path / "one", confirm=0)
    mixes = mixes_of(one, 2, "2")
    samples = np.random.default_rng(0).permutation(96)[:90]
    with crewed(clip_pool_template, tmp_path / "crew", confirm=0) as (objective, hands):
        assert same(objective.score_ensemble(mixes).outcomes, one.score_ensemble(mixes).outcomes)
        expected, found = one.gradient(mixes[0], samples), objective.gradient(mixes[0], samples)
        assert found.coefficients.tobytes() == expected.coefficients.tobytes()
        assert (found.loss, found.scale) == (expected.loss, expected.scale)
        assert [job.count for job in hands.given[-2:]] == [64, 26]
        given = len(hands.given)
        # A mix that was differentiated has averaged statistics; what comes after it does not go on with those.
        assert same(objective.score(mixes[0]).outcomes, one.score(mixes[0]).outcomes)
        objective.gradient(mixes[1], samples[:30])
    assert all(isinstance(job, Part) for job in hands.given[given:]), "a gradient of one part is taken here"


def test_a_race_gives_the_same_score_and_leaves_what_comes_after(clip_pool_template: Path, tmp_path: Path) -> None:
    pool, options = clip_pool_template, dict[str, Any](confirm=0, limit=96)
    one = plain(pool, tmp_path / "one", **options)
    with pytest.MonkeyPatch.context() as patch, crewed(pool, tmp_path / "crew", **options) as (objective, hands):
        patch.setattr("mixopt.scoring.racing.FEWEST", 10)
        incumbent, *others = mixes_of(one, 6)
        best = one.score(incumbent)
        level = 0.6  # gives up early, so that races differ
        expected = [one.race(mix, best, level) for mix in others]
        objective.score(incumbent)
        before = len(hands.given)
        objective.expect_race(others, best, level)
        found = [objective.race(mix, best, level) for mix in others]
    assert [each.value for each in found] == [each.value for each in expected]
    assert [len(each.outcomes) for each in found] == [len(each.outcomes) for each in expected]
    seen = sum(len(each.outcomes) for each in found)
    ran = sum(job.count for job in hands.given[before:])
    assert seen <= ran < len(others) * 96, "what is left is not computed, but for what was given out already"
    assert any(len(each.outcomes) < 96 for each in found)


def test_parts_of_several_mixes_are_given_out_in_turn(clip_pool_template: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"confirm": 0}
    with crewed(clip_pool_template, tmp_path / "crew", count=1, **options) as (objective, hands):
        first, second, third = mixes_of(objective, 3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mixopt.scoring.racing.FEWEST", 10)
            incumbent = objective.score(third)
            hands.given.clear()
            objective.expect_race([first, second], incumbent, 0)
            for mix in (first, second):
                objective.race(mix, incumbent, 0)
    rows = [Rows.of(mix, objective.pool) for mix in (first, second)]
    turns = [(next(n for n, each in enumerate(rows) if job.rows.same(each)), job.start) for job in hands.given]
    assert turns[:2] == [(0, 0), (1, 0)], "the first look of both before the second of any"
    assert sorted(turns) == [(mix, start) for mix in (0, 1) for start in range(0, 96, 10)]


def test_what_may_not_be_asked_for_comes_last_and_is_forgotten(clip_pool_template: Path, tmp_path: Path) -> None:
    with crewed(clip_pool_template, tmp_path / "crew", confirm=0, count=1) as (objective, hands):
        sure, perhaps = mixes_of(objective, 2)
        objective.expect([perhaps], unsure=True)
        begun = len(hands.given)
        assert begun == 2, "as much as a worker has and the next one"
        objective.score(sure)
        own = Rows.of(sure, objective.pool)
        asked = [job for job in hands.given[begun:] if job.rows.same(own)]
        assert len(asked) == 10
        objective.forget()
        after = len(hands.given)
        objective.score(mixes_of(objective, 3)[2])
    assert not any(job.rows.same(Rows.of(perhaps, objective.pool)) for job in hands.given[after:])


def test_what_a_lost_worker_had_is_given_out_again(clip_pool_template: Path, tmp_path: Path) -> None:
    one, heard = plain(clip_pool_template, tmp_path / "one"), Recorder()
    (mix,) = mixes_of(one, 1)
    lost: dict[int, BaseException | None] = {0: DiedError(), 1: IdleError(), 4: DiedError()}
    with crewed(clip_pool_template, tmp_path / "crew", lost, listener=heard.listener) as (objective, _):
        assert same(objective.score(mix).outcomes, one.score(mix).outcomes)
    assert sorted(text for text in heard.warnings if "died" in text) == [
        "a worker died in its sleep; what it worked on is given out again",
        "a worker died; what it worked on is given out again",
        "a worker died; what it worked on is given out again",
    ]
    assert "worker 1 (cpu) has joined" in heard.infos


def test_a_mix_that_costs_three_workers_is_given_up(clip_pool_template: Path, tmp_path: Path) -> None:
    lost: dict[int, BaseException | None] = {0: DiedError(), 1: DiedError(), 2: DiedError()}
    with crewed(clip_pool_template, tmp_path / "crew", lost) as (objective, _):
        bad, good = mixes_of(objective, 2)
        with pytest.raises(ScoreError, match="3 workers were lost over it; the last time a worker died"):
            objective.score(bad)
        assert objective.score(good).value > 0


def test_deaths_that_others_caused_do_not_add_up(clip_pool_template: Path, tmp_path: Path) -> None:
    every_third: dict[int, BaseException | None] = {number: DiedError() for number in range(0, 40, 3)}
    with crewed(clip_pool_template, tmp_path / "crew", every_third, count=1) as (objective, hands):
        assert objective.score(mixes_of(objective, 1)[0]).value > 0
    assert len(hands.given) > 10


def test_workers_that_sleep_and_die_blame_nobody(clip_pool_template: Path, tmp_path: Path) -> None:
    lost: dict[int, BaseException | None] = {number: IdleError() for number in range(9)}
    with crewed(clip_pool_template, tmp_path / "crew", lost) as (objective, _):
        assert objective.score(mixes_of(objective, 1)[0]).value > 0


def test_an_error_of_the_job_is_the_run_s_own(clip_pool_template: Path, tmp_path: Path) -> None:
    wrong: dict[int, BaseException | None] = {1: DataError("val.npz: the model fails on these samples")}
    with (
        crewed(clip_pool_template, tmp_path / "crew", wrong) as (objective, _),
        pytest.raises(DataError, match="the model fails"),
    ):
        objective.score(mixes_of(objective, 1)[0])


@pytest.mark.parametrize("running", [True, False])
def test_a_worker_that_hangs_is_killed_and_one_that_takes_nothing_replaced(
    running: bool, clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_TICK", 0.01)
    heard = Recorder()
    hangs: dict[int, BaseException | None] = {3: None}
    with crewed(clip_pool_template, tmp_path / "crew", hangs, count=1, listener=heard.listener) as (objective, hands):
        crew: Any = objective.scorer.workers
        crew._dispatch._patience = 0.05
        if not running:
            _never_starts(hands, monkeypatch)
        assert objective.score(mixes_of(objective, 1)[0]).value > 0
    assert (hands.stopped, hands.renewed) == ((1, 0) if running else (0, 1))
    told = "for one part, and is killed" if running else "all of them are replaced"
    assert any(told in text for text in heard.warnings)


def _never_starts(hands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job that hangs is not even taken by a worker."""
    submit: Callable[..., Any] = hands.submit

    def waiting(job: Any) -> Any:
        future = submit(job)
        if future.running():
            future._state = "PENDING"
        return future

    monkeypatch.setattr(hands, "submit", waiting)


@pytest.mark.parametrize("verbose", [False, True])
def test_what_each_worker_has_done_is_told_on_demand(
    verbose: bool, clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixopt.scoring.crew.told._EVERY", 0.0)
    heard = Recorder()
    with crewed(clip_pool_template, tmp_path, listener=heard.listener, verbose=verbose) as (objective, _):
        objective.score(mixes_of(objective, 1)[0])
    told = [text for text in heard.infos if "images/s" in text]
    assert any(text.startswith("worker 1 (cpu): ") for text in told) == verbose
    assert any(text.startswith("all workers: ") for text in told) == verbose
