"""Time to fuse a mix: mixopt's fast builder against the naive loop over state dicts, in one run.

    OMP_NUM_THREADS=1 python benchmarks/builder.py [--models DIR] [--ingredients 8,16,72] [--blocks 6] [--width 128]
        [--stack fp32]

The peer is the way of the published codes: every state dict in memory, a Python loop over names and ingredients that
sums in float32, then ``load_state_dict``. With ``--models``, on a real pool, whose state dicts are as their files hold
them; without, on random float32 weights of a small vision transformer's shapes, all of which are mixed (no accuracy is
claimed from those). Beside both stands a plain matrix-vector product over the same bytes, the floor. The three
are timed in turn, the fastest of each. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mixopt import load_spec
from mixopt.assemble.family import family_of
from mixopt.ingredients import ingredient_files
from mixopt.values.groups import Groups, make_groups
from mixopt.values.mix import Mix
from mixopt.weights import checkpoints
from mixopt.weights.builder import FastBuilder
from mixopt.weights.pool import Pool, open_pool
from mixopt.weights.stack import open_stack

CPU = torch.device("cpu")


class Transformer(nn.Module):
    """Blocks of a pre-norm transformer; only its state dict matters here."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False).layers
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, width)


def naive(states: list[dict[str, Tensor]], rows: np.ndarray, group_of: dict[str, int], module: nn.Module) -> None:
    """Loop over names and ingredients, then load."""
    fused = {}
    for name in states[0]:
        row = rows[group_of.get(name, 0)]  # what is the same in all is summed too: a loop does not know
        total = states[0][name].float() * float(row[0])
        for state, weight in zip(states[1:], row[1:], strict=True):
            total = total + state[name].float() * float(weight)
        fused[name] = total
    module.load_state_dict(fused)


def best_of(*works: Callable[[], object], repeats: int = 15) -> list[float]:
    """The fastest of several runs of each, in seconds, in turn and after one to warm up."""
    best = [math.inf] * len(works)
    for repeat in range(repeats + 1):
        for number, work in enumerate(works):
            started = time.perf_counter()
            work()
            if repeat:
                best[number] = min(best[number], time.perf_counter() - started)
    return best


def random_pool(ingredients: int, blocks: int, width: int) -> tuple[Pool, list[dict[str, Tensor]], nn.Module]:
    """Random ingredients around one base, as a pool and as state dicts."""
    torch.manual_seed(0)
    base = Transformer(blocks, width).state_dict()
    states = [
        {name: value + 0.01 * torch.randn_like(value) for name, value in base.items()} for _ in range(ingredients)
    ]
    with tempfile.TemporaryDirectory() as folder:
        paths = {f"model_{number}": Path(folder) / f"model_{number}.safetensors" for number in range(ingredients)}
        for state, path in zip(states, paths.values(), strict=True):
            save_file(state, path)
        return open_pool(paths), states, Transformer(blocks, width)


def real_pool(models: str) -> tuple[Pool, list[dict[str, Tensor]], nn.Module]:
    """The ingredients of a pool, without its base, as a pool and as state dicts in memory."""
    spec = load_spec({"models": models})
    family = family_of(spec)
    paths, _ = ingredient_files(spec)
    states = [
        {name: tensor.clone() for name, tensor in checkpoints.read(path).tensors.items()} for path in paths.values()
    ]
    return open_pool(paths, order=family.depth), states, family.build()


def random_mix(groups: Groups, pool: Pool, seed: int = 0) -> Mix:
    """A random row for every group."""
    rows = np.random.default_rng(seed).dirichlet(np.ones(len(pool.columns)), size=len(groups))
    return Mix(groups, pool.columns, rows)


def measure(pool: Pool, states: list[dict[str, Tensor]], module: nn.Module, scheme: str, mode: str) -> dict[str, float]:
    """One row of the table."""
    groups = make_groups(scheme, pool.sizes)
    mix = random_mix(groups, pool)
    rows = mix.coefficients
    fast = FastBuilder(pool, copy.deepcopy(module), CPU, stack=open_stack(pool, CPU, mode))
    weights = torch.tensor(rows[0], dtype=torch.float32)
    fused = torch.empty(pool.stack.shape[1])
    peer, ours, floor = best_of(
        lambda: naive(states, rows, groups.index(), module),
        lambda: fast.apply(mix),
        lambda: torch.mv(pool.stack.t(), weights, out=fused),
    )
    return {
        "ingredients": len(states),
        "groups": len(groups),
        "parameters": pool.stack.shape[1],
        "naive_ms": peer * 1e3,
        "mixopt_ms": ours * 1e3,
        "times_faster": peer / ours,
        "of_one_product": floor / ours,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models")
    parser.add_argument("--ingredients", default="8,16,72")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--stack", choices=("fp32", "bf16"), default="fp32")
    arguments = parser.parse_args()
    results = []
    print(f"{'ingredients':>11} {'groups':>6} {'naive ms':>9} {'mixopt ms':>9} {'faster':>7} {'of one product':>14}")
    counts = [0] if arguments.models else [int(count) for count in arguments.ingredients.split(",")]
    for count in counts:
        pool, states, module = (
            real_pool(arguments.models) if arguments.models else random_pool(count, arguments.blocks, arguments.width)
        )
        for scheme in ("whole", "4", "block", "tensor"):
            row = measure(pool, states, module, scheme, arguments.stack)
            results.append(row)
            print(
                f"{row['ingredients']:>11} {row['groups']:>6} {row['naive_ms']:9.2f} {row['mixopt_ms']:9.2f} "
                f"{row['times_faster']:6.1f}x {row['of_one_product']:13.0%}",
                flush=True,
            )
    print(json.dumps({"benchmark": "builder", "threads": torch.get_num_threads(), "rows": results}))


if __name__ == "__main__":
    main()
