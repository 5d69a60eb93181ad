from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt import Mix, PoolError, SpecError
from mixopt.errors import ScoreError
from mixopt.methods import task_arithmetic, uniform
from mixopt.scoring.score import Score
from mixopt.values.groups import make_groups
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool
from tests.conftest import random_mix
from tests.methods.landscape import Landscape, ingredients_of, random_pool
from tests.methods.reference import State, fused, same, state_of


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return random_pool(tmp_path_factory.mktemp("task_arithmetic"))


def added(base: State, tuned: list[State], factor: float) -> State:
    """The paper's formula on weights."""
    return {name: start + factor * sum(each[name] - start for each in tuned) for name, start in base.items()}


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_the_mix_is_the_papers_formula_at_the_best_lambda(metric: str, pool: Pool) -> None:
    seen = set()
    for seed in range(20):
        landscape: Any = Landscape(pool, seed, metric)
        landscape.optimum[:, -1] = 0.1 * (seed - 10)  # the base's share moves the best lambda along the sweep
        choice = task_arithmetic.choose(landscape, ingredients_of(pool), seed=0)
        tuned = [state_of(pool, name) for name in pool.ingredients]
        best = choice.notes["lambda"]
        assert same(fused(choice.mix, pool), added(state_of(pool, "base"), tuned, best))
        curve = choice.curves["lambda"]
        assert [point["x"] for point in curve] == pytest.approx([0.02 * step for step in range(1, 21)])
        pick = max if metric == "accuracy" else min
        assert pick(curve, key=lambda point: point["value"])["x"] == best
        assert landscape.value(choice.mix) == pick(point["value"] for point in curve)
        assert len(landscape.asked) == 20
        assert choice.notes == {"lambda": best}
        seen.add(best)
    assert len(seen) > 3
    assert min(seen) < 0.2 < max(seen), "with and without a negative share of the base"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 49])
def test_one_nth_is_the_uniform_soup_bit_for_bit(count: int, tmp_path: Path) -> None:
    pool = random_pool(tmp_path, ingredients=count)
    landscape: Any = Landscape(pool)
    columns = ingredients_of(pool)
    soup = uniform.choose(landscape, columns, seed=0).mix
    mix = task_arithmetic.choose(landscape, columns, seed=0, lambdas=(1 / count,)).mix
    assert mix.coefficients.tobytes() == soup.coefficients.tobytes()
    grid = [point["x"] for point in task_arithmetic.choose(landscape, columns, seed=0).curves["lambda"]]
    assert 1 / count in grid
    assert grid == sorted(grid)
    assert max(grid) == min(2 / count, 1)
    assert len(grid) == (10 if count == 1 else 20)


def test_lambda_0_is_the_base_bit_for_bit(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    mix = task_arithmetic.choose(landscape, ingredients_of(pool), seed=0, lambdas=(0.0,)).mix
    assert mix.coefficients.tobytes() == np.array([[0.0] * 5 + [1.0]]).tobytes()


def test_permuting_columns_changes_nothing_and_groups_may_differ(pool: Pool) -> None:
    soup: Mix = random_mix(make_groups("tensor", pool.sizes), pool.columns, seed=5)
    columns = {"soup": soup, **ingredients_of(pool)}
    landscape: Any = Landscape(pool)
    expected = added(state_of(pool, "base"), [fused(mix, pool) for mix in columns.values()], 0.3)
    for ordered in (columns, dict(reversed(columns.items()))):
        mix = task_arithmetic.choose(landscape, ordered, seed=0, lambdas=(0.3,)).mix
        assert same(fused(mix, pool), expected)


class Overflowing(Landscape):
    """Scores are not finite where the base's share is below a limit."""

    limit = -0.35

    def score(self, mix: Mix, split: str = "validation") -> Score:
        if tensor_rows(mix, self.pool)[0, -1] < self.limit:
            raise ScoreError("the losses are not finite", "head")
        return super().score(mix, split)


def test_a_lambda_without_a_finite_score_is_not_eligible(pool: Pool) -> None:
    landscape: Any = Overflowing(pool)
    landscape.optimum[:, -1] = -1  # the best lambda lies beyond
    choice = task_arithmetic.choose(landscape, ingredients_of(pool), seed=0)
    assert choice.notes["lambda"] == pytest.approx(0.26)
    assert choice.notes["not_finite"] == pytest.approx([0.28, 0.3, 0.32, 0.34, 0.36, 0.38, 0.4])
    assert [point["x"] for point in choice.curves["lambda"]] == pytest.approx([0.02 * step for step in range(1, 14)])
    landscape.limit = 2.0
    with pytest.raises(ScoreError, match="losses are not finite") as caught:
        task_arithmetic.choose(landscape, ingredients_of(pool), seed=0)
    assert caught.value.group == "head"


@pytest.mark.parametrize("lambdas", [(0.1, 1.5), (-0.1,), (float("inf"),)])
def test_a_lambda_outside_0_to_1_is_refused(lambdas: tuple[float, ...], pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    with pytest.raises(SpecError, match=f"lambdas: expected values from 0 to 1, found .*{lambdas[-1]}"):
        task_arithmetic.choose(landscape, ingredients_of(pool), seed=0, lambdas=lambdas)
    assert not landscape.asked


def test_a_pool_without_a_base_is_refused(tmp_path: Path) -> None:
    pool = random_pool(tmp_path, base=False)
    landscape: Any = Landscape(pool)
    with pytest.raises(PoolError, match="it needs the base"):
        task_arithmetic.choose(landscape, ingredients_of(pool), seed=0)
