from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt import Mix, PoolError, SpecError, combine
from mixopt.errors import ScoreError
from mixopt.methods import individual, wise_ft
from mixopt.values.groups import make_groups
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool
from tests.conftest import random_mix
from tests.methods.landscape import Landscape, ingredients_of, random_pool
from tests.methods.reference import TENTHS, State, fused, same, state_of


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return random_pool(tmp_path_factory.mktemp("wise_ft"))


def interpolated(pool: Pool, alpha: float, name: str) -> State:
    """The paper's formula on weights."""
    base, tuned = state_of(pool, "base"), state_of(pool, name)
    return {tensor: (1 - alpha) * base[tensor] + alpha * tuned[tensor] for tensor in base}


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_the_sweep_is_the_papers_formula_from_the_best_column(metric: str, pool: Pool) -> None:
    inner = 0
    for seed in range(20):
        landscape: Any = Landscape(pool, seed, metric)
        choice = wise_ft.choose(landscape, ingredients_of(pool), seed=0)
        alone: Any = Landscape(pool, seed, metric)
        best = individual.choose(alone, ingredients_of(pool), seed=0).notes["best"]
        assert choice.notes["column"] == best
        assert list(choice.sweep) == TENTHS, "exact decimals"
        for alpha, mix in choice.sweep.items():
            assert same(fused(mix, pool), interpolated(pool, alpha, best))
        values = {alpha: landscape.value(mix) for alpha, mix in choice.sweep.items()}
        pick = max if metric == "accuracy" else min
        alpha = pick(TENTHS, key=lambda value: values[value])
        assert choice.notes["alpha"] == alpha
        assert choice.mix == choice.sweep[alpha]
        assert choice.curves == {"alpha": [{"x": x, "value": value} for x, value in values.items()]}
        assert len(set(landscape.asked)) == 5 + 10, "the column itself is one of the five"
        inner += 0 < alpha < 1
    assert inner > 5


def test_the_ends_are_the_base_and_the_column_bit_for_bit(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    sweep = wise_ft.choose(landscape, {"one": ingredients_of(pool)["step_300"]}, seed=0).sweep
    for alpha, name in ((0, "base"), (1, "step_300")):
        rows = tensor_rows(sweep[alpha], pool)
        assert rows.tobytes() == np.tile([float(column == name) for column in pool.columns], (len(rows), 1)).tobytes()


def test_one_column_is_not_scored_alone(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    choice = wise_ft.choose(landscape, {"one": ingredients_of(pool)["step_300"]}, seed=0, alphas=(0.25, 0.75))
    assert len(landscape.asked) == 2
    assert choice.notes["column"] == "one"


def test_a_given_alpha_costs_nothing(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    choice = wise_ft.choose(landscape, {"one": ingredients_of(pool)["step_300"]}, seed=0, alpha=0.3)
    assert not landscape.asked
    assert choice.notes == {"alpha": 0.3, "column": "one"}
    assert not choice.sweep
    assert not choice.curves
    assert same(fused(choice.mix, pool), interpolated(pool, 0.3, "step_300"))


def test_of_equals_the_smallest_alpha(pool: Pool) -> None:
    ties = 0
    for seed in range(30):
        landscape: Any = Landscape(pool, seed, levels=10)
        choice = wise_ft.choose(landscape, ingredients_of(pool), seed=0, alphas=(1.0, 0.5, 0.75, 0.0, 0.5))
        values = [landscape.value(mix) for mix in choice.sweep.values()]
        assert list(choice.sweep) == [0, 0.5, 0.75, 1]
        assert choice.notes["alpha"] == [0, 0.5, 0.75, 1][int(np.argmax(values))]
        ties += values.count(max(values)) > 1
    assert ties > 3


def test_columns_may_be_soups_with_groups_of_their_own(pool: Pool) -> None:
    by_tensor = random_mix(make_groups("tensor", pool.sizes), pool.columns[:-1], seed=3)
    soup = Mix(by_tensor.groups, pool.columns, np.c_[by_tensor.coefficients, np.zeros(len(by_tensor.groups))])
    plain = combine(list(ingredients_of(pool).values()), [1, 0, 0, 0, 0])
    landscape: Any = Landscape(pool)
    landscape.optimum = tensor_rows(soup, pool)
    choices = [
        wise_ft.choose(landscape, columns, seed=0)
        for columns in ({"plain": plain, "soup": soup}, {"soup": soup, "plain": plain})
    ]
    for choice in choices:
        assert choice.notes == {"alpha": 1.0, "column": "soup"}
        assert choice.mix == soup
    landscape.optimum = tensor_rows(plain, pool)
    choice = wise_ft.choose(landscape, {"soup": soup, "plain": plain}, seed=0)
    assert choice.mix == plain, "over its own groups, not over those of the other"


def test_an_alpha_without_a_finite_score_is_left_out(pool: Pool) -> None:
    class Broken(Landscape):
        def score(self, mix: Mix, split: str = "validation") -> Any:
            if mix.coefficients[0, -1] in self.broken:
                raise ScoreError("not finite")
            return super().score(mix, split)

        broken: tuple[float, ...] = (1.0, 0.5)

    landscape: Any = Broken(pool)
    columns = {"one": ingredients_of(pool)["step_300"]}
    choice = wise_ft.choose(landscape, columns, seed=0, alphas=(0.0, 0.25, 0.5, 1.0))
    assert choice.notes["not_finite"] == [0.0, 0.5]
    assert list(choice.sweep) == [0.25, 1.0], "a report would fail on the others"
    with pytest.raises(ScoreError, match="not finite"):
        wise_ft.choose(landscape, columns, seed=0, alphas=(0.0, 0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": (0.5, 1.5)}, "alphas: expected values from 0 to 1, found 1.5"),
        ({"alphas": (-0.1,)}, "alphas: expected values from 0 to 1, found -0.1"),
        ({"alphas": (float("nan"),)}, "alphas: expected values from 0 to 1, found nan"),
        ({"alphas": ()}, "alphas: expected values from 0 to 1, found none"),
        ({"alpha": 2.0}, "^alpha: expected values from 0 to 1, found 2"),
        ({"alpha": 0.5, "alphas": (0.1, 0.2)}, "found alpha=0.5 and alphas=0.1/0.2; give only one"),
    ],
)
def test_wrong_options_are_told_before_anything_is_scored(options: Any, message: str, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    with pytest.raises(SpecError, match=message):
        wise_ft.choose(landscape, ingredients_of(pool), seed=0, **options)
    assert not landscape.asked


def test_a_pool_without_a_base_is_refused(tmp_path: Path) -> None:
    pool = random_pool(tmp_path, base=False)
    landscape: Any = Landscape(pool)
    with pytest.raises(PoolError, match=r"it needs the base.*--base"):
        wise_ft.choose(landscape, ingredients_of(pool), seed=0)
    assert not landscape.asked
