"""How freely layer groups move, over every kind of space."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from mixopt.spaces import SPACES, Space
from mixopt.spaces.freedom import FREEDOMS, freedoms
from mixopt.spaces.linear import Affine, Depth, Layers, Residual
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix, constant
from tests.conftest import random_mix
from tests.spaces import makers
from tests.spaces.makers import COLUMNS, MAKERS, SIZES, STARTS

Floats = NDArray[np.float64]
DEEP = make_groups("tensor", {**SIZES, "tail.w": 2})


@pytest.fixture(autouse=True)
def five_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tail.w", 2)
    monkeypatch.setattr(makers, "WHOLE", make_groups("whole", SIZES))


def start() -> Mix:
    return constant(DEEP, COLUMNS, [0.25] * 4)


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("kind", SPACES)
def test_each_has_fewer_moves_than_the_next_and_the_last_is_all(kind: str, name: str) -> None:
    space = MAKERS[kind](STARTS[name](), COLUMNS)
    found = freedoms(space)
    assert list(found) == [each for each in FREEDOMS if each in found]
    assert found["all"] is None
    sizes = [space.dims if basis is None else basis.shape[1] for basis in found.values()]
    assert sizes == sorted(set(sizes))
    for basis in found.values():
        if basis is not None:
            assert basis.shape[0] == space.dims
            assert basis.min() >= 0
            assert basis.max() <= 1
            assert np.linalg.matrix_rank(basis) == basis.shape[1]
            assert np.all(basis.any(axis=1))  # no dimension stays where it is


@pytest.mark.parametrize("kind", SPACES)
def test_every_freedom_lies_within_the_next(kind: str) -> None:
    bases = [basis for basis in freedoms(MAKERS[kind](start(), COLUMNS)).values() if basis is not None]
    for fewer, more in pairwise(bases):
        assert np.linalg.matrix_rank(np.hstack([fewer, more])) == more.shape[1]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("affine", {"shared": 3, "depth": 9, "all": 15}),
        ("simplex", {"shared": 4, "depth": 12, "all": 20}),
        ("composed", {"shared": 4, "depth": 12, "all": 20}),
        ("layers", {"shared": 3, "all": 6}),
        ("shared", {"all": 3}),
        ("depth", {"shared": 3, "all": 9}),
        ("residual", {"shared": 2, "all": 6}),
    ],
)
def test_of_five_layer_groups(kind: str, expected: dict[str, int]) -> None:
    space = MAKERS[kind](start(), COLUMNS)
    found = freedoms(space)
    sizes = {name: space.dims if basis is None else basis.shape[1] for name, basis in found.items()}
    assert sizes == expected


def rows(space: Space, point: Floats) -> Floats:
    return space.to_mix(point).coefficients - space.to_mix(np.zeros(space.dims)).coefficients


def test_shared_and_depth_are_the_moves_of_the_spaces_of_these_names() -> None:
    space = Affine(start(), COLUMNS, 0.3)
    moves = np.random.default_rng(0).uniform(-1, 1, 9)
    found = freedoms(space)
    shared, depth = found["shared"], found["depth"]
    assert shared is not None
    assert depth is not None
    alike = rows(space, shared @ moves[:3])
    np.testing.assert_allclose(alike, np.tile(alike[0], (5, 1)), atol=1e-12)
    np.testing.assert_allclose(rows(space, depth @ moves), rows(Depth(start(), COLUMNS, 0.3), moves), atol=1e-12)


def test_layers_stand_where_they_are_in_the_network() -> None:
    """Of the first two layer groups of five, the last control point moves none."""
    found = freedoms(Layers(start(), ["model_0", "model_1"], 0.3, DEEP.names[:2]))
    assert {name: None if basis is None else basis.tolist() for name, basis in found.items()} == {
        "shared": [[1.0], [1.0]],
        "all": None,
    }


def test_moves_that_the_space_leaves_out_are_no_moves_of_its_freedoms() -> None:
    """A mix that differs from the start in its last layer group alone."""
    other = np.full((5, 4), 0.25)
    other[-1] = [0.5, 0.5, 0, 0]
    mixes = {"late": Mix(DEEP, COLUMNS, other), "all over": random_mix(DEEP, COLUMNS, seed=1)}
    space = Residual(start(), mixes, 0.5)
    assert space.labels == ("first/all over", "middle/all over", "last/late", "last/all over")
    found = freedoms(space)["shared"]
    assert found is not None
    assert found.T.tolist() == [[1, 1, 0, 1], [0, 0, 1, 0]]


def test_a_slash_may_be_part_of_a_name_or_a_place() -> None:
    columns = ("runs/1/model", "runs/2/model", "base")
    groups = make_groups("tensor", {"block/0": 1, "block/1": 1})
    found = freedoms(Affine(constant(groups, columns, [0.5, 0.5, 0]), columns, 0.1))
    assert found["shared"] is not None
    assert found["shared"].tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
