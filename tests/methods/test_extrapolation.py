from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt import Mix, PoolError, ScoreError, SpecError
from mixopt.comparison.requests import parse
from mixopt.methods import extrapolation
from mixopt.scoring.score import Score
from mixopt.values.groups import make_groups
from mixopt.weights.pool import Pool
from tests.conftest import random_mix
from tests.methods.landscape import STEPS, Landscape, ingredients_of, random_pool
from tests.methods.reference import TENTHS, State, fused, same, state_of

SHUFFLED = ("step_300", "step_100", "step_500", "step_200", "step_400")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return random_pool(tmp_path_factory.mktemp("extrapolation"))


def shuffled(pool: Pool) -> dict[str, Mix]:
    return {name: ingredients_of(pool)[name] for name in SHUFFLED}


def beyond(origin: State, last: State, alpha: float) -> State:
    """The paper's update on weights."""
    return {name: last[name] + alpha * (last[name] - origin[name]) for name in last}


def aimed(pool: Pool, origin: str, alpha: float, metric: str = "accuracy") -> Any:
    """A landscape whose optimum lies so far beyond the last checkpoint."""
    landscape = Landscape(pool, metric=metric)
    landscape.optimum[:] = 0
    landscape.optimum[:, pool.columns.index("step_500")] = 1 + alpha
    landscape.optimum[:, pool.columns.index(origin)] -= alpha
    return landscape


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize("origin", ["first", "base"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_mix_is_the_papers_on_weights_and_the_best_alpha_is_found(
    origin: Any, metric: str, alpha: float, pool: Pool
) -> None:
    start = "step_100" if origin == "first" else "base"
    landscape = aimed(pool, start, alpha, metric)
    choice = extrapolation.choose(landscape, shuffled(pool), seed=0, origin=origin)
    assert choice.notes == {"alpha": alpha, "from": start, "through": "step_500"}
    expected = beyond(state_of(pool, start), state_of(pool, "step_500"), alpha)
    assert same(fused(choice.mix, pool), expected)
    assert [point["x"] for point in choice.curves["alpha"]] == TENTHS
    assert len(landscape.asked) == len(TENTHS)
    used = {name: value for name, value in zip(pool.columns, choice.mix.coefficients[0], strict=True) if value}
    assert used == pytest.approx({"step_500": 1 + alpha} | ({start: -alpha} if alpha else {}))


def test_alpha_0_is_the_last_checkpoint_bit_for_bit(pool: Pool) -> None:
    choice = extrapolation.choose(aimed(pool, "step_100", 0.5), shuffled(pool), seed=0, alphas=(0.0,))
    assert choice.mix.coefficients[0].tolist() == [float(name == "step_500") for name in pool.columns]


def test_alphas_may_be_beyond_1_and_come_in_any_order(pool: Pool) -> None:
    landscape = aimed(pool, "step_100", 8.0)
    choice = extrapolation.choose(landscape, shuffled(pool), seed=0, alphas=(8.0, 0.5, 2.0, 8.0))
    assert choice.notes["alpha"] == 8
    assert [point["x"] for point in choice.curves["alpha"]] == [0.5, 2, 8]


def test_of_equals_the_smallest_alpha(pool: Pool) -> None:
    landscape: Any = Landscape(pool, levels=1)
    landscape.optimum[:] = ingredients_of(pool)["step_500"].coefficients
    choice = extrapolation.choose(landscape, shuffled(pool), seed=0, alphas=(0.1, 0.2, 0.3))
    assert len({point["value"] for point in choice.curves["alpha"]}) == 1
    assert choice.notes["alpha"] == 0.1


def test_a_mix_alone_is_left_behind_from_the_base_whatever_its_name(pool: Pool) -> None:
    soup = random_mix(make_groups("tensor", pool.sizes), pool.columns, seed=2)
    landscape: Any = Landscape(pool)
    choice = extrapolation.choose(landscape, {"greedy": soup}, seed=0, origin="base", alphas=(0.4,))
    assert same(fused(choice.mix, pool), beyond(state_of(pool, "base"), fused(soup, pool), 0.4))
    request = parse("extrapolation:base:greedy", STEPS, (), {})
    assert (request.name, request.options, request.sources) == (
        "extrapolation:greedy:base",
        {"origin": "base"},
        ("greedy",),
    )


def test_equal_checkpoints_give_the_same_model_back(pool: Pool) -> None:
    one = ingredients_of(pool)["step_200"]
    landscape: Any = Landscape(pool)
    choice = extrapolation.choose(landscape, {"a_1": one, "a_2": one}, seed=0, alphas=(0.7,))
    assert choice.mix.coefficients == pytest.approx(one.coefficients, abs=1e-12)


def test_alphas_that_break_the_model_are_told_and_not_chosen(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    landscape = aimed(pool, "step_100", 1.0)
    real = landscape.score

    def breaking(mix: Mix, split: str = "validation") -> Score:
        if mix.coefficients.min() < -0.55:
            raise ScoreError("not finite")
        score: Score = real(mix, split)
        return score

    monkeypatch.setattr(landscape, "score", breaking)
    choice = extrapolation.choose(landscape, shuffled(pool), seed=0)
    assert choice.notes["alpha"] == 0.5
    assert choice.notes["not_finite"] == [0.6, 0.7, 0.8, 0.9, 1.0]
    with pytest.raises(ScoreError, match="not finite"):
        extrapolation.choose(landscape, shuffled(pool), seed=0, alphas=(0.9, 1.0))


@pytest.mark.parametrize("alphas", [(), (-0.1, 0.5), (math.nan,), (math.inf,)])
def test_wrong_alphas_are_told_before_anything_is_scored(alphas: Any, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    with pytest.raises(SpecError, match="alphas: expected numbers of 0 or more, found "):
        extrapolation.choose(landscape, shuffled(pool), seed=0, alphas=alphas)
    assert not landscape.asked


def test_names_that_tell_no_order_are_refused(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    step, *_ = ingredients_of(pool).values()
    for columns, message in (
        ({"step_1": step, "final": step}, "such as step_1000: no number in final"),
        ({"step_1": step}, "two or more checkpoints, found step_1"),
    ):
        with pytest.raises(SpecError, match=message):
            extrapolation.choose(landscape, columns, seed=0)
    with pytest.raises(SpecError, match="no number in final"):
        extrapolation.choose(landscape, {"step_1": step, "final": step}, seed=0, origin="base")
    assert not landscape.asked


def test_only_the_origin_base_needs_the_base(tmp_path: Path) -> None:
    pool = random_pool(tmp_path, base=False)
    landscape: Any = Landscape(pool)
    assert np.isfinite(extrapolation.choose(landscape, shuffled(pool), seed=0).mix.coefficients).all()
    fresh: Any = Landscape(pool)
    with pytest.raises(PoolError, match="it needs the base"):
        extrapolation.choose(fresh, shuffled(pool), seed=0, origin="base")
    assert not fresh.asked
