"""Activation reuse: the bits of a full pass, whatever is kept; kept where it helps, dropped where it cannot stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mixopt import Mix, Objective, load_spec, open_objective
from mixopt.families.open_clip import OpenClip
from mixopt.scoring.activation_reuse import BOUNDARIES, ActivationReuse
from mixopt.scoring.evaluator import PRECISIONS
from mixopt.scoring.outcomes import Outcomes
from mixopt.values.groups import make_groups
from tests.conftest import CLASSES, random_mix
from tests.tiny_family import Mlp

# Of the tiny model: the stem, two blocks, the head.
SEGMENTS = 4
IMAGES = 96


def opened(pool: Path, cache: Path, **options: Any) -> Objective:
    given = {
        "models": pool,
        "cache": cache,
        "device": "cpu",
        "batch_size": 20,
        "precision": "fp32",
        "confirm": 0,
        **options,
    }
    return open_objective(load_spec(given))


def reuse_of(objective: Objective) -> ActivationReuse:
    assert objective.scorer.engine.reuse is not None
    return objective.scorer.engine.reuse


def changed(mix: Mix, *groups: int) -> Mix:
    """The mix with other rows in some groups."""
    rows = mix.coefficients.copy()
    for group in groups:
        rows[group] = np.roll(rows[group], 1)
    return Mix(mix.groups, mix.columns, rows)


def steps(objective: Objective) -> list[Mix]:
    """Groups are the stem, both blocks and the head; first all change, then one after another."""
    groups = make_groups("block", objective.pool.sizes)
    assert len(groups) == SEGMENTS
    start = random_mix(groups, objective.pool.columns)
    return [start, changed(start, 3), changed(start, 2), changed(start, 2, 3), changed(start, 1), changed(start, 0)]


def same(first: Outcomes, second: Outcomes) -> bool:
    return np.array_equal(first.predicted, second.predicted) and np.array_equal(first.losses, second.losses)


def without_reuse(objective: Objective) -> Objective:
    return replace(objective, scorer=replace(objective.scorer, engine=replace(objective.scorer.engine, reuse=None)))


def compare(pool: Path, cache: Path, damage: Callable[[Objective], None] = lambda _: None, **options: Any) -> Objective:
    """The steps with and without reuse, which must be the same bits; the objective that reused."""
    reusing, plain = opened(pool, cache / "reusing", **options), opened(pool, cache / "plain", **options)
    plain = without_reuse(plain)
    for number, mix in enumerate(steps(reusing)):
        if number == 2:
            damage(reusing)
        assert same(reusing.score(mix).outcomes, plain.score(mix).outcomes), f"step {number}"
    assert plain.reused == 0
    return reusing


@pytest.mark.parametrize("precision", PRECISIONS)
def test_outcomes_are_the_same_bits(precision: str, clip_pool_template: Path, tmp_path: Path) -> None:
    reusing = compare(clip_pool_template, tmp_path, precision=precision)
    # What step 1 keeps, 2 cannot use; 2 keeps what 3 segments gave, from which 3 starts; 4 and 5 find nothing.
    assert reusing.reused == round(3 / (6 * SEGMENTS), 4)


def test_rows_that_are_equal_are_fused_to_the_same_bits(clip_pool_template: Path, tmp_path: Path) -> None:
    """One row for all, then another in the last group: without cuts, one long product and two shorter ones."""
    objective = opened(clip_pool_template, tmp_path)
    groups = make_groups("block", objective.pool.sizes)
    rows = np.tile(np.random.default_rng(0).dirichlet(np.ones(len(objective.pool.columns))), (len(groups), 1))
    mix = Mix(groups, objective.pool.columns, rows)
    builder = objective.scorer.engine.builder
    assert len(builder.cuts) == SEGMENTS - 1
    starts = [objective.pool.mixed[cut].start for cut in sorted(builder.cuts)]
    for group, start in enumerate(starts, start=1):
        builder.apply(mix)
        before = builder._flat.clone()
        builder.apply(changed(mix, group))
        assert torch.equal(builder._flat[:start], before[:start])
        assert not torch.equal(builder._flat[start:], before[start:]), "control: something did change"


def test_mixes_that_share_nothing_are_run_as_ever(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = opened(clip_pool_template, tmp_path)
    groups = make_groups("whole", objective.pool.sizes)
    for seed in range(3):
        mix = random_mix(groups, objective.pool.columns, seed)
        assert reuse_of(objective).plan(mix, objective.evaluators["validation"].split) is None


def test_another_split_shares_nothing(clip_pool_template: Path, tmp_path: Path) -> None:
    objective, plain = opened(clip_pool_template, tmp_path / "one"), opened(clip_pool_template, tmp_path / "two")
    plain = without_reuse(plain)
    for mix in steps(objective):
        for split in ("validation", "test"):
            assert same(objective.score(mix, split).outcomes, plain.score(mix, split).outcomes)
    assert objective.reused == 0


@pytest.mark.parametrize(("batches", "spared"), [(0, 0), (1, 2), (3, 3 + 2)])
def test_what_does_not_fit_in_the_budget_is_run_anew(
    batches: int, spared: int, clip_pool_template: Path, tmp_path: Path
) -> None:
    batch = 20 * 5 * 32 * 4  # images, tokens, width, bytes

    def limit(objective: Objective) -> None:
        reuse = reuse_of(objective)
        reuse.drop()
        reuse.budget = batches * batch + 1

    reusing = compare(clip_pool_template, tmp_path, limit)
    assert reuse_of(reusing)._held() <= batches * batch
    assert reusing.reused == round(20 * spared / (6 * SEGMENTS * IMAGES), 4)


def test_few_boundaries_are_kept(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = opened(clip_pool_template, tmp_path)
    start = steps(objective)[0]
    for seed in range(5):
        objective.score(random_mix(start.groups, start.columns, seed))
        objective.score(changed(random_mix(start.groups, start.columns, seed), 2))
        assert len(reuse_of(objective)._kept) <= BOUNDARIES
    assert reuse_of(objective)._held() == BOUNDARIES * IMAGES * 5 * 32 * 4


def test_out_of_memory_drops_what_is_kept_before_it_halves_batches(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OpenClip.predict_segments
    most = 3 * 20 * 5 * 32 * 4  # three batches of one boundary
    failures: list[int] = []

    def short(self: OpenClip, *arguments: Any) -> Any:
        first, *rest, last = real(self, *arguments)

        def head(hidden: Tensor) -> Tensor:
            if reuse_of(objective)._held() > most:
                failures.append(reuse_of(objective)._held())
                raise torch.OutOfMemoryError("no more")
            return torch.as_tensor(last(hidden))

        return first, *rest, head

    monkeypatch.setattr(OpenClip, "predict_segments", short)
    objective, plain = opened(clip_pool_template, tmp_path / "one"), opened(clip_pool_template, tmp_path / "two")
    plain = without_reuse(plain)
    for mix in steps(objective):
        assert same(objective.score(mix).outcomes, plain.score(mix).outcomes)
    assert len(failures) == 1
    assert reuse_of(objective).budget == failures[0] // 2
    assert objective.reused > 0, "what still fits is kept"
    evaluator: Any = objective.evaluators["validation"]
    assert evaluator._fitting == [20]


def test_ensembles_reuse_too(clip_pool_template: Path, tmp_path: Path) -> None:
    objective, plain = opened(clip_pool_template, tmp_path / "one"), opened(clip_pool_template, tmp_path / "two")
    plain = without_reuse(plain)
    mixes = steps(objective)
    assert same(objective.score_ensemble(mixes).outcomes, plain.score_ensemble(mixes).outcomes)
    assert objective.reused > 0


def test_images_and_evaluations_count_as_ever(clip_pool_template: Path, tmp_path: Path) -> None:
    reusing = compare(clip_pool_template, tmp_path)
    assert reusing.reused > 0
    assert (reusing.tally.evaluations, reusing.tally.images) == (6, 6 * IMAGES)


def test_a_family_without_stages_reuses_nothing(clip_pool: Path, tmp_path: Path) -> None:
    module = Mlp(len(CLASSES))
    for path in clip_pool.glob("*.safetensors"):
        path.unlink()
    (clip_pool / "pool.toml").write_text(
        f'family = "tests.tiny_family:plain"\nclassnames = {json.dumps(CLASSES)}\n[data]\nsearch = "val.npz"\n'
    )
    for number in range(2):
        state = {n: t + 0.1 * number if t.is_floating_point() else t for n, t in module.state_dict().items()}
        torch.save(state, clip_pool / f"model_{number}.pt")
    objective = opened(clip_pool, tmp_path)
    assert objective.scorer.engine.reuse is None
    assert objective.reused == 0
