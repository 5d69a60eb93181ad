"""Methods: the contract for every one of them, and the simplest ones against naive references."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import TypeAdapter

from mixopt import Mix, SpecError, combine
from mixopt.methods import Chosen, arguments_of, greedy, individual, method, method_names, options_of, uniform
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool
from tests.methods.landscape import Landscape, ingredients_of, random_pool
from tests.methods.reference import naive_greedy


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return random_pool(tmp_path_factory.mktemp("landscape"))


def chosen(module: Any, landscape: Landscape, candidates: Mapping[str, Mix] | None = None, **options: Any) -> Chosen:
    choice: Chosen = module.choose(landscape, candidates or ingredients_of(landscape.pool), seed=0, **options)
    return choice


@pytest.mark.parametrize("name", method_names())
def test_every_method_keeps_the_contract(name: str, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    candidates = ingredients_of(pool)
    choice = method(name)(landscape, candidates, seed=0)
    again = method(name)(Landscape(pool), ingredients_of(pool), seed=0)  # type: ignore[arg-type]
    assert isinstance(choice.mix, Mix)
    assert choice.mix.columns == pool.columns
    assert choice.mix == again.mix
    assert candidates == ingredients_of(pool)
    assert json.dumps([choice.curves, choice.notes]), "reports hold them"
    assert all(mix.columns == pool.columns for mix in choice.sweep.values())


@pytest.mark.parametrize("name", method_names())
def test_every_option_has_a_type_and_a_default(name: str, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    choose = method(name)
    defaults = {option: default for option, (_, default) in options_of(choose).items()}
    for option, (hint, default) in options_of(choose).items():
        assert TypeAdapter(hint).validate_python(default) == default, option
    plain = choose(landscape, ingredients_of(pool), seed=0)
    assert choose(landscape, ingredients_of(pool), seed=0, **arguments_of(choose, defaults)).mix == plain.mix


# Those that tell columns apart by the numbers in their names.
BY_NUMBER = {"trajectory", "extrapolation"}


@pytest.mark.parametrize("name", [name for name in method_names() if name not in BY_NUMBER])
def test_every_method_takes_other_methods_mixes(name: str, pool: Pool) -> None:
    landscape: Any = Landscape(pool, seed=1)
    ingredients = ingredients_of(pool)
    candidates = {"first": ingredients["step_100"], "soup": combine(list(ingredients.values()), [0.2] * 5)}
    assert method(name)(landscape, candidates, seed=0).mix.columns == pool.columns


# Those that mix the base in, and those.
BEYOND_COLUMNS = {"wise_ft", "lines", "task_arithmetic", "model_stock", "mono"} | BY_NUMBER


@pytest.mark.parametrize("name", [name for name in method_names() if name not in BEYOND_COLUMNS])
def test_equal_columns_give_the_same_model_back(name: str, pool: Pool) -> None:
    landscape: Any = Landscape(pool, seed=2)
    one = ingredients_of(pool)["step_200"]
    rows = tensor_rows(method(name)(landscape, {"a": one, "b": one}, seed=0).mix, pool)
    assert rows == pytest.approx(tensor_rows(one, pool), abs=1e-9)


@pytest.mark.parametrize("name", method_names())
def test_every_method_names_its_source(name: str) -> None:
    documented = importlib.import_module(f"mixopt.methods.{name}").__doc__ or ""
    assert "arXiv" in documented or name == "individual"


def test_an_unknown_method_is_suggested() -> None:
    with pytest.raises(SpecError, match="did you mean 'greedy'"):
        method("gredy")


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_individual_is_the_best_and_costs_one_evaluation_each(metric: str, pool: Pool) -> None:
    for seed in range(20):
        landscape = Landscape(pool, seed, metric)
        choice = chosen(individual, landscape)
        values = {name: landscape.value(mix) for name, mix in ingredients_of(pool).items()}
        assert len(set(landscape.asked)) == len(values)
        pick = max if metric == "accuracy" else min
        assert choice.mix == ingredients_of(pool)[pick(values, key=lambda name: values[name])]


def test_uniform_asks_for_nothing(pool: Pool) -> None:
    landscape = Landscape(pool)
    choice = chosen(uniform, landscape)
    assert not landscape.asked
    assert choice.mix.coefficients[0] == pytest.approx([0.2] * 5 + [0.0])


@pytest.mark.parametrize("rule", ["at-least", "strict"])
@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize("levels", [None, 12])
def test_greedy_equals_the_papers_recipe(rule: str, metric: str, levels: int | None, pool: Pool) -> None:
    rules_differ = False
    for seed in range(60):
        landscape = Landscape(pool, seed, metric, levels)
        choice = chosen(greedy, landscape, rule=rule)
        members = naive_greedy(landscape, strict=rule == "strict")
        assert choice.notes["rule"] == rule
        assert choice.notes["chosen"] == members
        expected = [(name in members) / len(members) for name in pool.columns]
        assert choice.mix.coefficients[0] == pytest.approx(expected)
        rules_differ |= members != naive_greedy(landscape, strict=rule != "strict")
    assert rules_differ == (levels is not None)


def test_greedy_is_never_below_the_best_individual_and_counts_both(pool: Pool) -> None:
    for seed in range(30):
        landscape = Landscape(pool, seed)
        best = landscape.value(chosen(individual, Landscape(pool, seed)).mix)
        choice = chosen(greedy, landscape)
        assert landscape.value(choice.mix) >= best
        assert len(landscape.asked) == 2 * len(pool.ingredients) - 1
