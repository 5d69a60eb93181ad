"""Every space obeys `mixopt.spaces.Space`; a new entry of `SPACES` is tested here by itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mixopt.errors import MixoptError
from mixopt.spaces import SPACES, Space, from_description
from mixopt.values.mix import Mix
from tests.spaces.makers import COLUMNS, MAKERS, STARTS


@pytest.fixture(params=SPACES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest) -> Mix:
    return STARTS[str(request.param)]()


@pytest.fixture(params=[COLUMNS, ("model_10", "model_0")], ids=["all active", "two active"])
def space(kind: str, start: Mix, request: pytest.FixtureRequest) -> Space:
    return MAKERS[kind](start, request.param)


def points(space: Space) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    random = np.random.default_rng(0)
    return [random.uniform(-1, 1, space.dims) for _ in range(20)]


def test_every_dimension_has_a_label_of_its_own(space: Space) -> None:
    assert space.dims == len(space.labels) == len(set(space.labels))
    assert space.dims > 0
    assert all(label and label == label.strip() for label in space.labels)


def test_layer_groups_are_the_starts(space: Space, start: Mix) -> None:
    assert space.layer_groups == start.groups.names


def test_the_centre_is_the_start_bit_for_bit(space: Space, start: Mix) -> None:
    mix = space.to_mix(np.zeros(space.dims))
    assert mix == start
    assert mix.coefficients.tobytes() == start.coefficients.tobytes()


def test_a_gradient_is_pulled_back_to_the_point(space: Space) -> None:
    slopes = np.random.default_rng(1).normal(size=space.to_mix(np.zeros(space.dims)).coefficients.shape)

    def at(point: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return float(np.sum(slopes * space.to_mix(point).coefficients))

    for point in points(space)[:5]:
        steps = 1e-6 * np.eye(space.dims)
        expected = [(at(point + step) - at(point - step)) / 2e-6 for step in steps]
        np.testing.assert_allclose(space.pull_back(point, slopes), expected, atol=1e-6)


def test_points_give_mixes_over_the_same_columns_and_leave_the_point_alone(space: Space, start: Mix) -> None:
    for point in points(space):
        before = point.copy()
        mix = space.to_mix(point)
        assert mix.columns == start.columns
        assert set(mix.groups.index()) == set(start.groups.index())
        assert mix == space.to_mix(point)
        assert point.tobytes() == before.tobytes()


def test_every_dimension_matters(space: Space) -> None:
    """Somewhere in the box, at least: an edge may lie beyond the simplex."""
    inside = points(space)
    for number in range(space.dims):
        changed = False
        for point in inside:
            moved = point.copy()
            moved[number] = -moved[number]
            changed = changed or space.to_mix(moved) != space.to_mix(point)
        assert changed, space.labels[number]


def test_a_description_makes_the_same_space_again(space: Space) -> None:
    for sort_keys in (False, True):
        again = from_description(json.loads(json.dumps(space.describe(), sort_keys=sort_keys)))
        assert type(again) is type(space)
        assert again.labels == space.labels
        assert again.layer_groups == space.layer_groups
        for point in points(space):
            assert again.to_mix(point).coefficients.tobytes() == space.to_mix(point).coefficients.tobytes()


def test_a_description_names_its_kind(space: Space, kind: str) -> None:
    assert space.describe()["kind"] == kind


def test_a_description_that_is_not_complete_is_refused(space: Space, kind: str) -> None:
    for key in space.describe():
        rest = {name: value for name, value in space.describe().items() if name != key}
        with pytest.raises(MixoptError, match="unknown space" if key == "kind" else "not the description of a space"):
            from_description(rest)


def test_an_unknown_kind_suggests_the_nearest() -> None:
    with pytest.raises(MixoptError, match="unknown space 'simplx'; did you mean 'simplex'"):
        from_description({"kind": "simplx"})
