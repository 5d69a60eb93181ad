"""A pool of small BatchNorm networks near one another."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.batchnorm_family import Net
from tests.conftest import CLASSES, State, make_images

POOL_TOML = f"""\
family = "tests.batchnorm_family:net"
classnames = {json.dumps(CLASSES)}
metric = "nll"

[data]
search = "val.npz"

[data.test]
test = "test.npz"
"""


STATISTICS = ("bn1.running_mean", "bn1.running_var", "bn2.running_mean", "bn2.running_var")


def data_images() -> tuple[Tensor, Tensor]:
    arrays = make_images(96, seed=0)
    return torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(arrays["y"])


def trained(kind: str = "plain", *, own_statistics: bool) -> State:
    """A network whose head was fitted, its layers with the statistics of the images or with others."""
    torch.manual_seed(0)
    images, labels = data_images()
    net = Net(kind, len(CLASSES))
    net.drop.p = 0.0
    for layer in (net.frozen, net.bn1, net.bn2):
        layer.momentum = None
    net(images)
    if not own_statistics:
        net.bn1.running_mean.add_(0.5).mul_(-1)
        net.bn2.running_var.mul_(0.2)
    for layer in (net.frozen, net.bn1, net.bn2):
        layer.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    net.eval()
    with torch.no_grad():
        features = net.features(images)
    optimizer = torch.optim.Adam(net.head.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net.head(features), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def ingredients(state: State, count: int = 3, shift: float = 0.0, noise: float = 0.02) -> list[State]:
    """Networks near one another; ``shift`` moves the running means of all of them. The layer `frozen` is alike."""
    states = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        tuned = {}
        for name, tensor in state.items():
            moving = tensor.is_floating_point() and not name.startswith("frozen.running")
            tuned[name] = tensor + noise * torch.rand(tensor.shape, generator=generator) if moving else tensor
            if name in ("bn1.running_mean", "bn2.running_mean"):
                tuned[name] = tuned[name] + shift
        states.append(tuned)
    return states


def write_pool(folder: Path, states: Iterable[State], dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pool.toml").write_text(POOL_TOML)
    for number, state in enumerate(states):
        stored = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        save_file({name: tensor.clone() for name, tensor in stored.items()}, folder / f"model_{number}.safetensors")
    for seed, name in enumerate(("val", "test")):
        np.savez(folder / f"{name}.npz", **make_images(96, seed=seed))
    return folder
