"""Mixes of mixes as a space: unrolled to the checkpoints, exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mixopt import Mix, MixoptError, combine, one_hot
from mixopt.spaces import from_description
from mixopt.spaces.composed import Composed
from mixopt.spaces.simplex import Simplex
from mixopt.values.groups import Groups
from mixopt.values.mix import rows_on
from tests.conftest import random_mix

TENSORS = tuple(f"t{number}" for number in range(6))
COLUMNS = ("a", "b", "c", "base")
WHOLE = Groups((("whole", TENSORS),))
PAIRS = Groups((("p0", TENSORS[:2]), ("p1", TENSORS[2:4]), ("p2", TENSORS[4:])))
HALVES = Groups((("early", TENSORS[:3]), ("late", TENSORS[3:])))


@pytest.fixture
def space() -> Composed:
    mixes = {
        "soup": random_mix(WHOLE, COLUMNS, seed=0),
        "layers": random_mix(PAIRS, COLUMNS, seed=1, affine=True),
        "b": one_hot(WHOLE, COLUMNS, "b"),
    }
    return Composed(Simplex(one_hot(HALVES, tuple(mixes), "layers"), tuple(mixes), 0.5), mixes)


def test_centre_is_the_start_bit_for_bit(space: Composed) -> None:
    centre = space.to_mix(np.zeros(space.dims))
    assert np.array_equal(rows_on(centre, centre.groups), rows_on(space.mixes["layers"], centre.groups))


def test_a_point_is_the_mix_of_the_mixes(space: Composed) -> None:
    point = np.random.default_rng(0).uniform(-1, 1, space.dims)
    found = space.to_mix(point)
    weights = space.inner.to_mix(point).coefficients
    for half, tensors in enumerate((TENSORS[:3], TENSORS[3:])):
        expected = combine(list(space.mixes.values()), [*weights[half]])
        of, own = expected.groups.index(), found.groups.index()
        for tensor in tensors:
            assert found.coefficients[own[tensor]] == pytest.approx(expected.coefficients[of[tensor]])


def test_description_makes_it_again(space: Composed) -> None:
    again = from_description(json.loads(json.dumps(space.describe())))
    point = np.random.default_rng(1).uniform(-1, 1, space.dims)
    assert again.to_mix(point) == space.to_mix(point)
    assert (again.labels, again.layer_groups, again.dims) == (space.labels, space.layer_groups, 6)


def test_names_and_columns_must_fit() -> None:
    mixes = {"one": random_mix(WHOLE, COLUMNS), "two": random_mix(WHOLE, ("x", "y"))}
    inner = Simplex(one_hot(HALVES, ("one", "two"), "one"), ("one", "two"), 0.5)
    with pytest.raises(MixoptError, match="over the same columns"):
        Composed(inner, mixes)
    with pytest.raises(MixoptError, match="expected the mixes one, two"):
        Composed(inner, {"one": mixes["one"]})


def test_rows_sum_to_one(space: Composed) -> None:
    for seed in range(20):
        point = np.random.default_rng(seed).uniform(-1, 1, space.dims)
        mix: Mix = space.to_mix(point)
        assert mix.coefficients.sum(axis=1) == pytest.approx(1, abs=1e-12)
