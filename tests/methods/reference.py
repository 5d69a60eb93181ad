"""Methods as their papers state them, on weights: what the package does on coefficients must give the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixopt import Mix, combine
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool
from tests.methods.landscape import Landscape, ingredients_of

State = dict[str, NDArray[np.float64]]
TENTHS = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]


def state_of(pool: Pool, name: str) -> State:
    """One checkpoint's mixed tensors, flat."""
    row = pool.stack[pool.columns.index(name)].double().numpy()
    return {place.name: row[place.start : place.stop] for place in pool.mixed}


def fused(mix: Mix, pool: Pool) -> State:
    """The fused weights of a mix, tensor by tensor."""
    stack = pool.stack.double().numpy()
    rows = tensor_rows(mix, pool)
    return {place.name: row @ stack[:, place.start : place.stop] for place, row in zip(pool.mixed, rows, strict=True)}


def same(first: State, second: State) -> bool:
    """Equal to a relative 1e-5."""
    return first.keys() == second.keys() and all(np.allclose(first[n], second[n], rtol=1e-5, atol=1e-7) for n in first)


def naive_greedy(landscape: Landscape, strict: bool, order: list[str] | None = None) -> list[str]:
    """Recipe 1 of the paper, written from its text; higher is better."""
    sign = 1 if landscape.metric.direction == "maximize" else -1
    columns = ingredients_of(landscape.pool)

    def soup(members: list[str]) -> float:
        return sign * landscape.value(combine([columns[name] for name in members], [1 / len(members)] * len(members)))

    order = order or sorted(columns, key=lambda name: -soup([name]))
    members = order[:1]
    for name in order[1:]:
        new, old = soup([*members, name]), soup(members)
        if new > old or (new == old and not strict):
            members = [*members, name]
    return members
