from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mixopt.errors import CheckpointError, PoolError
from mixopt.values.groups import depth_order
from mixopt.weights import checkpoints
from mixopt.weights.pool import Pool, open_pool
from tests.conftest import State, random_states

MakePool = Callable[..., Pool]
DEPTH = ["stem.weight", "blocks.0.mlp.weight", "blocks.0.mlp.bias", "blocks.1.mlp.weight", "blocks.1.mlp.bias"]


def part(pool: Pool, name: str) -> Tensor:
    """A mixed tensor of every column, ``[n_columns, *shape]``."""
    place = next(place for place in pool.mixed if place.name == name)
    return pool.stack[:, place.start : place.stop].reshape(-1, *place.shape)


def test_the_stack_holds_every_column_in_depth_order(make_pool: MakePool) -> None:
    states = random_states(4)
    pool = make_pool(states[:3], base=states[3])
    assert pool.columns == ("model_0", "model_1", "model_2", "base")
    assert pool.base == "base"
    assert pool.ingredients == ("model_0", "model_1", "model_2")
    names = [place.name for place in pool.mixed]
    assert names == depth_order(names)
    by_block = [name for name in names if name in DEPTH]
    assert [name.rpartition(".")[0] for name in by_block] == [name.rpartition(".")[0] for name in DEPTH]
    assert names.index("head.weight") > names.index("blocks.1.mlp.bias")
    for name in names:
        for column, state in zip(part(pool, name), states, strict=True):
            assert torch.equal(column, state[name])


def test_the_stack_has_no_gaps(make_pool: MakePool) -> None:
    pool = make_pool(random_states(2))
    assert pool.stack.shape == (2, pool.mixed[-1].stop)
    assert pool.stack.dtype == torch.float32
    assert pool.stack.is_contiguous()
    assert pool.mixed[0].start == 0
    for before, after in itertools.pairwise(pool.mixed):
        assert before.stop == after.start
    assert pool.sizes == {place.name: int(np.prod(place.shape)) for place in pool.mixed}
    assert list(pool.sizes) == [place.name for place in pool.mixed]


def test_columns_keep_the_order_given_and_the_base_comes_last(tmp_path: Path) -> None:
    names = ["model_10", "model_2", "a"]
    states = random_states(4)
    for name, state in zip([*names, "zero"], states, strict=True):
        save_file(state, tmp_path / f"{name}.safetensors")
    files = {name: tmp_path / f"{name}.safetensors" for name in names}
    pool = open_pool(files, ("zero", tmp_path / "zero.safetensors"))
    assert pool.columns == (*names, "zero")
    assert list(pool.paths) == [*names, "zero"]
    assert list(pool.hashes) == [*names, "zero"]
    found = checkpoints.find(tmp_path, ("model_*",))
    assert open_pool(dict(zip(checkpoints.names_of(found, tmp_path), found, strict=True))).columns == (
        "model_2",
        "model_10",
    )


def test_tensors_alike_in_all_columns_are_kept_once(make_pool: MakePool) -> None:
    states = random_states(3)
    for state in states[:2]:
        state["head.weight"] = states[0]["head.weight"]
    pool = make_pool(states[:2], base=states[2])
    assert "head.weight" in pool.sizes  # the base differs
    assert {name: tensor.tolist() for name, tensor in pool.fixed.items()} == {
        "frozen": states[0]["frozen"].tolist(),
        "steps": 7,
    }
    assert "head.weight" in make_pool(states[:2]).fixed


def test_an_order_of_ones_own_lays_out_the_stack(make_pool: MakePool) -> None:
    pool = make_pool(random_states(2), order=lambda names: sorted(names, reverse=True))
    names = [place.name for place in pool.mixed]
    assert names == sorted(names, reverse=True)


def test_fingerprints_are_the_contents(make_pool: MakePool) -> None:
    pool = make_pool(random_states(2))
    for column, path in pool.paths.items():
        hashes = checkpoints.hash_tensors(checkpoints.read(path).tensors)
        assert pool.hashes[column] == hashes
        assert pool.fingerprints[column] == checkpoints.content_hash(hashes)


def test_progress_is_told_after_every_file(make_pool: MakePool) -> None:
    told: list[tuple[str, int, int]] = []
    make_pool(random_states(2), progress=lambda *step: told.append(step))
    assert told == [
        ("checking checkpoints", 1, 2),
        ("checking checkpoints", 2, 2),
        ("stacking checkpoints", 1, 2),
        ("stacking checkpoints", 2, 2),
    ]


# -------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_dtype_is_the_saved_one_and_mixed_in_fp32(make_pool: MakePool, dtype: torch.dtype) -> None:
    states = random_states(2, dtype=dtype)
    pool = make_pool(states)
    assert pool.stack.dtype == torch.float32
    assert set(pool.saved_dtypes(None).values()) == {dtype}
    assert set(pool.saved_dtypes(None)) == {*pool.sizes, "frozen"}
    assert set(pool.saved_dtypes(torch.float64).values()) == {torch.float64}
    assert torch.equal(part(pool, "stem.weight")[1], states[1]["stem.weight"].float())
    assert pool.notices == ()


def test_dtypes_that_differ_are_saved_in_fp32_and_told(make_pool: MakePool) -> None:
    states = random_states(3)
    states[1] = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in states[1].items()}
    states[2] = {name: tensor.bfloat16() if name == "scale" else tensor for name, tensor in states[2].items()}
    pool = make_pool(states)
    assert set(pool.saved_dtypes(None).values()) == {torch.float32}
    assert len(pool.notices) == 1
    assert "1 in float32, 1 in float16, 1 in bfloat16 and float32" in pool.notices[0]


def test_only_tensors_whose_dtypes_differ_are_saved_in_fp32(make_pool: MakePool) -> None:
    states = random_states(2, dtype=torch.float16)
    states[1]["scale"] = states[1]["scale"].float()
    saved = make_pool(states).saved_dtypes(None)
    assert saved.pop("scale") == torch.float32
    assert set(saved.values()) == {torch.float16}


def test_a_base_in_another_dtype_does_not_decide(make_pool: MakePool) -> None:
    states = random_states(2, dtype=torch.float16)
    pool = make_pool(states, base=random_states(1, seed=5)[0])
    assert {pool.saved_dtypes(None)[name] for name in pool.sizes} == {torch.float16}
    assert any("base is stored in other dtypes" in notice for notice in pool.notices)


def test_float64_is_told(make_pool: MakePool) -> None:
    pool = make_pool(random_states(2, dtype=torch.float64))
    assert set(pool.saved_dtypes(None).values()) == {torch.float64}
    assert any("float64 tensors are searched in fp32" in notice for notice in pool.notices)


# ------------------------------------------------------------------------------------------------------- buffers


def test_equal_integer_buffers_are_kept_in_silence(make_pool: MakePool) -> None:
    pool = make_pool(random_states(2))
    assert pool.fixed["steps"].item() == 7
    assert pool.buffers_from is None
    assert pool.notices == ()


def test_counters_that_differ_come_from_the_first_with_a_notice(make_pool: MakePool) -> None:
    states = random_states(3)
    for number, state in enumerate(states):
        state["steps"] = torch.tensor(number + 10)
        state["bn.num_batches_tracked"] = torch.tensor(number)
    pool = make_pool(states[:2], base=states[2])
    assert pool.buffers_from == "model_0"
    assert pool.fixed["steps"].item() == 10
    assert "steps" not in pool.sizes
    (notice,) = pool.notices
    assert notice.startswith("2 counters differ")
    assert notice.endswith("taken from model_0")


@pytest.mark.parametrize(
    "values",
    [
        (torch.tensor([1, 2], dtype=torch.int8), torch.tensor([2, 1], dtype=torch.int8)),
        (torch.tensor([True, False]), torch.tensor([True, True])),
        (torch.tensor(3), torch.tensor(4)),
    ],
    ids=["weights", "mask", "scalar"],
)
def test_integers_that_differ_and_count_nothing_are_refused(make_pool: MakePool, values: tuple[Tensor, Tensor]) -> None:
    states = random_states(2)
    for state, value in zip(states, values, strict=True):
        state["q.zero_point"] = value
    assert "differ and cannot be mixed (q.zero_point)" in message(make_pool, states)


def test_equal_values_in_two_dtypes_are_equal(make_pool: MakePool) -> None:
    states = random_states(3)
    for number, state in enumerate(states):
        state["ids"] = torch.arange(5, dtype=torch.int32 if number else torch.int64)
        mask = torch.full((3, 3), float("-inf")).triu(1)
        state["mask"] = mask.to(torch.float16) if number == 1 else mask
        state["frozen"] = torch.tensor([0.5, 0.25]).to(torch.bfloat16 if number == 2 else torch.float32)
    pool = make_pool(states[:2], base=states[2])
    assert {"ids", "mask", "frozen"} <= pool.fixed.keys()
    assert pool.fixed["ids"].dtype == torch.int64
    assert {"ids", "mask", "frozen"}.isdisjoint(pool.sizes)


def test_values_that_differ_beyond_a_few_bytes_in_two_dtypes_differ(make_pool: MakePool) -> None:
    states = random_states(2)
    for number, state in enumerate(states):
        # The middle, which is looked at first, is the same.
        state["long"] = torch.arange(5000, dtype=torch.float64 if number else torch.float32)
        state["long"][0] = number
    assert "long" in make_pool(states).sizes


def test_batchnorm_statistics_are_mixed_with_a_notice(make_pool: MakePool) -> None:
    states = random_states(2)
    for number, state in enumerate(states):
        state["bn.running_mean"] = torch.full((3,), float(number))
        state["bn.running_var"] = torch.full((3,), float(number + 1))
    pool = make_pool(states)
    assert {"bn.running_mean", "bn.running_var"} <= set(pool.sizes)
    assert "BatchNorm statistics differ between checkpoints in 2 buffers" in pool.notices


def test_an_infinite_buffer_alike_in_all_is_legal(make_pool: MakePool) -> None:
    states = random_states(2)
    for state in states:
        state["attn_mask"] = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
    pool = make_pool(states)
    assert pool.fixed["attn_mask"].tolist() == [[0.0, -np.inf], [0.0, 0.0]]
    assert bool(torch.isfinite(pool.stack).all())


def test_other_entries_are_told(tmp_path: Path) -> None:
    for number, state in enumerate(random_states(2)):
        torch.save({**state, "note": "text"}, tmp_path / f"{number}.pt")
    pool = open_pool({"a": tmp_path / "0.pt", "b": tmp_path / "1.pt"})
    assert pool.notices == ("entries that are not tensors are left out: note",)


def test_tied_tensors_are_kept_once_and_told(tmp_path: Path) -> None:
    for number, state in enumerate(random_states(2)):
        torch.save({**state, "alias": state["head.weight"]}, tmp_path / f"{number}.pt")
    pool = open_pool({"a": tmp_path / "0.pt", "b": tmp_path / "1.pt"})
    assert pool.tied == {"alias": "head.weight"}
    assert "alias" not in pool.sizes
    assert pool.notices == ("1 tied tensors stay tied and are saved once (alias)",)


# ------------------------------------------------------------------------------------------------------ problems


def message(make_pool: MakePool, states: list[State], base: State | None = None) -> str:
    with pytest.raises(PoolError) as caught:
        make_pool(states, base=base)
    return str(caught.value)


def test_missing_and_extra_tensors_are_named(make_pool: MakePool) -> None:
    states = random_states(3)
    del states[1]["head.weight"]
    states[2]["extra"] = torch.ones(1)
    text = message(make_pool, states)
    assert "model_1: lacks 1 tensors that model_0 has: head.weight" in text
    assert "model_2: has 1 tensors that model_0 lacks: extra" in text
    assert "2 problems" in text


def test_shapes_that_differ_are_named_in_the_checkpoints_order(make_pool: MakePool) -> None:
    states = random_states(2)
    for name in ("head.weight", "stem.weight", "blocks.0.mlp.bias"):
        states[1][name] = torch.zeros(9)
    lines = message(make_pool, states).splitlines()
    assert lines[0] == "the checkpoints cannot be mixed, 3 problems:"
    assert "  - model_1: head.weight has shape [9], expected [4, 6] as in model_0" in lines
    order = list(checkpoints.read(make_pool(random_states(2)).paths["model_0"]).tensors)
    told = [line.split()[2] for line in lines[1:]]
    assert told == sorted(told, key=order.index)


def test_kinds_that_differ_are_named(make_pool: MakePool) -> None:
    states = random_states(2)
    states[1]["steps"] = torch.tensor(7.0)
    assert "model_1: steps is torch.float32, but torch.int64 in model_0" in message(make_pool, states)


def test_complex_tensors_are_refused(make_pool: MakePool) -> None:
    states = random_states(2)
    for number, state in enumerate(states):
        state["rope"] = torch.full((2,), 1j * (number + 1), dtype=torch.complex64)
    assert "model_1: rope is complex; only real tensors can be mixed" in message(make_pool, states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_named(make_pool: MakePool, dtype: torch.dtype) -> None:
    states = random_states(3, dtype=dtype)
    states[0]["head.weight"][0, 0] = torch.nan
    states[2]["scale"] = torch.tensor(-torch.inf, dtype=dtype)
    text = message(make_pool, states)
    assert "model_0: tensor head.weight holds NaN" in text
    assert "model_2: tensor scale holds an infinite value" in text
    assert "2 problems" in text


def test_nan_alike_in_all_is_still_refused(make_pool: MakePool) -> None:
    states = random_states(2)
    for state in states:
        state["frozen"] = torch.tensor([torch.nan])
    text = message(make_pool, states)
    assert "model_0: tensor frozen holds NaN" in text
    assert "model_1: tensor frozen holds NaN" in text


def test_copies_of_one_model_count_once(make_pool: MakePool) -> None:
    states = random_states(3)
    pool = make_pool([states[0], states[1], states[0], states[2]], base=states[1])
    assert pool.columns == ("model_0", "model_3", "base")
    assert pool.base == "base"
    assert "model_2: the same weights as model_0; counted once" in pool.notices
    assert "model_1: the same weights as base; counted once" in pool.notices
    assert torch.equal(pool.stack, make_pool([states[0], states[2]], base=states[1]).stack)


def test_copies_of_one_model_are_no_pool(make_pool: MakePool) -> None:
    states = random_states(1)
    text = message(make_pool, [states[0], states[0]])
    assert "model_1: the same weights as model_0" in text
    assert "mixing needs at least two checkpoints, found 1 (model_0)" in text


def test_what_was_done_on_opening_is_told_once_for_all_that_it_holds_for(tmp_path: Path) -> None:
    states = random_states(3)
    files = {}
    for number, state in enumerate(states):
        files[f"m{number}"] = tmp_path / f"m{number}.pt"
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"state_dict": state, "state_dict_ema": wrapped} if number == 2 else wrapped, files[f"m{number}"])
    notices = open_pool(files).notices
    assert "every checkpoint: names lose the prefix 'module.'" in notices
    assert any(
        each.startswith("m2: of several sets of weights 'state_dict_ema' (averaged) is taken") for each in notices
    )


def test_a_base_that_does_not_fit_is_named(make_pool: MakePool) -> None:
    states = random_states(3)
    states[2]["head.weight"] = torch.zeros(10, 6)
    text = message(make_pool, states[:2], base=states[2])
    first, second = text.splitlines()
    assert first.endswith("base: head.weight has shape [10, 6], expected [4, 6] as in model_0")
    assert second == "The others agree with each other: leave --base out, or name another"
    assert make_pool(states[:2]).columns == ("model_0", "model_1")


def test_of_checkpoints_that_do_not_fit_the_odd_one_is_named(make_pool: MakePool) -> None:
    states = random_states(3)
    states[0]["head.weight"] = torch.zeros(10, 6)
    assert message(make_pool, states) == (
        "the checkpoints cannot be mixed: model_0: head.weight has shape [10, 6], expected [4, 6] as in model_1\n"
        "The others agree with each other: --ingredients takes the other 2 alone"
    )
    assert len(make_pool(states[1:]).columns) == 2


def test_what_was_done_on_opening_stands_with_what_is_wrong(tmp_path: Path) -> None:
    """The cause of what does not fit may be which of two sets of weights was taken."""
    states = random_states(3)
    files = {f"m{number}": tmp_path / f"m{number}.pt" for number in range(3)}
    for number, path in enumerate(files.values()):
        smaller = {name: tensor for name, tensor in states[number].items() if name != "scale"} | {"more": torch.ones(1)}
        torch.save({"state_dict": states[number], "ema": smaller} if number == 1 else states[number], path)
    with pytest.raises(PoolError) as caught:
        open_pool(files)
    text = str(caught.value)
    assert "m1: lacks 1 tensors that m0 has: scale" in text
    assert (
        "\nOn opening, m1: of several sets of weights 'ema' (averaged) is taken, and state_dict left out; --w" in text
    )


def test_no_pool_is_promised_where_what_is_left_makes_none(make_pool: MakePool) -> None:
    states = random_states(2)
    states[1]["stem.weight"][0] = torch.nan
    assert "agree with each other" not in message(make_pool, states)


def test_integers_that_cannot_be_mixed_are_promised_to_nobody(make_pool: MakePool) -> None:
    states = random_states(3)
    base = {name: tensor.clone() for name, tensor in states[0].items()}
    for number, state in enumerate(states):
        state["stem.weight"] = torch.full_like(state["stem.weight"], number + 3).to(torch.int8)
    text = message(make_pool, states, base=base)
    assert "base: stem.weight is torch.float32, but torch.int8 in model_0" in text
    assert "agree with each other" not in text


def test_tensors_under_another_name_are_one_problem(make_pool: MakePool) -> None:
    states = random_states(3)
    states[1]["classifier.weight"] = states[1].pop("head.weight")
    first, _ = message(make_pool, states).splitlines()
    assert first == (
        "the checkpoints cannot be mixed: model_1: has 1 tensors of the shapes of model_0's under other names "
        "(classifier.weight for head.weight); if they are the same part of the model, save it under the same names"
    )


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    states = random_states(6)
    del states[1]["scale"]
    states[2]["head.weight"] = torch.zeros(2, 2)
    states[3]["stem.weight"][0] = torch.nan
    files = {}
    for number, state in enumerate(states):
        files[f"m{number}"] = tmp_path / f"m{number}.safetensors"
        save_file(state, files[f"m{number}"])
    files["m5"].write_bytes(files["m5"].read_bytes()[:-7])
    files["m6"] = tmp_path / "missing.safetensors"
    with pytest.raises(PoolError) as caught:
        open_pool(files)
    text = str(caught.value)
    for expected in (
        "m1: lacks 1 tensors that m0 has: scale",
        "m2: head.weight has shape",
        "m3: tensor stem.weight holds NaN",
        "m5.safetensors: damaged or truncated",
        "missing.safetensors: no such file",
    ):
        assert expected in text
    assert "5 problems" in text


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_checkpoints_are_refused(make_pool: MakePool, count: int) -> None:
    text = message(make_pool, random_states(count))
    assert f"mixing needs at least two checkpoints, found {count} ({'model_0' if count else 'none'})" in text


def test_one_ingredient_and_a_base_are_enough(make_pool: MakePool) -> None:
    states = random_states(2)
    assert make_pool(states[:1], base=states[1]).columns == ("model_0", "base")


def test_nothing_to_mix_is_refused(make_pool: MakePool) -> None:
    states = random_states(1) * 2
    states[1] = {**states[1], "steps": torch.tensor(8)}
    assert "differ in no floating-point tensor; there is nothing to mix" in message(make_pool, states)


def test_a_file_that_one_reader_cannot_open_is_one_problem(make_pool: MakePool) -> None:
    def reader(path: Path) -> checkpoints.Checkpoint:
        if path.name == "model_1.safetensors":
            raise CheckpointError("model_1: of another family")
        return checkpoints.read(path)

    with pytest.raises(PoolError, match=r"^the checkpoints cannot be mixed: model_1: of another family\n"):
        make_pool(random_states(3), reader=reader)


def test_ties_that_differ_are_named(tmp_path: Path) -> None:
    states = random_states(2)
    torch.save({**states[0], "alias": states[0]["head.weight"]}, tmp_path / "0.pt")
    torch.save({**states[1], "alias": states[1]["head.weight"].clone()}, tmp_path / "1.pt")
    with pytest.raises(PoolError, match="b: ties other tensors than a"):
        open_pool({"a": tmp_path / "0.pt", "b": tmp_path / "1.pt"})


@given(count=st.integers(2, 5), seed=st.integers(0, 100), with_base=st.booleans())
def test_any_pool_is_what_its_files_hold(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, with_base: bool
) -> None:
    folder = tmp_path_factory.mktemp("pool")
    states = random_states(count, seed)
    files = {}
    for number, state in enumerate(states):
        files[f"m{number}"] = folder / f"m{number}.safetensors"
        save_file(state, files[f"m{number}"])
    base = files.popitem() if with_base else None
    pool = open_pool(files, base)
    assert pool.columns == tuple(f"m{number}" for number in range(count))
    assert {*pool.sizes, *pool.fixed} == set(states[0])
    for name in pool.sizes:
        assert torch.equal(part(pool, name), torch.stack([state[name] for state in states]))


# ---------------------------------------------------------------------------------------------------- one reading


def test_every_tensor_of_a_mapped_file_is_scanned_once(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[tuple[int, ...]] = []
    scan = checkpoints.scan

    def counting(tensor: Tensor, into: Tensor | None = None) -> checkpoints.Scan:
        scanned.append(tuple(tensor.shape))
        return scan(tensor, into)

    monkeypatch.setattr(checkpoints, "scan", counting)
    states = random_states(3)
    make_pool(states)
    assert sorted(scanned) == sorted(tuple(tensor.shape) for state in states for tensor in state.values())


def test_a_difference_that_the_sample_misses_is_found(make_pool: MakePool) -> None:
    states = random_states(3)
    for state in states:
        state["wide"] = torch.zeros(100_000)
    states[2]["wide"][7] = 1.0
    pool = make_pool(states)
    assert torch.equal(part(pool, "wide"), torch.stack([state["wide"] for state in states]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("worst", [1.0, torch.nan, torch.inf, "largest"])
def test_a_scan_tells_what_separate_passes_would(dtype: torch.dtype, worst: float | str) -> None:
    tensor = torch.randn(70, 1000).to(dtype)
    tensor[-1, -9:] = torch.finfo(dtype).max if isinstance(worst, str) else worst
    tensor = tensor.t()
    into = torch.empty(tensor.numel())
    found = checkpoints.scan(tensor, into)
    assert found.hash == checkpoints.tensor_hash(tensor)
    assert found.holds_nan == (worst is torch.nan)
    assert found.holds_infinity == (worst is torch.inf)
    assert torch.equal(into.nan_to_num(), tensor.float().reshape(-1).nan_to_num())
    assert checkpoints.scan(tensor) == found


# -------------------------------------------------------------------------------------------------------- memory

PEAK = """
import sys
from pathlib import Path
from mixopt.weights.pool import open_pool

def status(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024

def opened(folder):
    files = sorted(Path(folder).glob("model_*"))
    return open_pool({path.stem: path for path in files[1:]}, (files[0].stem, files[0]))

opened(sys.argv[1])
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM, the peak, anew
pool = opened(sys.argv[2])
assert pool.stack.shape[0] == 12
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc, which Linux alone has")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_opening_takes_no_more_memory_than_the_stack_and_two_checkpoints(tmp_path: Path, suffix: str) -> None:
    """Files of the format before zip are read into memory whole; of the other, mapped pages count while mapped."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"small": 1000, "large": 3_000_000}
    for folder, size in sizes.items():
        (tmp_path / folder).mkdir()
        for number in range(12):
            state = {f"blocks.{block}.weight": torch.randn(size // 6, generator=generator) for block in range(6)}
            path = tmp_path / folder / f"model_{number}{suffix}"
            if suffix == ".pt":
                torch.save(state, path, _use_new_zipfile_serialization=False)
            else:
                save_file(state, path)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "large")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    one = sizes["large"] * 4
    peak = int(ran.stdout) / one
    assert 12 <= peak <= 12 + 2 + 0.5  # and half a one for the allocator
