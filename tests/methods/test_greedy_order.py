from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixopt.methods import greedy
from mixopt.weights.pool import Pool
from tests.methods.landscape import Landscape, ingredients_of, random_pool
from tests.methods.reference import naive_greedy


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return random_pool(tmp_path_factory.mktemp("greedy"))


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize("rule", ["at-least", "strict"])
@pytest.mark.parametrize("levels", [None, 12])
def test_random_order_is_recipe_1_along_a_permutation(rule: Any, metric: str, levels: int | None, pool: Pool) -> None:
    differs = 0
    for seed in range(30):
        landscape: Any = Landscape(pool, seed, metric, levels)
        choice = greedy.choose(landscape, ingredients_of(pool), seed=seed, rule=rule, order="random")
        drawn = [pool.ingredients[place] for place in np.random.default_rng(seed).permutation(5)]
        members = naive_greedy(landscape, strict=rule == "strict", order=drawn)
        assert choice.notes == {"rule": rule, "chosen": members, "order": "random"}
        assert [point["name"] for point in choice.curves["greedy"]] == drawn
        assert choice.curves["greedy"][0]["added"] is True
        expected = [(name in members) / len(members) for name in pool.columns]
        assert choice.mix.coefficients[0] == pytest.approx(expected)
        differs += members != naive_greedy(landscape, strict=rule == "strict")
    assert differs > 10


def test_random_order_ranks_nothing_beforehand(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    greedy.choose(landscape, ingredients_of(pool), seed=0, order="random")
    assert len(landscape.asked) == 5
    alone = [np.frombuffer(rows).reshape(-1, 6).max(axis=1).min() == 1 for rows in landscape.asked]
    assert alone == [True, False, False, False, False]


def test_the_order_is_drawn_from_the_seed(pool: Pool) -> None:
    def order(seed: int) -> tuple[str, ...]:
        landscape: Any = Landscape(pool)
        choice = greedy.choose(landscape, ingredients_of(pool), seed=seed, order="random")
        return tuple(point["name"] for point in choice.curves["greedy"])

    assert order(3) == order(3)
    assert len({order(seed) for seed in range(10)}) > 5


def test_the_seed_and_the_notes_of_the_papers_order_are_as_before(pool: Pool) -> None:
    choices = []
    for seed in range(3):
        landscape: Any = Landscape(pool)
        choices.append(greedy.choose(landscape, ingredients_of(pool), seed=seed))
    assert choices[0] == choices[1] == choices[2]
    assert choices[0].notes.keys() == {"rule", "chosen"}


def test_one_column_is_the_soup(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    one = {"step_100": ingredients_of(pool)["step_100"]}
    assert greedy.choose(landscape, one, seed=0, order="random").mix == one["step_100"]
    assert len(landscape.asked) == 1
