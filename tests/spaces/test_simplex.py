from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mixopt.errors import MixoptError
from mixopt.spaces.simplex import Simplex, project
from mixopt.values.groups import Groups, make_groups
from mixopt.values.mix import Mix, constant, one_hot

SIZES = {"stem.w": 2, "blocks.0.w": 3, "blocks.1.w": 4}
COLUMNS = ("model_0", "model_1", "model_2", "base")
Vector = NDArray[np.float64]

rows = st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0]) | st.floats(0.01, 5), min_size=4, max_size=4).filter(any)
groupings = st.sampled_from([make_groups("whole", SIZES), make_groups(2, SIZES), make_groups("tensor", SIZES)])
coordinates = st.sampled_from([-1.0, 0.0, 1.0]) | st.floats(-1, 1)


@st.composite
def starts(draw: st.DrawFn) -> Mix:
    """Mixes on the simplex, often on its border."""
    groups = draw(groupings)
    found = np.array([draw(rows) for _ in range(len(groups))])
    return Mix(groups, COLUMNS, found / found.sum(axis=1, keepdims=True))


@st.composite
def spaces(draw: st.DrawFn) -> Simplex:
    """Spaces with some columns active, in any order."""
    active = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, unique=True))
    start = draw(starts())
    assume(len(set(active) | set(start.support())) > 1)
    return Simplex(start, active, draw(st.floats(0.05, 2)))


@st.composite
def places(draw: st.DrawFn) -> tuple[Simplex, Vector]:
    """A space and a point of its box."""
    space = draw(spaces())
    point = draw(st.lists(coordinates, min_size=space.dims, max_size=space.dims))
    return space, np.array(point)


def interior_start(groups: Groups) -> Mix:
    return constant(groups, COLUMNS, [0.25] * 4)


@given(places())
def test_every_point_gives_rows_on_the_simplex(place: tuple[Simplex, Vector]) -> None:
    space, point = place
    mix = space.to_mix(point)
    assert mix.groups == space.start.groups
    assert mix.columns == COLUMNS
    assert np.all(mix.coefficients >= 0)
    np.testing.assert_allclose(mix.coefficients.sum(axis=1), 1, rtol=0, atol=1e-12)


@given(places())
def test_a_column_neither_active_nor_used_stays_out(place: tuple[Simplex, Vector]) -> None:
    space, point = place
    assert set(space.to_mix(point).support()) <= set(space.active) | set(space.start.support())


@given(spaces())
def test_the_centre_is_the_start_bit_for_bit(space: Simplex) -> None:
    mix = space.to_mix(np.zeros(space.dims))
    assert mix.coefficients.tobytes() == space.start.coefficients.tobytes()
    assert mix == space.start


@given(places(), st.data())
def test_a_group_at_zero_keeps_its_row_bit_for_bit(place: tuple[Simplex, Vector], data: st.DataObject) -> None:
    space, point = place
    group = data.draw(st.integers(0, len(space.layer_groups) - 1))
    wide = point.reshape(len(space.layer_groups), -1)
    wide[group] = 0.0
    mix = space.to_mix(wide.reshape(-1))
    assert mix.coefficients[group].tobytes() == space.start.coefficients[group].tobytes()


@given(places())
def test_groups_do_not_touch_each_other(place: tuple[Simplex, Vector]) -> None:
    space, point = place
    wide = point.reshape(len(space.layer_groups), -1)
    whole = space.to_mix(point).coefficients
    for group in range(len(wide)):
        alone = np.zeros_like(wide)
        alone[group] = wide[group]
        assert space.to_mix(alone.reshape(-1)).coefficients[group].tobytes() == whole[group].tobytes()


@given(groupings, st.data())
def test_pushes_that_sum_to_zero_inside_are_what_is_added(groups: Groups, data: st.DataObject) -> None:
    space = Simplex(interior_start(groups), COLUMNS, 0.2)
    raw = data.draw(st.lists(st.floats(-0.5, 0.5), min_size=space.dims, max_size=space.dims))
    point = np.array(raw).reshape(len(groups), -1)
    point = (point - point.mean(axis=1, keepdims=True)).reshape(-1)
    mix = space.to_mix(point)
    expected = 0.25 + 0.2 * point.reshape(len(groups), -1)
    np.testing.assert_allclose(mix.coefficients, expected, rtol=0, atol=1e-12)


def test_dimensions_are_groups_times_active_columns() -> None:
    space = Simplex(interior_start(make_groups("block", SIZES)), ["model_2", "base"], 0.5)
    assert space.layer_groups == ("stem", "blocks.0", "blocks.1")
    assert space.labels[:3] == ("stem/model_2", "stem/base", "blocks.0/model_2")
    assert space.dims == len(space.labels) == 6
    pushed = space.to_mix(np.array([0, 0, 0.4, -0.4, 0, 0])).coefficients
    np.testing.assert_allclose(pushed[1], [0.25, 0.25, 0.45, 0.05], atol=1e-12)


def test_what_is_no_space_is_refused() -> None:
    groups = make_groups("whole", SIZES)
    start = interior_start(groups)
    with pytest.raises(MixoptError, match="negative coefficients"):
        Simplex(constant(groups, COLUMNS, [1.5, -0.5, 0, 0]), ["model_0"], 0.5)
    with pytest.raises(MixoptError, match="no column model_7"):
        Simplex(start, ["model_0", "model_7"], 0.5)
    with pytest.raises(MixoptError, match="at least one"):
        Simplex(start, [], 0.5)
    with pytest.raises(MixoptError, match="named twice"):
        Simplex(start, ["model_0", "model_0"], 0.5)
    for radius in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(MixoptError, match="radius above 0"):
            Simplex(start, ["model_0"], radius)


@pytest.mark.parametrize("shape", [(3,), (5,), (2, 2), ()])
def test_a_point_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    space = Simplex(interior_start(make_groups("whole", SIZES)), COLUMNS, 0.5)
    with pytest.raises(MixoptError, match="a point of 4 numbers"):
        space.to_mix(np.zeros(shape))


def by_bisection(values: Vector) -> Vector:
    """The projection by its optimality condition: one shift for all, found by halving."""
    low, high = float(values.min()) - 1.0, float(values.max())
    for _ in range(200):
        middle = (low + high) / 2
        if np.maximum(values - middle, 0).sum() > 1:
            low = middle
        else:
            high = middle
    result: Vector = np.maximum(values - high, 0)
    return result


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12))
def test_projection_is_that_of_bisection(values: list[float]) -> None:
    given_values = np.array(values)
    projected = project(given_values)
    np.testing.assert_allclose(projected, by_bisection(given_values), rtol=0, atol=1e-12)
    assert projected.sum() == pytest.approx(1, abs=1e-14)
    assert given_values.tolist() == values


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.integers(0, 10**6))
def test_no_point_of_the_simplex_is_nearer_than_the_projection(values: list[float], seed: int) -> None:
    given_values = np.array(values)
    best = float(np.sum((project(given_values) - given_values) ** 2))
    others = np.random.default_rng(seed).dirichlet(np.full(len(values), 0.3), size=50)
    corners = np.eye(len(values))
    distances = np.sum((np.concatenate([others, corners]) - given_values) ** 2, axis=1)
    assert best <= float(distances.min()) + 1e-12


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_projecting_twice_changes_nothing(values: list[float]) -> None:
    once = project(np.array(values))
    np.testing.assert_allclose(project(once), once, rtol=0, atol=1e-15)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=8), st.integers(0, 1000))
def test_projection_does_not_see_the_order(values: list[float], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(values))
    given_values = np.array(values)
    np.testing.assert_allclose(project(given_values[order]), project(given_values)[order], rtol=0, atol=1e-15)


def test_one_column_alone_is_refused() -> None:
    start = one_hot(make_groups("whole", SIZES), COLUMNS, COLUMNS[0])
    with pytest.raises(MixoptError, match="nothing to search"):
        Simplex(start, [COLUMNS[0]], 0.5)


def test_at_a_single_checkpoint_the_slopes_are_those_of_the_inside() -> None:
    start = one_hot(make_groups("whole", {"a": 1}), ("x", "y", "z"), "x")
    space = Simplex(start, ("x", "y", "z"), 0.5)
    found = space.pull_back(np.zeros(3), np.array([[0.0, 3.0, 0.0]]))
    np.testing.assert_allclose(found, 0.5 * np.array([-1.0, 2.0, -1.0]))
    # z is pushed away from the simplex there, and stays at 0.
    found = space.pull_back(np.array([0.0, 0.4, -0.4]), np.array([[0.0, 3.0, 0.0]]))
    np.testing.assert_allclose(found, 0.5 * np.array([-1.5, 1.5, 0.0]))
