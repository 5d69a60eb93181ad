"""Small pools of image classifiers and splits of noise, for tests of the families that take images."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

COUNT = 24


def write_images(path: Path, classes: int, side: int, seed: int = 0) -> Path:
    """A split of noise, ``[24, side, side, 3]``."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (COUNT, side, side, 3), dtype=np.uint8)
    np.savez(path, x=images, y=np.arange(COUNT) % classes)
    return path


def write_pool(folder: Path, module: nn.Module, count: int = 2, prefix: str = "") -> Path:
    """Checkpoints that differ in all their parameters by noise of a few percent, in fp32."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    parameters = {name for name, _ in module.named_parameters()}
    for number in range(count):
        state = {
            f"{prefix}{name}": tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
            if name in parameters
            else tensor.clone()
            for name, tensor in module.state_dict().items()
        }
        save_file(state, folder / f"model_{number}.safetensors")
    return folder


def write_timm_sweep(folder: Path, name: str, classes: int, count: int = 3) -> Path:
    """What timm's trainer leaves with averaged weights: its checkpoints, and links to the last and the best."""
    import timm

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=classes)
    for number in range(count):
        state, average = (
            {
                key: tensor + scale * torch.randn(tensor.shape, generator=generator) if tensor.ndim else tensor
                for key, tensor in module.state_dict().items()
            }
            for scale in (0.1, 0.02)
        )
        content = {
            "epoch": number,
            "arch": name,
            "state_dict": state,
            "state_dict_ema": average,
            "args": Namespace(model=name, num_classes=classes, lr=0.1),
            "version": 2,
            "metric": 0.5,
        }
        torch.save(content, folder / f"checkpoint-{number}.pth.tar")
    for link, number in (("last", count - 1), ("model_best", 0)):
        (folder / f"{link}.pth.tar").hardlink_to(folder / f"checkpoint-{number}.pth.tar")
    return folder


def options_of(tmp_path: Path, classes: int, side: int) -> dict[str, Any]:
    """Of a comparison: two splits, and folders of its own."""
    data = {
        "search": write_images(tmp_path / "val.npz", classes, side),
        "test": {"test": write_images(tmp_path / "test.npz", classes, side, 1)},
    }
    return {"data": data, "cache": tmp_path / "cache", "out": tmp_path / "run", "device": "cpu", "precision": "fp32"}
