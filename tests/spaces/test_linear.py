"""Spaces of moves along directions: exact both ways, affine, and what each kind moves together."""

from __future__ import annotations

import numpy as np
import pytest

from mixopt import MixoptError, one_hot
from mixopt.spaces.linear import DEPTHS, Affine, Depth, Layers, Linear, Residual, Shared, hats
from mixopt.values.groups import Groups, make_groups
from mixopt.values.mix import rows_on
from tests.conftest import random_mix

SIZES = {f"blocks.{number}.w": 2 for number in range(7)}
COLUMNS = ("a", "b", "c", "d", "base")
BLOCKS = make_groups("block", SIZES)
START = random_mix(BLOCKS, COLUMNS, seed=0, affine=True)
SPACES: tuple[Linear, ...] = (
    Affine(START, ("a", "c", "d"), 0.3),
    Shared(START, ("a", "c", "d"), 0.3),
    Depth(START, ("a", "c", "d"), 0.3),
    Residual(START, {"soup": random_mix(BLOCKS, COLUMNS, seed=1), "b": one_hot(BLOCKS, COLUMNS, "b")}, 0.5),
    Layers(START, ("a", "c", "d"), 0.3, ("blocks.1", "blocks.4")),
)


@pytest.fixture(params=SPACES, ids=lambda space: space.kind)
def space(request: pytest.FixtureRequest) -> Linear:
    found: Linear = request.param
    return found


def moved(space: Linear, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """How a random point's rows differ from the start's."""
    point = np.random.default_rng(seed).uniform(-1, 1, space.dims)
    return np.asarray(space.to_mix(point).coefficients - START.coefficients)


def test_rows_are_the_start_and_a_move_for_each_coordinate(space: Linear) -> None:
    """And so each coordinate can be told from the rows: no two points give one mix."""
    start = space.to_mix(np.zeros(space.dims)).coefficients
    moves = np.array([space.to_mix(unit).coefficients - start for unit in np.eye(space.dims)])
    for seed in range(30):
        point = np.random.default_rng(seed).uniform(-1, 1, space.dims)
        rows = space.to_mix(point).coefficients
        np.testing.assert_allclose(rows, start + np.tensordot(point, moves, axes=1), atol=1e-12)
        found = np.linalg.lstsq(moves.reshape(space.dims, -1).T, (rows - start).ravel())[0]
        np.testing.assert_allclose(found, point, atol=1e-9)


def test_dimensions(space: Linear) -> None:
    assert space.dims == {"affine": 7 * 2, "layers": 2 * 2, "shared": 2, "depth": 3 * 2, "residual": 3 * 2}[space.kind]


def test_rows_sum_to_one_and_may_be_negative(space: Linear) -> None:
    lowest = 0.0
    for seed in range(20):
        mix = space.to_mix(np.random.default_rng(seed).uniform(-1, 1, space.dims))
        np.testing.assert_allclose(mix.coefficients.sum(axis=1), 1, atol=1e-12)
        lowest = min(lowest, float(mix.coefficients.min()))
    assert lowest < 0


@pytest.mark.parametrize("kind", [Affine, Shared, Depth])
def test_only_active_columns_move(kind: type[Affine]) -> None:
    rows = moved(kind(START, ("a", "c", "d"), 0.3), 1)
    assert np.all(rows[:, [1, 4]] == 0)
    assert np.all(rows[:, [0, 2, 3]] != 0)


def test_shared_moves_all_groups_alike_and_depth_smoothly() -> None:
    np.testing.assert_allclose(np.ptp(moved(Shared(START, COLUMNS, 0.3), 2), axis=0), 0, atol=1e-12)
    rows = moved(Depth(START, COLUMNS, 0.3), 2)
    # Straight lines from the first group to the middle one, and from there to the last.
    np.testing.assert_allclose(np.diff(rows[:4], n=2, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.diff(rows[3:], n=2, axis=0), 0, atol=1e-12)
    assert np.abs(np.diff(rows, n=2, axis=0)).max() > 0.01


def test_only_the_layer_groups_named_move_and_as_in_affine() -> None:
    layers = Layers(START, COLUMNS, 0.3, ("blocks.4", "blocks.1"))
    rows = moved(layers, 3)
    assert np.flatnonzero(np.any(rows != 0, axis=1)).tolist() == [1, 4]
    affine = Affine(START, COLUMNS, 0.3)
    point = dict(zip(layers.labels, np.random.default_rng(0).uniform(-1, 1, layers.dims), strict=True))
    same = affine.to_mix(np.array([point.get(label, 0.0) for label in affine.labels]))
    np.testing.assert_array_equal(layers.to_mix(np.array(list(point.values()))).coefficients, same.coefficients)
    with pytest.raises(MixoptError, match=r"space layers: no layer group blocks\.9"):
        Layers(START, COLUMNS, 0.3, ("blocks.9",))


def test_residual_goes_a_part_of_the_way_to_each_mix() -> None:
    space = SPACES[3]
    assert isinstance(space, Residual)
    to_b = np.array([0.0, 1.0] * 3)
    expected = START.coefficients + 0.5 * (space.towards["b"].coefficients - START.coefficients)
    np.testing.assert_allclose(space.to_mix(to_b).coefficients, expected, atol=1e-12)


def test_residual_refines_its_groups_to_those_of_the_mixes() -> None:
    start = random_mix(make_groups("whole", SIZES), COLUMNS, seed=3)
    fine = random_mix(BLOCKS, COLUMNS, seed=4)
    space = Residual(start, {"fine": fine}, 1.0)
    found = space.to_mix(np.ones(space.dims))
    np.testing.assert_allclose(rows_on(found, BLOCKS), fine.coefficients, atol=1e-12)


def test_residual_leaves_out_moves_that_others_make_already() -> None:
    """Mixes with one row each span four dimensions at a depth, however many they are."""
    one_row = make_groups("whole", SIZES)
    start = random_mix(one_row, COLUMNS, seed=0)
    towards = {str(seed): random_mix(one_row, COLUMNS, seed=seed) for seed in range(1, 7)}
    towards["fine"] = random_mix(BLOCKS, COLUMNS, seed=7)
    towards["twice"] = towards["fine"]
    space = Residual(start, towards, 0.5)
    assert space.labels == tuple(f"{depth}/{name}" for depth in DEPTHS for name in ("1", "2", "3", "4", "fine"))
    point = np.random.default_rng(0).uniform(-1, 1, space.dims)
    again = Residual.from_description(space.describe())
    assert again.labels == space.labels
    assert np.array_equal(again.to_mix(point).coefficients, space.to_mix(point).coefficients)


def test_one_layer_group_has_one_depth() -> None:
    start = random_mix(Groups((("whole", tuple(SIZES)),)), COLUMNS)
    assert Depth(start, COLUMNS, 0.3).dims == 4


def test_what_cannot_be_a_space_is_told() -> None:
    with pytest.raises(MixoptError, match="space affine: no column x"):
        Affine(START, ("a", "x"), 0.3)
    with pytest.raises(MixoptError, match="one column alone"):
        Shared(START, ("a",), 0.3)
    with pytest.raises(MixoptError, match="named twice"):
        Depth(START, ("a", "a"), 0.3)
    with pytest.raises(MixoptError, match="expected a radius above 0, got 0"):
        Affine(START, ("a", "b"), 0)
    with pytest.raises(MixoptError, match="space residual: nothing to move towards; itself is the start"):
        Residual(START, {"itself": START}, 0.5)
    with pytest.raises(MixoptError, match="over other columns"):
        Residual(START, {"x": random_mix(BLOCKS, ("x", "y"))}, 0.5)


@pytest.mark.parametrize("count", range(2, 41))
def test_contrasts_are_orthonormal_sum_to_zero_and_stay_what_they_were(count: int) -> None:
    """Helmert's, first against second, and so on; studies on record rest on every bit of them."""
    columns = tuple(f"model_{number}" for number in range(count))
    start = one_hot(make_groups("whole", SIZES), columns, "model_0")
    space = Shared(start, columns, 1.0)
    # The first column's 1 would round what is added to it.
    directions = np.array([space.to_mix(move).coefficients[0] - start.coefficients[0] for move in np.eye(space.dims)])
    np.testing.assert_allclose(directions @ directions.T, np.eye(count - 1), atol=1e-12)
    np.testing.assert_allclose(directions.sum(axis=1), 0, atol=1e-12)
    expected = np.zeros((count - 1, count))
    for number in range(1, count):
        expected[number - 1, :number] = 1.0
        expected[number - 1, number] = -float(number)
        expected[number - 1] /= np.sqrt(number * (number + 1))
    assert np.array_equal(directions[:, 1:], expected[:, 1:])


@pytest.mark.parametrize(("count", "points"), [(1, 1), (2, 2), (8, 3), (80, 3)])
def test_hats_interpolate(count: int, points: int) -> None:
    weights = hats(count, points)
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-12)
    np.testing.assert_allclose(weights[:, 0], np.eye(points)[0], atol=1e-12)
    np.testing.assert_allclose(weights[:, -1], np.eye(points)[-1], atol=1e-12)
