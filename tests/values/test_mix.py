from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.errors import MixoptError
from mixopt.values.groups import Groups, make_groups
from mixopt.values.mix import ROW_SUM_TOLERANCE, Coefficients, Mix, combine, constant, one_hot, rows_on
from tests.conftest import random_mix
from tests.values.cases import COLUMNS, SIZES, TENSOR, WHOLE, groupings, mixes


def per_tensor(mix: Mix) -> dict[str, Coefficients]:
    index = mix.groups.index()
    return {tensor: mix.coefficients[index[tensor]] for tensor in SIZES}


@pytest.mark.parametrize(
    "rows", [[[1.0, 0.0, 0.0]], [[0.0, -1.0, 2.0]], [[1 / 3, 1 / 3, 1 / 3]], [[1.0, 0.0, 0.9 * ROW_SUM_TOLERANCE]]]
)
def test_rows_that_sum_to_one_are_kept_as_they_are(rows: list[list[float]]) -> None:
    assert Mix(WHOLE, COLUMNS, np.array(rows)).coefficients.tolist() == rows


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([1.0, 0.0, 1.1e-9], "sum 1)"),
        ([0.5, 0.0, 0.0], "sum 0.5)"),
        ([1.0, 0.0, np.nan], "sum nan"),
        ([1.0, 0.0, np.inf], "sum inf"),
        ([1.0, np.inf, -np.inf], "sum nan"),
        ([0.0, 0.0, 0.0], "sum 0)"),
    ],
)
def test_rows_that_do_not_are_refused_and_named(row: list[float], told: str) -> None:
    rows = np.tile([0.25, 0.5, 0.25], (len(TENSOR), 1))
    rows[1] = row
    with pytest.raises(MixoptError, match=r"finite and sum to 1") as caught:
        Mix(TENSOR, COLUMNS, rows)
    assert f"b.w ({told}" in str(caught.value)
    assert "z.w" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (1, 2), (2, 3), (1, 3, 1), (0, 3)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MixoptError, match=r"shape \(1, 3\) \[groups, columns\], got"):
        Mix(WHOLE, COLUMNS, np.ones(shape))


def test_a_mix_is_read_only_and_its_own() -> None:
    given_rows = np.array([[0.5, 0.5, 0.0]])
    mix = Mix(WHOLE, COLUMNS, given_rows)
    given_rows[0, 0] = 9.0
    assert mix.coefficients.tolist() == [[0.5, 0.5, 0.0]]
    with pytest.raises(ValueError, match="read-only"):
        mix.coefficients[0, 0] = 1.0
    with pytest.raises(AttributeError):
        mix.columns = ("other",)  # type: ignore[misc]


@given(mixes())
def test_equal_mixes_are_equal_and_hash_alike(mix: Mix) -> None:
    twin = Mix(mix.groups, mix.columns, np.asfortranarray(mix.coefficients))
    assert mix == twin
    assert hash(mix) == hash(twin)
    assert len({mix, twin}) == 1


def test_a_negative_zero_is_a_zero() -> None:
    one, other = Mix(WHOLE, COLUMNS, np.array([[1, 0.0, 0]])), Mix(WHOLE, COLUMNS, np.array([[1, -0.0, 0]]))
    assert one == other
    assert hash(one) == hash(other)


def test_mixes_differ_by_rows_groups_and_columns() -> None:
    mix = constant(WHOLE, COLUMNS, [0.5, 0.5, 0.0])
    assert mix != constant(WHOLE, COLUMNS, [0.5, 0.0, 0.5])
    assert mix != constant(TENSOR, COLUMNS, [0.5, 0.5, 0.0])
    assert mix != constant(WHOLE, ("a", "b", "c"), [0.5, 0.5, 0.0])
    assert mix != "a mix"


def test_support_is_every_column_used_anywhere() -> None:
    groups = make_groups(2, SIZES)
    assert Mix(groups, COLUMNS, np.array([[0, 0, 1.0], [0, 0.0, 1.0]])).support() == ("base",)
    assert Mix(groups, COLUMNS, np.array([[1.0, 0, 0], [2.0, 0.0, -1.0]])).support() == ("model_0", "base")


@given(mixes())
def test_a_dictionary_keeps_every_bit_through_any_json(mix: Mix) -> None:
    for sort_keys in (False, True):
        again = Mix.from_dict(json.loads(json.dumps(mix.as_dict(), sort_keys=sort_keys)))
        assert again == mix
        assert again.groups.items == mix.groups.items
        assert again.coefficients.tobytes() == mix.coefficients.tobytes()


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"columns": ["a"], "groups": [["g", ["t"]]]},
        {"columns": ["a"], "groups": [["g", ["t"]]], "coefficients": [["x"]]},
        {"columns": ["a"], "groups": [["g", ["t"]]], "coefficients": [[1.0], [2.0, 3.0]]},
        {"columns": 3, "groups": [["g", ["t"]]], "coefficients": [[1.0]]},
        {"columns": ["a"], "groups": [["g"]], "coefficients": [[1.0]]},
        {"columns": ["a"], "groups": 7, "coefficients": [[1.0]]},
    ],
)
def test_a_dictionary_that_is_no_mix_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(MixoptError, match="not a mix"):
        Mix.from_dict(value)


@pytest.mark.parametrize("name", COLUMNS)
def test_one_hot_is_exactly_one_column(name: str) -> None:
    mix = one_hot(TENSOR, COLUMNS, name)
    assert mix.support() == (name,)
    assert np.all(mix.coefficients[:, COLUMNS.index(name)] == 1.0)


def test_one_hot_of_an_unknown_column_names_those_there_are() -> None:
    with pytest.raises(MixoptError, match="no column 'model_9'; the columns are model_0, model_1, base"):
        one_hot(WHOLE, COLUMNS, "model_9")


def test_constant_is_one_row_for_all() -> None:
    mix = constant(TENSOR, list(COLUMNS), (0.1, 0.2, 0.7))
    assert mix.columns == COLUMNS
    assert mix.coefficients.tolist() == [[0.1, 0.2, 0.7]] * len(TENSOR)


@given(mixes())
def test_combining_one_mix_gives_it_back(mix: Mix) -> None:
    assert combine([mix], [1.0]) == mix


@given(mixes(), mixes(), mixes(), st.floats(-0.5, 1.5), st.floats(-0.5, 1.5))
def test_a_soup_of_soups_is_the_weights_mixed_one_after_the_other(
    one: Mix, two: Mix, three: Mix, first: float, second: float
) -> None:
    """Reference: fuse each mix over random weights, then fuse the results, tensor by tensor."""
    random = np.random.default_rng(0)
    weights = {tensor: random.normal(size=(len(COLUMNS), size)) for tensor, size in SIZES.items()}

    def fused(mix: Mix) -> dict[str, Coefficients]:
        return {tensor: row @ weights[tensor] for tensor, row in per_tensor(mix).items()}

    inner = combine([one, two], [first, 1 - first])
    outer = combine([inner, three], [second, 1 - second])
    parts = [fused(mix) for mix in (one, two, three)]
    found = fused(outer)
    for tensor in SIZES:
        step = first * parts[0][tensor] + (1 - first) * parts[1][tensor]
        expected = second * step + (1 - second) * parts[2][tensor]
        np.testing.assert_allclose(found[tensor], expected, rtol=0, atol=1e-11)


@given(mixes(), mixes())
def test_combining_keeps_the_coarsest_groups_that_serve(one: Mix, two: Mix) -> None:
    mix = combine([one, two], [0.25, 0.75])
    assert len(mix.groups) == len(one.groups.refine(two.groups))
    assert mix.columns == COLUMNS


def test_combine_refuses_what_does_not_fit() -> None:
    mix = one_hot(WHOLE, COLUMNS, "base")
    with pytest.raises(MixoptError, match="1 mixes, 2 weights"):
        combine([mix], [0.5, 0.5])
    with pytest.raises(MixoptError, match="0 mixes"):
        combine([], [])
    with pytest.raises(MixoptError, match="same columns"):
        combine([mix, one_hot(WHOLE, COLUMNS[:2], "model_0")], [0.5, 0.5])
    with pytest.raises(MixoptError, match="sum to 1"):
        combine([mix, mix], [0.5, 0.4])
    with pytest.raises(MixoptError, match="different tensors"):
        combine([mix, one_hot(make_groups("whole", {"q": 1}), COLUMNS, "base")], [0.5, 0.5])


@given(mixes(), groupings)
def test_rows_on_finer_groups_are_each_tensors_own(mix: Mix, groups: Groups) -> None:
    finer = mix.groups.refine(groups)
    again = Mix(finer, mix.columns, rows_on(mix, finer))
    for tensor, row in per_tensor(mix).items():
        assert row.tobytes() == per_tensor(again)[tensor].tobytes()


def test_rows_on_a_group_with_several_rows_is_refused() -> None:
    mix = random_mix(TENSOR, COLUMNS)
    with pytest.raises(MixoptError, match="'whole' has more than one row"):
        rows_on(mix, WHOLE)
    with pytest.raises(MixoptError, match=r"'whole' has more than one row \(or none\)"):
        rows_on(mix, make_groups("whole", {"unknown": 1}))


def test_rows_on_coarser_groups_with_one_row_are_given() -> None:
    row = [0.2, 0.3, 0.5]
    assert rows_on(constant(TENSOR, COLUMNS, row), WHOLE).tolist() == [row]
