"""Methods: the contract for every one of them, and each against a naive reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mixopt import Mix, SpecError, combine, one_hot
from mixopt.groups import Groups
from mixopt.methods import Choice, greedy, individual, method, method_names, uniform
from mixopt.metrics import METRICS
from mixopt.objective import Score

COLUMNS = ("a", "b", "c", "d", "e")
GROUPS = Groups((("all", ("w",)),))


class Landscape:
    """An objective with a score for every row of coefficients, and a count of what was asked."""

    def __init__(self, seed: int, metric: str = "accuracy", levels: int | None = None) -> None:
        random = np.random.default_rng(seed)
        self.optimum = random.dirichlet(np.ones(len(COLUMNS)))
        self.metric = METRICS[metric]
        self.levels = levels
        self.asked: list[tuple[float, ...]] = []

    def value(self, row: np.ndarray[Any, Any]) -> float:
        distance = float(np.sum((row - self.optimum) ** 2))
        value = distance if self.metric.direction == "minimize" else 1 - distance
        return value if self.levels is None else round(value * self.levels) / self.levels

    def score(self, mix: Mix, split: str = "search") -> Score:
        assert split == "search", "a method may look at the selection split alone"
        self.asked.append(tuple(mix.coefficients[0]))
        nothing: Any = None
        return Score(self.value(mix.coefficients[0]), {}, nothing, 0.0, cached=False)


def columns() -> dict[str, Mix]:
    return {name: one_hot(GROUPS, COLUMNS, name) for name in COLUMNS}


def chosen(module: Any, landscape: Landscape, candidates: Mapping[str, Mix] | None = None, **options: Any) -> Choice:
    choice: Choice = module.choose(landscape, candidates or columns(), seed=0, **options)
    return choice


@pytest.mark.parametrize("name", method_names())
def test_every_method_keeps_the_contract(name: str) -> None:
    landscape: Any = Landscape(0)
    candidates = columns()
    choice = method(name)(landscape, candidates, seed=0)
    again = method(name)(Landscape(0), columns(), seed=0)  # type: ignore[arg-type]
    assert isinstance(choice.mix, Mix)
    assert choice.mix.columns == COLUMNS
    assert choice.mix == again.mix
    assert candidates == columns()


@pytest.mark.parametrize("name", method_names())
def test_every_method_takes_other_methods_mixes(name: str) -> None:
    landscape: Any = Landscape(1)
    candidates = {"a": columns()["a"], "soup": combine(list(columns().values()), [0.2] * 5)}
    assert method(name)(landscape, candidates, seed=0).mix.columns == COLUMNS


@pytest.mark.parametrize("name", method_names())
def test_every_method_names_its_source(name: str) -> None:
    import importlib

    documented = importlib.import_module(f"mixopt.methods.{name}").__doc__ or ""
    assert "arXiv" in documented or name == "individual"


def test_an_unknown_method_is_suggested() -> None:
    with pytest.raises(SpecError, match="did you mean 'greedy'"):
        method("gredy")


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_individual_is_the_best_and_costs_one_evaluation_each(metric: str) -> None:
    for seed in range(20):
        landscape = Landscape(seed, metric)
        choice = chosen(individual, landscape)
        values = {name: landscape.value(mix.coefficients[0]) for name, mix in columns().items()}
        assert len(set(landscape.asked)) == len(COLUMNS)
        pick = max if metric == "accuracy" else min
        assert choice.mix == columns()[pick(values, key=lambda name: values[name])]


def test_uniform_asks_for_nothing() -> None:
    landscape = Landscape(0)
    choice = chosen(uniform, landscape)
    assert not landscape.asked
    assert choice.mix.coefficients[0] == pytest.approx([0.2] * 5)


def naive_greedy(landscape: Landscape, strict: bool) -> list[str]:
    """Recipe 1 of the paper, written from its text; higher is better."""
    sign = 1 if landscape.metric.direction == "maximize" else -1

    def soup(members: list[str]) -> float:
        row = np.array([name in members for name in COLUMNS]) / len(members)
        return sign * landscape.value(row)

    order = sorted(COLUMNS, key=lambda name: -soup([name]))
    members = order[:1]
    for name in order[1:]:
        new, old = soup([*members, name]), soup(members)
        if new > old or (new == old and not strict):
            members = [*members, name]
    return members


@pytest.mark.parametrize("rule", ["at-least", "strict"])
@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize("levels", [None, 12])
def test_greedy_equals_the_papers_recipe(rule: str, metric: str, levels: int | None) -> None:
    rules_differ = False
    for seed in range(60):
        landscape = Landscape(seed, metric, levels)
        choice = chosen(greedy, landscape, rule=rule)
        members = naive_greedy(landscape, strict=rule == "strict")
        assert choice.notes == {"rule": rule, "chosen": members}
        assert choice.mix.coefficients[0] == pytest.approx([(name in members) / len(members) for name in COLUMNS])
        rules_differ |= members != naive_greedy(landscape, strict=rule != "strict")
    assert rules_differ == (levels is not None)


def test_greedy_is_never_below_the_best_individual_and_counts_both() -> None:
    for seed in range(30):
        landscape = Landscape(seed)
        best = landscape.value(chosen(individual, Landscape(seed)).mix.coefficients[0])
        choice = chosen(greedy, landscape)
        assert landscape.value(choice.mix.coefficients[0]) >= best
        assert len(landscape.asked) == 2 * len(COLUMNS) - 1
