from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from mixopt.errors import PoolError
from mixopt.values.groups import Groups, make_groups
from mixopt.values.mix import Mix, constant, one_hot
from mixopt.weights import checkpoints
from mixopt.weights.builder import FastBuilder, tensor_rows
from mixopt.weights.exact import build_exact, round_once
from mixopt.weights.pool import Pool, open_pool
from tests.conftest import random_mix, random_states
from tests.weights.nets import Net, bits, naive, open_states, scale_of

MakePool = Callable[..., Pool]
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def grouping(pool: Pool, scheme: str) -> Groups:
    return make_groups(scheme, pool.sizes)


def exact(
    mix: Mix, pool: Pool, dtypes: Mapping[str, torch.dtype] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    return build_exact(mix, pool.paths, hashes=pool.fingerprints, dtypes=dtypes or {"*": torch.float32})


cases = {
    "count": st.integers(2, 9),
    "scheme": st.sampled_from(["whole", "block", "tensor", "2", "3"]),
    "seed": st.integers(0, 10**6),
    "affine": st.booleans(),
}
often = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

# ------------------------------------------------------------------------------------------------- both builders


@often
@given(**cases, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_both_builders_give_what_a_plain_loop_gives(
    make_pool: MakePool, count: int, scheme: str, seed: int, affine: bool, dtype: torch.dtype
) -> None:
    states = random_states(count, seed, dtype)
    pool = make_pool(states)
    mix = random_mix(grouping(pool, scheme), pool.columns, seed, affine)
    expected = naive(states, mix)

    fast = FastBuilder(pool, Net(), CPU)
    fast.apply(mix)
    found = fast.module.state_dict()
    made, tied = exact(mix, pool, {"*": torch.float64})
    assert tied == {}
    assert found.keys() == made.keys() == expected.keys()
    for name in pool.sizes:
        tolerance = scale_of(states, mix, name) * 1e-6
        assert bool(((found[name].double() - expected[name]).abs() <= tolerance).all()), name
        assert bool(((made[name] - expected[name]).abs() <= scale_of(states, mix, name) * 1e-15 * count).all()), name
        assert found[name].shape == made[name].shape == states[0][name].shape
    for name in ("frozen", "steps"):
        assert torch.equal(found[name].double(), expected[name].double())
        assert torch.equal(made[name].double(), expected[name].double())


@often
@given(**cases)
def test_sparse_rows_give_what_a_plain_loop_gives(
    make_pool: MakePool, count: int, scheme: str, seed: int, affine: bool
) -> None:
    """Rows with few columns in use take another way through the fast builder."""
    states = random_states(count, seed)
    pool = make_pool(states)
    groups = grouping(pool, scheme)
    random = np.random.default_rng(seed)
    rows = np.zeros((len(groups), count))
    for row in rows:
        used = random.choice(count, size=min(count, int(random.integers(1, 3))), replace=False)
        row[used] = random.dirichlet(np.ones(len(used))) * (1.5 if affine else 1)
        row[used[0]] += 1 - row.sum()
    mix = Mix(groups, pool.columns, rows)
    expected = naive(states, mix)
    fast = FastBuilder(pool, Net(), CPU)
    fast.apply(mix)
    found = fast.module.state_dict()
    made, _ = exact(mix, pool)
    for name in pool.sizes:
        tolerance = scale_of(states, mix, name) * 1e-6
        assert bool(((found[name].double() - expected[name]).abs() <= tolerance).all()), name
        assert bool(((made[name].double() - expected[name]).abs() <= tolerance).all()), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_one_hot_gives_that_ingredient_bit_for_bit(make_pool: MakePool, dtype: torch.dtype, count: int) -> None:
    states = random_states(count, dtype=dtype)
    for state in states:
        state["head.weight"][0, 0] = -0.0
        state["head.weight"][0, 1] = torch.finfo(dtype if dtype != torch.float64 else torch.float32).tiny / 4
        state["head.weight"][0, 2] = torch.finfo(torch.float16).max
        if dtype == torch.float64:  # what the fp32 stack can hold
            state.update({name: state[name].float().double() for name in state if name != "steps"})
    pool = make_pool(states)
    fast = FastBuilder(pool, Net(), CPU)
    for scheme in ("whole", "tensor"):
        for column, state in zip(pool.columns, states, strict=True):
            mix = one_hot(grouping(pool, scheme), pool.columns, column)
            fast.apply(random_mix(grouping(pool, "tensor"), pool.columns))
            fast.apply(mix)
            found = fast.module.state_dict()
            made, _ = exact(mix, pool, {"*": dtype})
            for name, tensor in state.items():
                if name in pool.sizes:
                    assert bits(found[name]) == bits(tensor.float()), name
                assert checkpoints.tensor_hash(made[name]) == checkpoints.tensor_hash(tensor), name


@often
@given(**cases)
def test_permuting_ingredients_permutes_columns(
    make_pool: MakePool, tmp_path: Path, count: int, scheme: str, seed: int, affine: bool
) -> None:
    pool = make_pool(random_states(count, seed))
    mix = random_mix(grouping(pool, scheme), pool.columns, seed, affine)
    order = np.random.default_rng(seed).permutation(count)
    columns = tuple(pool.columns[number] for number in order)
    turned = open_pool({name: pool.paths[name] for name in columns})
    permuted = Mix(mix.groups, columns, mix.coefficients[:, order])
    one, other = FastBuilder(pool, Net(), CPU), FastBuilder(turned, Net(), CPU)
    one.apply(mix)
    other.apply(permuted)
    made, _ = exact(mix, pool)
    remade, _ = exact(permuted, turned)
    for name, tensor in one.module.state_dict().items():
        torch.testing.assert_close(other.module.state_dict()[name], tensor, rtol=0, atol=2e-5)
        torch.testing.assert_close(remade[name], made[name], rtol=1e-6, atol=1e-6)


@often
@given(**cases)
def test_weight_moved_between_equal_ingredients_changes_nothing(
    make_pool: MakePool, count: int, scheme: str, seed: int, affine: bool
) -> None:
    """Equal but for one tensor, since a pool refuses true duplicates; that tensor keeps its row."""
    states = random_states(count, seed)
    states[1] = {**states[0], "scale": states[1]["scale"]}
    pool = make_pool(states)
    groups = grouping(pool, "tensor")
    mix = random_mix(groups, pool.columns, seed, affine)
    rows = mix.coefficients.copy()
    moved = np.array(["scale" not in tensors for _, tensors in groups.items])
    rows[moved, 0] += rows[moved, 1]
    rows[moved, 1] = 0
    other = Mix(groups, pool.columns, rows)
    fast = FastBuilder(pool, Net(), CPU)
    fast.apply(mix)
    before = {name: tensor.clone() for name, tensor in fast.module.state_dict().items()}
    fast.apply(other)
    for name, tensor in fast.module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=2e-5)
    made, remade = exact(mix, pool, {"*": torch.float64})[0], exact(other, pool, {"*": torch.float64})[0]
    for name, tensor in made.items():
        torch.testing.assert_close(remade[name], tensor, rtol=0, atol=1e-13)


def test_columns_that_are_equal_in_a_tensor_give_it_back(make_pool: MakePool) -> None:
    """Any row over ingredients that agree on a tensor gives that tensor."""
    states = random_states(5)
    for state in states[:4]:
        state["head.weight"] = states[0]["head.weight"]
    pool = make_pool(states)
    mix = constant(grouping(pool, "whole"), pool.columns, [0.1, 0.2, 0.3, 0.4, 0.0])
    fast = FastBuilder(pool, Net(), CPU)
    fast.apply(mix)
    torch.testing.assert_close(fast.module.state_dict()["head.weight"], states[0]["head.weight"], rtol=1e-6, atol=1e-7)
    assert torch.equal(exact(mix, pool)[0]["head.weight"], states[0]["head.weight"])


@often
@given(**cases, dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_pools_are_rounded_once(
    make_pool: MakePool, count: int, scheme: str, seed: int, affine: bool, dtype: torch.dtype
) -> None:
    states = random_states(count, seed, dtype)
    pool = make_pool(states)
    mix = random_mix(grouping(pool, scheme), pool.columns, seed, affine)
    expected = naive(states, mix)
    fast = FastBuilder(pool, Net(), CPU)
    fast.apply(mix)
    made, _ = exact(mix, pool, {"*": dtype})
    for name in pool.sizes:
        found = fast.module.state_dict()[name]
        assert found.dtype == torch.float32
        assert torch.equal(found.to(dtype).float(), found), name  # a value that the file can hold
        assert made[name].dtype == dtype
        # Half a step of the dtype, and what fp32 sums may be off; a second rounding of terms would be more.
        half_step = torch.finfo(dtype).eps / 2 * expected[name].abs() + torch.finfo(dtype).smallest_normal * 2**-10
        slack = scale_of(states, mix, name) * 1e-6
        assert bool(((made[name].double() - expected[name]).abs() <= half_step + slack * 1e-6).all()), name
        assert bool(((found.double() - expected[name]).abs() <= half_step + slack).all()), name


# ---------------------------------------------------------------------------------------------------------- fast


def test_parameters_never_move_and_are_views_of_one_buffer(make_pool: MakePool) -> None:
    pool = make_pool(random_states(4))
    fast = FastBuilder(pool, Net(), CPU)
    places = {name: tensor.data_ptr() for name, tensor in fast.module.state_dict().items()}
    for seed in range(5):
        for scheme in ("whole", "tensor", "2"):
            fast.apply(random_mix(grouping(pool, scheme), pool.columns, seed))
    state = fast.module.state_dict()
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == places
    assert len({state[name].untyped_storage().data_ptr() for name in pool.sizes}) == 1
    for before, after in pairwise(pool.mixed):
        assert places[after.name] - places[before.name] == 4 * (before.stop - before.start)
    assert not any(parameter.requires_grad for parameter in fast.module.parameters())
    assert not fast.module.training


def test_the_stack_is_left_alone(make_pool: MakePool) -> None:
    pool = make_pool(random_states(3, dtype=torch.float16))
    before = pool.stack.clone()
    fast = FastBuilder(pool, Net(), CPU)
    for column in pool.columns:
        fast.apply(one_hot(grouping(pool, "whole"), pool.columns, column))
        fast.apply(random_mix(grouping(pool, "tensor"), pool.columns))
    assert torch.equal(pool.stack, before)


def test_a_mix_after_another_leaves_no_trace(make_pool: MakePool) -> None:
    pool = make_pool(random_states(6))
    mix = random_mix(grouping(pool, "block"), pool.columns)
    fresh, used = FastBuilder(pool, Net(), CPU), FastBuilder(pool, Net(), CPU)
    fresh.apply(mix)
    used.apply(random_mix(grouping(pool, "tensor"), pool.columns, seed=9, affine=True))
    used.apply(mix)
    for name, tensor in fresh.module.state_dict().items():
        assert bits(used.module.state_dict()[name]) == bits(tensor)


def test_fixed_tensors_and_buffers_are_set_once(make_pool: MakePool) -> None:
    states = random_states(2)
    pool = make_pool(states)
    found = FastBuilder(pool, Net(), CPU).module.state_dict()
    assert torch.equal(found["frozen"], states[0]["frozen"])
    assert found["steps"].item() == 7
    assert found["steps"].dtype == torch.int64


def test_another_saved_dtype_rounds_mixed_and_fixed_alike(make_pool: MakePool) -> None:
    states = random_states(2)
    pool = make_pool(states)
    fast = FastBuilder(pool, Net(), CPU, torch.bfloat16)
    fast.apply(one_hot(grouping(pool, "whole"), pool.columns, "model_1"))
    for name, tensor in fast.module.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, states[1][name].bfloat16().float()), name


def test_only_tensors_saved_in_few_bits_are_rounded(make_pool: MakePool) -> None:
    """Ingredients may keep a head in fp32 beside a tower in fp16."""
    states = random_states(2)
    for state in states:
        for name in ("blocks.0.mlp.weight", "blocks.1.mlp.bias"):
            state[name] = state[name].half()
    pool = make_pool(states)
    mix = random_mix(grouping(pool, "whole"), pool.columns)
    fast = FastBuilder(pool, Net(), CPU)
    fast.apply(mix)
    for name in pool.sizes:
        found = fast.module.state_dict()[name]
        assert torch.equal(found.half().float(), found) == (states[0][name].dtype == torch.float16), name


def test_a_tensor_that_overflows_is_named(make_pool: MakePool) -> None:
    states = random_states(2, dtype=torch.float16)
    for state, sign in zip(states, (1, -1), strict=True):
        state["blocks.1.mlp.bias"] = torch.full((6,), sign * 60000.0, dtype=torch.float16)
    pool = make_pool(states)
    fast = FastBuilder(pool, Net(), CPU)
    fast.apply(constant(grouping(pool, "whole"), pool.columns, [0.5, 0.5]))
    assert fast.nonfinite_tensor() is None
    fast.apply(constant(grouping(pool, "whole"), pool.columns, [2.0, -1.0]))
    assert fast.nonfinite_tensor() == "blocks.1.mlp.bias"


def test_a_module_of_other_names_or_shapes_is_refused_with_all_of_them(make_pool: MakePool) -> None:
    states = random_states(2)
    for state in states:
        del state["scale"]
        state["surprise"] = torch.randn(2)
        state["head.weight"] = torch.randn(9, 6)
    with pytest.raises(PoolError) as caught:
        FastBuilder(make_pool(states), Net(), CPU)
    text = str(caught.value)
    assert "do not fit the model that --family and --model describe, 3 problems" in text
    assert "the checkpoints lack 1 of the model's tensors: scale" in text
    assert "the model has no place for 1 of the checkpoints' tensors: surprise" in text
    assert "head.weight: the model expects [4, 6], the checkpoints hold [9, 6]" in text


def test_a_mix_that_is_not_the_pools_is_refused(make_pool: MakePool) -> None:
    pool = make_pool(random_states(2))
    fast = FastBuilder(pool, Net(), CPU)
    with pytest.raises(PoolError, match="the mix is over a, b, the pool holds model_0, model_1"):
        fast.apply(one_hot(grouping(pool, "whole"), ("a", "b"), "a"))
    partly = make_groups("whole", {"head.weight": 1})
    with pytest.raises(PoolError, match="the mix has no row for 6 mixed tensors: "):
        fast.apply(one_hot(partly, pool.columns, "model_0"))


def test_tensor_rows_are_in_the_pools_order(make_pool: MakePool) -> None:
    pool = make_pool(random_states(3))
    groups = make_groups("tensor", dict(reversed(pool.sizes.items())))
    mix = random_mix(groups, pool.columns)
    rows = tensor_rows(mix, pool)
    for place, row in zip(pool.mixed, rows, strict=True):
        assert row.tolist() == mix.coefficients[groups.names.index(place.name)].tolist()


class Normed(nn.Module):
    """Running statistics, a counter, a 0-dim tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.temperature = nn.Parameter(torch.tensor(0.5))


def test_batchnorm_statistics_are_mixed_and_counters_kept(tmp_path: Path) -> None:
    states = []
    for seed in range(3):
        torch.manual_seed(seed)
        module = Normed()
        for _ in range(seed + 1):
            module.bn(module.conv(torch.randn(4, 2, 3, 3)))
        nn.init.constant_(module.temperature, seed + 0.5)
        states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    pool = open_states(tmp_path, states)
    # The affine weights of the norm were never trained, and are alike.
    assert set(pool.fixed) == {"bn.weight", "bn.bias", "bn.num_batches_tracked"}
    assert pool.buffers_from == "model_0"
    mix = random_mix(grouping(pool, "tensor"), pool.columns)
    fast = FastBuilder(pool, Normed(), CPU)
    fast.apply(mix)
    found = fast.module.state_dict()
    made, _ = exact(mix, pool)
    assert found["bn.num_batches_tracked"].item() == made["bn.num_batches_tracked"].item() == 1
    for name, expected in naive(states, mix).items():
        torch.testing.assert_close(found[name].double(), expected.double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(made[name].double(), expected.double(), rtol=0, atol=1e-6)
    assert made["temperature"].shape == found["temperature"].shape == ()
    output = fast.module.get_submodule("bn")(torch.ones(1, 3, 2, 2))
    by_hand = (1 - made["bn.running_mean"]) / (made["bn.running_var"] + 1e-5).sqrt()
    torch.testing.assert_close(output[0, :, 0, 0], by_hand)


class Tied(nn.Module):
    """One matrix under two names, as in a language model."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5, bias=False)
        if tie:
            self.decoder.weight = self.embedding.weight


@pytest.mark.parametrize("tie", [True, False], ids=["module ties", "only the files tie"])
def test_tied_weights_stay_tied(tmp_path: Path, tie: bool) -> None:
    files = {}
    for seed in range(3):
        torch.manual_seed(seed)
        files[f"m{seed}"] = tmp_path / f"m{seed}.pt"
        torch.save(Tied().state_dict(), files[f"m{seed}"])
    pool = open_pool(files)
    assert list(pool.sizes) == ["embedding.weight"]
    mix = constant(grouping(pool, "whole"), pool.columns, [0.2, 0.3, 0.5])
    fast = FastBuilder(pool, Tied(tie), CPU)
    fast.apply(mix)
    state = fast.module.state_dict()
    assert state["decoder.weight"].data_ptr() == state["embedding.weight"].data_ptr()
    made, tied = exact(mix, pool)
    assert tied == {"decoder.weight": "embedding.weight"}
    assert list(made) == ["embedding.weight"]
    torch.testing.assert_close(state["decoder.weight"], made["embedding.weight"])


# --------------------------------------------------------------------------------------------------------- exact


def rounded(value: Fraction, dtype: torch.dtype) -> float:
    """The nearest value of a dtype, ties to even, by exact arithmetic."""
    info = torch.finfo(dtype)
    if value == 0:
        return 0.0
    exponent = 0
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    lowest = int(np.log2(info.smallest_normal))
    step = Fraction(2) ** max(exponent, lowest) * Fraction(info.eps)
    found = round(value / step) * step
    return float(found) if abs(found) <= Fraction(info.max) else float("inf" if value > 0 else "-inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(data=st.data())
def test_the_cast_rounds_once(dtype: torch.dtype, data: st.DataObject) -> None:
    """Also next to the middle between two values, where rounding twice goes wrong."""
    info = torch.finfo(dtype)
    near = data.draw(st.floats(-info.max, info.max, width=64))
    low = rounded(Fraction(near), dtype)
    high = float(torch.nextafter(torch.tensor(low, dtype=dtype), torch.tensor(torch.inf, dtype=dtype)))
    middle = (low + high) / 2 if np.isfinite(high) and np.isfinite(low) else near
    values = [near, middle, float(np.nextafter(middle, -np.inf)), float(np.nextafter(middle, np.inf))]
    found = round_once(np.array(values), dtype)
    assert found.dtype == dtype
    assert found.tolist() == [rounded(Fraction(value), dtype) for value in values]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_cast_keeps_special_values(dtype: torch.dtype) -> None:
    values = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e308, -1e308, 1e-320, -1e-320])
    found = round_once(values, dtype)
    wide = found.double().numpy()
    assert wide[:2].tolist() == [np.inf, -np.inf]
    assert np.isnan(wide[2])
    assert np.signbit(wide[[3, 4]]).tolist() == [False, True]
    assert np.signbit(wide[[7, 8]]).tolist() == [False, True]
    if dtype != torch.float64:
        assert wide[5:].tolist() == [np.inf, -np.inf, 0.0, 0.0]
    assert round_once(np.float64(1.5), dtype).shape == ()  # type: ignore[arg-type]


@often
@given(count=st.integers(2, 5), seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES[:3]))
def test_the_exact_builder_is_float64_in_column_order_bit_for_bit(
    make_pool: MakePool, count: int, seed: int, dtype: torch.dtype
) -> None:
    """Reference: Python's own floats, one entry at a time, then one exact rounding."""
    states = random_states(count, seed, dtype)
    pool = make_pool(states)
    mix = random_mix(grouping(pool, "tensor"), pool.columns, seed, affine=True)
    made, _ = exact(mix, pool, {"*": dtype})
    row_of = mix.groups.index()
    for name in ("blocks.0.mlp.bias", "scale", "head.weight"):
        entries = [state[name].double().reshape(-1).tolist() for state in states]
        row = mix.coefficients[row_of[name]].tolist()
        for place, found in enumerate(made[name].double().reshape(-1).tolist()):
            total = entries[0][place] * row[0]
            for column in range(1, count):
                total += entries[column][place] * row[column]
            assert found == rounded(Fraction(total), dtype)


def test_the_exact_builder_keeps_precision_that_fp32_loses(make_pool: MakePool) -> None:
    """Terms that cancel: 1e8 + 1 - 1e8 is 0 in fp32."""
    states = random_states(3)
    for state, value in zip(states, (1e8, 1.0, -1e8), strict=True):
        state["scale"] = torch.tensor(value)
    pool = make_pool(states)
    mix = constant(grouping(pool, "whole"), pool.columns, [1 / 3, 1 / 3, 1 / 3])
    found = exact(mix, pool)[0]["scale"].item()
    assert found == pytest.approx(1 / 3, abs=1e-7)


def test_each_tensor_gets_its_dtype(make_pool: MakePool) -> None:
    pool = make_pool(random_states(2))
    mix = random_mix(grouping(pool, "whole"), pool.columns)
    made, _ = exact(mix, pool, {"*": torch.float16, "scale": torch.float64, "frozen": torch.bfloat16})
    assert made["scale"].dtype == torch.float64
    assert made["frozen"].dtype == torch.bfloat16
    assert made["steps"].dtype == torch.int64
    assert made["head.weight"].dtype == torch.float16
    every = dict.fromkeys(made, torch.float32)
    assert {tensor.dtype for tensor in exact(mix, pool, every)[0].values()} == {torch.float32, torch.int64}


def test_columns_that_the_mix_does_not_use_need_no_file(make_pool: MakePool) -> None:
    pool = make_pool(random_states(4))
    mix = constant(grouping(pool, "whole"), pool.columns, [0.0, 0.25, 0.0, 0.75])
    some = {name: pool.paths[name] for name in ("model_1", "model_3")}
    told: list[tuple[str, int, int]] = []
    made, _ = build_exact(
        mix, some, hashes=pool.fingerprints, dtypes={"*": torch.float32}, progress=lambda *step: told.append(step)
    )
    for name, tensor in exact(mix, pool)[0].items():
        assert bits(made[name]) == bits(tensor)
    assert told == [("building the exact model", 1, 2), ("building the exact model", 2, 2)]


def test_a_column_in_use_without_a_file_is_refused(make_pool: MakePool) -> None:
    pool = make_pool(random_states(3))
    mix = random_mix(grouping(pool, "whole"), pool.columns)
    some = {"model_0": pool.paths["model_0"]}
    with pytest.raises(PoolError, match="the mix uses model_1, model_2, but no checkpoint is given"):
        build_exact(mix, some, hashes=pool.fingerprints, dtypes={"*": torch.float32})


def test_a_file_of_other_content_is_refused(make_pool: MakePool) -> None:
    states = random_states(3)
    pool = make_pool(states)
    mix = random_mix(grouping(pool, "whole"), pool.columns)
    changed = {**states[1], "scale": states[1]["scale"] + 1e-3}
    save_file(changed, pool.paths["model_1"])
    expected = pool.fingerprints["model_1"][:12]
    with pytest.raises(PoolError) as caught:
        exact(mix, pool)
    assert "model_1.safetensors: not the checkpoint that the mix was found with" in str(caught.value)
    assert f"expected content hash {expected}" in str(caught.value)


def test_the_same_content_in_another_format_is_accepted(make_pool: MakePool, tmp_path: Path) -> None:
    states = random_states(2)
    pool = make_pool(states)
    mix = random_mix(grouping(pool, "block"), pool.columns)
    torch.save({"state_dict": states[1]}, tmp_path / "other.pt")
    moved = replace(pool, paths={**pool.paths, "model_1": tmp_path / "other.pt"})
    for name, tensor in exact(mix, pool)[0].items():
        assert bits(exact(mix, moved)[0][name]) == bits(tensor)


def made_file(folder: Path, threads: int) -> str:
    """Build and write in this process; the SHA-256 of the file."""
    torch.set_num_threads(threads)
    files = checkpoints.find(folder, ("model_*",))
    pool = open_pool({path.stem: path for path in files})
    mix = random_mix(grouping(pool, "2"), pool.columns, affine=True)
    tensors, tied = exact(mix, pool, {"*": torch.bfloat16, "blocks.1.w": torch.float32})
    out = folder / f"out_{threads}.safetensors"
    checkpoints.write(out, tensors, tied=tied, metadata={"b": "2", "a": "1"})
    return hashlib.sha256(out.read_bytes()).hexdigest()


def test_the_same_bytes_come_out_whatever_the_threads(tmp_path: Path) -> None:
    """Large enough that torch would split the work; also in a process with other threads and another hash seed."""
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        state = {f"blocks.{block}.w": torch.randn(200_000, generator=generator) for block in range(3)}
        save_file(state, tmp_path / f"model_{number}.safetensors")
    before = torch.get_num_threads()
    try:
        found = {made_file(tmp_path, 1), made_file(tmp_path, 2)}
    finally:
        torch.set_num_threads(before)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "5", "PYTHONHASHSEED": "5", "PYTHONPATH": str(root)}
    script = "import sys; from pathlib import Path; from tests.weights.test_builder import made_file as m; "
    command = [sys.executable, "-c", script + "print(m(Path(sys.argv[1]), 5))", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=root)
    found.add(ran.stdout.strip())
    assert len(found) == 1


def test_building_twice_gives_the_same_file(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(random_states(4))
    mix = random_mix(grouping(pool, "block"), pool.columns)
    for number in range(2):
        tensors, tied = exact(mix, pool)
        checkpoints.write(tmp_path / f"{number}.safetensors", tensors, tied=tied, metadata={"recipe": "x"})
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()
