"""Where the columns lie: the same mixes from each, within stated tolerances; chosen by memory, kept by the run."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mixopt
from mixopt import RunError, load_spec, open_objective
from mixopt.errors import PoolError
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix, one_hot
from mixopt.weights.builder import FastBuilder
from mixopt.weights.pool import Pool, open_pool
from mixopt.weights.stack import Deltas, Resident, Stack, Streamed, open_stack
from tests.conftest import State, random_mix, random_states
from tests.listening import Recorder
from tests.weights.nets import Net, bits, naive, open_states, scale_of

CPU = torch.device("cpu")
# Chunks of a few parameters end inside tensors, at their ends, and beyond the last.
STACKS: dict[str, Callable[[Pool], Stack]] = {
    "resident": lambda pool: Resident(pool, CPU),
    "deltas": lambda pool: Deltas(pool, CPU),
    "deltas in chunks": lambda pool: Deltas(pool, CPU, chunk=7 * len(pool.columns)),
    "streamed": lambda pool: Streamed(pool, CPU),
    "streamed in chunks": lambda pool: Streamed(pool, CPU, chunk=7 * len(pool.columns)),
    "streamed by six": lambda pool: Streamed(pool, CPU, chunk=6 * len(pool.columns)),
    "streamed one by one": lambda pool: Streamed(pool, CPU, chunk=1),
}
every_stack = pytest.mark.parametrize("name", STACKS)


def tuned_states(count: int) -> list[State]:
    """Ingredients that are large beside their differences."""
    first, *others = random_states(count)
    mixed = [name for name in first if name not in ("steps", "frozen")]
    centre = {name: 10 * first[name] for name in mixed}
    return [state | {name: centre[name] + 0.01 * state[name] for name in mixed} for state in (first, *others)]


def with_base(folder: Path, states: list[State]) -> Pool:
    pool = open_states(folder, states)
    *ingredients, base = pool.columns
    return open_pool({name: pool.paths[name] for name in ingredients}, (base, pool.paths[base]))


def fused(builder: FastBuilder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in builder.module.state_dict().items()}


@every_stack
@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize(("scheme", "affine"), [("whole", False), ("2", True), ("tensor", True)])
def test_every_stack_gives_what_a_plain_loop_gives(
    tmp_path: Path, name: str, base: bool, scheme: str, affine: bool
) -> None:
    states = tuned_states(5)
    pool = with_base(tmp_path, states) if base else open_states(tmp_path, states)
    mix = random_mix(make_groups(scheme, pool.sizes), pool.columns, affine=affine)
    expected = naive(states, mix)
    stack = STACKS[name](pool)
    builder = FastBuilder(pool, Net(), CPU, stack=stack)
    builder.apply(mix)
    found = builder.module.state_dict()
    rows = np.abs(mix.coefficients)
    for tensor in pool.sizes:
        tolerance = scale_of(states, mix, tensor) * 1e-6
        if stack.mode == "bf16":
            columns = torch.stack([state[tensor].double() for state in states])
            centre = columns[-1] if base else columns.mean(dim=0)
            row = torch.from_numpy(rows[mix.groups.index()[tensor]]).view(-1, *[1] * centre.ndim)
            tolerance += (row * (columns - centre).abs()).sum(dim=0) / 256
        assert bool(((found[tensor].double() - expected[tensor]).abs() <= tolerance).all()), tensor


def test_deltas_are_of_bf16_and_that_shows(tmp_path: Path) -> None:
    pool = open_states(tmp_path, tuned_states(5))
    mix = random_mix(make_groups("tensor", pool.sizes), pool.columns)
    made = [FastBuilder(pool, Net(), CPU, stack=STACKS[name](pool)) for name in ("resident", "deltas")]
    for builder in made:
        builder.apply(mix)
    plain, low = (fused(builder) for builder in made)
    assert any(not torch.equal(plain[name], low[name]) for name in pool.sizes)


@every_stack
def test_a_checkpoint_alone_is_exact(tmp_path: Path, name: str) -> None:
    states = random_states(4)
    for state in states:
        state["head.weight"][0, 0] = -0.0
    pool = with_base(tmp_path, states)
    builder = FastBuilder(pool, Net(), CPU, stack=STACKS[name](pool))
    groups = make_groups("tensor", pool.sizes)
    for column, state in zip(pool.columns, states, strict=True):
        alone, other = one_hot(groups, pool.columns, column), random_mix(groups, pool.columns)
        builder.apply(other)
        builder.apply(alone)
        found = fused(builder)
        assert all(bits(found[tensor]) == bits(state[tensor]) for tensor in pool.sizes)
        # One row alone among others.
        rows = other.coefficients.copy()
        rows[2] = alone.coefficients[2]
        builder.apply(Mix(groups, pool.columns, rows))
        (tensor,) = groups.items[2][1]
        assert bits(fused(builder)[tensor]) == bits(state[tensor])


@every_stack
def test_gradients_are_those_of_finite_differences(tmp_path: Path, name: str) -> None:
    states = random_states(3)
    pool = with_base(tmp_path, states)
    groups = make_groups("tensor", pool.sizes)
    builder = FastBuilder(pool, Net(), CPU, stack=STACKS[name](pool))
    targets = {tensor: torch.randn(place.shape) for tensor, place in zip(pool.sizes, pool.mixed, strict=True)}
    parameters = dict(builder.module.named_parameters())

    def loss() -> Tensor:
        return torch.stack([(parameters[name] - target).square().sum() for name, target in targets.items()]).sum()

    mix = random_mix(groups, pool.columns)
    builder.apply(mix)
    _, rows, _ = builder.gradient(loss)
    owner = {place.name: number for number, place in enumerate(pool.mixed)}
    for number, (_, (tensor,)) in enumerate(groups.items):
        for column in (1, 2):
            found = []
            for sign in (1, -1):
                moved = mix.coefficients.copy()
                moved[number, [0, column]] += [-sign * 0.05, sign * 0.05]
                builder.apply(Mix(groups, pool.columns, moved))
                found.append(float(loss()))
            slope = rows[owner[tensor]][column] - rows[owner[tensor]][0]
            assert slope == pytest.approx((found[0] - found[1]) / 0.1, rel=5e-3, abs=5e-3)


def test_the_stack_is_chosen_by_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = open_states(tmp_path, random_states(9))
    whole, halved = pool.stack.nbytes, pool.stack.nbytes // 2 + pool.stack[0].nbytes

    def opened(room: float, mode: str) -> str:
        monkeypatch.setattr("mixopt.weights.stack.room_on", lambda _: room)
        return type(open_stack(pool, CPU, mode)).__name__

    assert [opened(whole + 1, mode) for mode in ("auto", "fp32", "bf16")] == ["Resident", "Resident", "Deltas"]
    assert [opened(halved + 1, mode) for mode in ("auto", "fp32", "bf16")] == ["Deltas", "Streamed", "Deltas"]
    assert [opened(halved - 1, mode) for mode in ("auto", "fp32")] == ["Streamed", "Streamed"]
    with pytest.raises(PoolError, match=r"--stack bf16: needs .* on cpu, expected at most .* use --stack fp32"):
        opened(halved - 1, "bf16")
    monkeypatch.undo()
    assert open_stack(pool, CPU).column(0, 0, 1).data_ptr() == pool.stack.data_ptr()


def test_the_mode_is_in_the_key_and_fp32_keeps_its_own(clip_pool_template: Path, tmp_path: Path) -> None:
    keys = {}
    for mode in ("auto", "fp32", "bf16"):
        spec = load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu", "stack": mode})
        objective = open_objective(spec)
        mix = random_mix(make_groups("block", objective.pool.sizes), objective.pool.columns)
        keys[mode] = objective.key(mix, "validation")
        identity = objective.scorer.keys.identity
        assert identity.get("stack") == ("bf16" if mode == "bf16" else None)
    assert keys["auto"] == keys["fp32"] != keys["bf16"]


def test_a_run_keeps_what_was_chosen(
    clip_pool_template: Path, run_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Recorder()
    listener = heard.listener
    options = {**run_options, "sampler": "random"}
    result = mixopt.search(clip_pool_template, trials=2, stack="bf16", listener=listener, **options)
    assert "stack: bf16, checkpoints in bf16 on the device: candidates are fused from bf16 differences" in heard.infos
    assert result.report["stack"] == {"mode": "bf16", "place": "device"}
    assert abs(result.report["verification"]["difference"]) < 0.05
    assert tomllib.loads((result.folder / "run.toml").read_text())["stack"] == "bf16"
    resumed = mixopt.search(clip_pool_template, trials=3, **options)
    assert resumed.report["stack"]["mode"] == "bf16"
    assert resumed.report["trials"]["complete"] == 3
    with pytest.raises(RunError, match='stack was "bf16", now "fp32"'):
        mixopt.search(clip_pool_template, trials=3, stack="fp32", **options)

    monkeypatch.setattr("mixopt.weights.stack.room_on", lambda _: 1.0)
    heard = Recorder()
    listener = heard.listener
    compared = mixopt.compare(
        clip_pool_template, methods="uniform", listener=listener, **{**options, "out": result.folder.parent / "other"}
    )
    assert compared.report["stack"] == {"mode": "fp32", "place": "host"}
    assert "stack: auto, checkpoints in fp32 on the host, streamed to cpu for every candidate" in heard.warnings
