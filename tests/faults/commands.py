"""The commands that are killed, and the tiny pools that they work on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from tests.conftest import CLASSES, State, make_images
from tests.scoring import batchnorm_pool
from tests.tiny_family import Mlp

POOL_TOML = f"""\
family = "tests.tiny_family:plain"
base = "base.safetensors"
ingredients = ["model_*.safetensors"]
classnames = {json.dumps(CLASSES)}

[data]
search = "val.npz"

[data.test]
test = "test.npz"
"""
SIZES = {"val": 80, "test": 60, "extra": 60}
EVERY = "--cache cache --device cpu --precision fp32 --quiet"
SEARCH = f"search --models {{plain}} --out run {EVERY} --trials 8"
# The best trial is saved, so that its bytes depend on every proposal.
STEERED = f"{SEARCH} --confirm 0 --refit off"
DATABASE = "study.db"


@dataclass(frozen=True)
class Command:
    """A command that leaves a folder ``run``.

    Attributes:
        line: Its command line; names in braces stand for paths.
        eager: Race from the first samples on.
        cases: How many the campaign may make of it; the few files of a short one have no more points to be killed at.
    """

    line: str
    eager: bool = False
    cases: int = 100

    def arguments(self, paths: Mapping[str, Path]) -> list[str]:
        """The command line, split."""
        return [word.format_map(paths) for word in self.line.split()]


COMMANDS = {
    "defaults": Command(SEARCH),
    "cmaes": Command(f"{STEERED} --sampler cmaes --groups block --start uniform --population 3"),
    "tpe": Command(f"{STEERED} --sampler tpe"),
    "gp": Command(f"{STEERED} --sampler gp"),
    "random": Command(f"{SEARCH} --sampler random --groups tensor --space affine"),
    "raced": Command(f"{STEERED} --sampler random --population 3", eager=True),
    "refine": Command(f"{STEERED} --refine 1 --population 3"),
    "pareto_shifts": Command(f"{SEARCH} --pareto --shifts synthetic --population 3"),
    "pareto_select": Command(f"{STEERED} --pareto --select extra={{plain}}/extra.npz:0.4 --population 3"),
    "batchnorm": Command(
        f"search --models {{batchnorm}} --out run {EVERY} --trials 6 --batchnorm recompute --confirm 0 --population 3 "
        "--start uniform"
    ),
    "sqlite": Command(f"{STEERED} --population 3 --storage sqlite:///{DATABASE}"),
    "compare": Command(
        f"compare --models {{plain}} --out run {EVERY} --methods greedy,wise_ft,learned,lines,model_stock,"
        "manifold,ensemble"
    ),
    "build": Command("build {recipe} -o run/model.safetensors --models {batchnorm} --verify", cases=10),
}
RECIPE_FROM = "batchnorm"  # whose recipe `build` takes, with statistics in a file beside it


def write_pools(folder: Path) -> dict[str, Path]:
    """The pools, by the names that stand for them."""
    batchnorm = batchnorm_pool.ingredients(batchnorm_pool.trained(own_statistics=True))
    return {
        "plain": _write_plain(folder / "plain"),
        "batchnorm": batchnorm_pool.write_pool(folder / "batchnorm", batchnorm),
    }


def _write_plain(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "pool.toml").write_text(POOL_TOML)
    torch.manual_seed(0)
    base = Mlp(len(CLASSES)).state_dict()
    save_file({name: tensor.clone() for name, tensor in base.items()}, folder / "base.safetensors")
    for number in range(3):
        save_file(_tuned(base, number), folder / f"model_{number}.safetensors")
    for seed, (name, count) in enumerate(SIZES.items()):
        np.savez(folder / f"{name}.npz", **make_images(count, seed=seed))
    return folder


def _tuned(base: State, number: int) -> State:
    """The base, fitted for a few steps to images of its own."""
    net = Mlp(len(CLASSES))
    net.load_state_dict(base)
    arrays = make_images(40, seed=50 + number)
    images = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).float() / 255
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), torch.from_numpy(arrays["y"])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
