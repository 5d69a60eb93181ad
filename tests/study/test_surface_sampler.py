"""The sampler on a surface: what it asks, how far it goes, and that it is an ordinary one of Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

import mixopt
from mixopt import Simplex, constant, load_spec, open_objective
from mixopt.study.climbing import Region
from mixopt.study.samplers import BOX, SURFACE_POPULATION
from mixopt.study.schedule import is_due
from mixopt.study.surface_sampler import (
    BEGIN,
    GROWTH,
    LEAST,
    MOST,
    SHRINKAGE,
    Batch,
    SurfaceSampler,
    design,
    next_half,
    propose,
)
from mixopt.study.trials import optuna_objective
from mixopt.values.groups import make_groups
from mixopt.values.samples import VALIDATION
from tests.study.drawn import OPTIMUM, SPACE, Drawn, scattered


def told(values: Sequence[float | None]) -> tuple[optuna.Study, list[FrozenTrial]]:
    """A study that was told so many values, where None is a trial that failed."""
    study = optuna.create_study(direction="maximize")
    for value in values:
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        study.add_trial(create_trial(state=state, value=value))
    return study, study.get_trials()


@pytest.mark.parametrize(
    ("gained", "factor"),
    [
        ([0.1, 0.2, 0.175], GROWTH),
        ([0.1, 0.5, 0.0], GROWTH),
        ([0.1, 0.16, 0.0], 1),
        ([0.1, 0.12, 0.0], SHRINKAGE),
        ([0.1, 0.0, -3.0], SHRINKAGE),
        ([0.1, None, 0.0], SHRINKAGE),
        ([0.1, None, None], SHRINKAGE),
        ([0.1, 0.2], GROWTH),  # the rest of a batch that never was asked predicted more
    ],
)
def test_the_trust_region_follows_what_a_batch_gained_of_what_was_predicted(
    gained: list[float | None], factor: float
) -> None:
    expected = np.array([0.2, 0.1] if len(gained) == 3 else [0.2, 9.0])
    study, before = told([0.0, *gained])
    batch = Batch(2, np.zeros((2, 1)), expected, 0.4)
    assert next_half(study, batch, before) == pytest.approx(0.4 * factor)


def test_it_stays_where_nothing_was_predicted_or_told_and_has_limits() -> None:
    study, before = told([0.0, 0.1, 0.5, 0.5])
    points = np.zeros((2, 1))
    assert next_half(study, Batch(2, points, np.zeros(0), 0.5), before) == 0.5
    assert next_half(study, Batch(2, points, np.array([0.1, 0.05]), 0.5), before) == 0.5  # no gain was predicted
    assert next_half(study, Batch(4, points, np.array([0.7, 0.7]), 0.5), before) == 0.5  # none was told yet
    assert next_half(study, Batch(2, points, np.array([0.2, 0.2]), 1.9), before) == MOST
    assert next_half(study, Batch(2, points, np.array([9.0, 9.0]), 0.03), before) == LEAST


@pytest.mark.parametrize(("dims", "count"), [(1, 2), (4, 8), (33, 16)])
def test_a_design_fills_its_box(dims: int, count: int) -> None:
    points = design(dims, count, BEGIN, seed=3)
    assert points.shape == (count, dims)
    assert np.all(np.abs(points) <= BEGIN)
    # Of a Sobol sequence of 2^k points, half lie on either side in every dimension.
    assert np.array_equal(np.sum(points > 0, axis=0), np.full(dims, count // 2))
    assert np.array_equal(points, design(dims, count, BEGIN, seed=3))
    assert not np.array_equal(points, design(dims, count, BEGIN, seed=4))


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("half", [0.05, 0.5, 2.0])
def test_proposals_are_distinct_within_the_region_and_the_best_come_first(count: int, half: float) -> None:
    landscape = Drawn(signal="accuracy").landscape(scattered(12))
    begin = np.array([0.9, -0.2, 0.0, -1.0])
    points = propose(landscape, Region(begin, half), count, seed=1)
    assert points.shape == (count, 4)
    assert np.all(np.abs(points) <= 1)
    assert np.all(np.abs(points - begin) <= half + 1e-12)
    assert len(np.unique(points, axis=0)) == count
    assert not np.any(np.all(points == begin, axis=1)), "the centre was scored"
    assert np.argmax(landscape.values(points)) == 0
    assert np.array_equal(points, propose(landscape, Region(begin, half), count, seed=1))


def run(drawn: Drawn, sampler: optuna.samplers.BaseSampler, trials: int) -> optuna.Study:
    study = optuna.create_study(direction=drawn.signal.direction, sampler=sampler)
    study.enqueue_trial(dict.fromkeys(SPACE.labels, 0.0))
    study.optimize(optuna_objective(drawn.objective, SPACE), n_trials=trials)
    return study


@pytest.mark.parametrize("population", [None, 3])
def test_what_it_asks_is_read_back_bit_for_bit(population: int | None) -> None:
    drawn = Drawn(sizes={VALIDATION: 100})
    study = run(drawn, SurfaceSampler(drawn.objective, SPACE, 5, population), 20)
    size = population or SURFACE_POPULATION
    batches = [batch for trial in study.trials if (batch := Batch.of(trial)) is not None]
    # Nobody was asked for the start, which was enqueued.
    first = 8 if population is None else 6
    assert [batch.first for batch in batches] == [1, *range(1 + first, 20, size)]
    assert [len(batch.points) for batch in batches] == [first, *[size] * (len(batches) - 1)]
    assert not len(batches[0].expected)
    for batch in batches:
        trials = study.trials[batch.first : batch.first + len(batch.points)]
        asked = np.array([[trial.params[label] for label in SPACE.labels] for trial in trials])
        assert np.array_equal(asked, batch.points[: len(asked)])
        assert np.all(np.isfinite(batch.expected))
        assert all(trial.distributions[label] == BOX for trial in trials for label in SPACE.labels)
    # Another sampler that knows nothing but the study asks the same.
    again = optuna.create_study(direction="minimize", sampler=SurfaceSampler(drawn.objective, SPACE, 5, population))
    again.add_trials(study.trials[:15])
    again.optimize(optuna_objective(drawn.objective, SPACE), n_trials=5)
    assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials]


@pytest.mark.parametrize("signal", ["nll", "accuracy"])
def test_it_beats_random(signal: str) -> None:
    """On the samples that it sees, from the same start, with the same trials."""
    found: dict[str, list[float]] = {"surface": [], "random": []}
    for seed in range(2):
        drawn = Drawn(2 * OPTIMUM, {VALIDATION: 300}, signal, seed)
        found["surface"].append(run(drawn, SurfaceSampler(drawn.objective, SPACE, seed), 24).best_value)
        found["random"].append(run(drawn, RandomSampler(seed), 24).best_value)
    assert all(drawn.signal.better(*both) for both in zip(found["surface"], found["random"], strict=True))


def test_it_finds_the_optimum() -> None:
    drawn = Drawn(OPTIMUM, {VALIDATION: 1_000})
    study = run(drawn, SurfaceSampler(drawn.objective, SPACE), 32)
    start, least = study.trials[0].values[0], drawn.score(SPACE.to_mix(OPTIMUM)).signal
    assert study.best_value < least
    assert start - study.best_value > start - least > 0


def test_failed_trials_are_no_evidence() -> None:
    drawn = Drawn(sizes={VALIDATION: 80})
    score = optuna_objective(drawn.objective, SPACE)

    def failing(trial: optuna.Trial) -> float:
        if trial.number % 3 == 2:
            raise ValueError("no")
        return score(trial)

    study = optuna.create_study(direction="minimize", sampler=SurfaceSampler(drawn.objective, SPACE))
    study.optimize(failing, n_trials=20, catch=(ValueError,))
    assert sum(trial.state == TrialState.COMPLETE for trial in study.trials) == 14
    assert [trial.number for trial in study.trials if Batch.of(trial)] == [0, 9, 18]  # 8 and 17 asked nothing


def test_where_none_completes_it_goes_on_with_designs() -> None:
    drawn = Drawn(sizes={VALIDATION: 80})

    def failing(trial: optuna.Trial) -> float:
        for label in SPACE.labels:
            trial.suggest_float(label, -1, 1)
        raise ValueError("no")

    study = optuna.create_study(sampler=SurfaceSampler(drawn.objective, SPACE))
    study.optimize(failing, n_trials=17, catch=(ValueError,))
    batches = [batch for trial in study.trials if (batch := Batch.of(trial))]
    assert [batch.first for batch in batches] == [0, 8, 16]
    assert not np.array_equal(batches[0].points, batches[1].points)


@pytest.mark.parametrize("noted", [True, False], ids=["as a search notes", "of one's own"])
def test_several_objectives_are_climbed_one_weighted_mean_after_another(noted: bool) -> None:
    sizes = {VALIDATION: 80, "extra": 60}
    drawn = Drawn(OPTIMUM, sizes)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=SurfaceSampler(drawn.objective, SPACE, 1))

    def both(trial: optuna.Trial) -> tuple[float, ...]:
        point = np.array([trial.suggest_float(label, -1, 1) for label in SPACE.labels])
        mix = SPACE.to_mix(point)
        scores = {name: float(drawn.outcomes(mix, name, size).losses.mean()) for name, size in sizes.items()}
        if noted:
            trial.set_user_attr("coefficients", mix.coefficients.tolist())
            trial.set_user_attr("weighted", float(np.mean(list(scores.values()))))
        return tuple(scores.values())

    study.optimize(both, n_trials=24)
    design_values, later = (
        np.array([trial.values for trial in study.trials[some]]).min(axis=0) for some in (slice(8), slice(8, 24))
    )
    assert np.all(later < design_values)
    points = np.array([[trial.params[label] for label in SPACE.labels] for trial in study.trials])
    assert len(np.unique(points, axis=0)) == 24
    assert SurfaceSampler(drawn.objective, SPACE, 1).promise(study.trials) is None


def test_a_surface_is_asked_what_it_promises_once_for_a_quarter_more_trials() -> None:
    due = [generations for generations in range(1, 200) if is_due(generations)]
    assert due[:6] == [1, 2, 3, 4, 5, 6]
    assert all(later <= 1.25 * earlier + 1 for earlier, later in pairwise(due))
    assert len(due) < 25


def test_what_is_still_promised_falls_to_nothing() -> None:
    drawn = Drawn(2 * OPTIMUM, {VALIDATION: 500})
    sampler = SurfaceSampler(drawn.objective, SPACE)
    study = run(drawn, sampler, 48)
    assert sampler.promise(study.trials[:9]) is None  # a design predicts nothing
    early, late = sampler.promise(study.trials[:10]), sampler.promise(study.trials)
    assert early is not None
    assert late is not None
    assert early.gain > early.error
    assert late.gain < late.error
    few = sampler.promise(study.trials[:10], judges_from=450)
    assert few is not None
    assert few.error > early.error


def test_in_a_study_of_ones_own_on_a_real_pool(clip_pool_template: Path, tmp_path: Path) -> None:
    spec = load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu", "metric": "nll"})
    objective = open_objective(spec)
    pool = objective.pool
    start = constant(make_groups("2", pool.sizes), pool.columns, np.full(len(pool.columns), 1 / len(pool.columns)))
    space = Simplex(start, pool.columns, 0.5)
    sampler = mixopt.SurfaceSampler(objective, space, seed=2)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    study.optimize(mixopt.optuna_objective(objective, space), n_trials=20)
    values = [trial.values[0] for trial in study.trials]
    assert min(values[16:]) < min(values[:16])
    # Trials are real scores.
    best = study.best_trial
    mix = space.to_mix(np.array([best.params[label] for label in space.labels]))
    assert objective.score(mix).signal == best.value
