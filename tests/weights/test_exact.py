from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mixopt.errors import PoolError
from mixopt.values.mix import constant
from mixopt.weights import checkpoints
from mixopt.weights.exact import build_exact, round_once
from mixopt.weights.pool import open_pool
from tests.conftest import random_mix, random_states
from tests.weights.nets import MakePool, bits, exact, grouping, often


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
@given(
    count=st.integers(2, 5),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
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
    script = "import sys; from pathlib import Path; from tests.weights.test_exact import made_file as m; "
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
