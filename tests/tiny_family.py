"""Families for tests, named by import path: functions that a user could have written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixopt import Preprocess
from mixopt.scoring.evaluator import Predict

SIZE = 4
NOT_A_FUNCTION = 3


class Mlp(nn.Module):
    """Mean colours of a 4x4 grid to logits, through two layers and a buffer that counts."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(SIZE)
        self.layers = nn.Sequential(nn.Linear(3 * SIZE * SIZE, 12), nn.ReLU(), nn.Linear(12, classes))
        self.register_buffer("steps", torch.tensor(5))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[b, 3, h, w]`` to logits ``[b, classes]``."""
        logits: Tensor = self.layers(self.pool(images).flatten(1))
        return logits


def _itself(module: nn.Module) -> Predict:
    return module


def plain(classnames: tuple[str, ...] | None) -> tuple[nn.Module, Any]:
    """A module and its predictor; takes one of the three arguments."""
    return Mlp(len(classnames or ("one", "two", "three", "four"))), _itself


def nothing_asked() -> tuple[nn.Module, Any]:
    """Takes none of the arguments."""
    return Mlp(4), _itself


def with_preprocess(**options: Any) -> tuple[nn.Module, Any, Preprocess]:
    """Takes all the arguments; images become 8x8 and are centred."""
    classes = int(options["model"] or 4)
    return (
        Mlp(classes),
        _itself,
        Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3, lambda image: image.resize((8, 8)), f"8x8 {sorted(options)}"),
    )


def in_a_dict(classnames: tuple[str, ...] | None) -> tuple[nn.Module, Any]:
    """As `plain`, with the logits in a mapping, as other libraries' models give them."""
    module, _ = plain(classnames)
    return module, lambda module: lambda images: {"features": images, "logits": module(images)}


def one_logit(classnames: tuple[str, ...] | None) -> tuple[nn.Module, Any]:
    """Wrong: one number per image."""
    module, _ = plain(classnames)
    return module, lambda module: lambda images: module(images)[:, 0]


def no_numbers(classnames: tuple[str, ...] | None) -> tuple[nn.Module, Any]:
    """Wrong: logits that are not finite, whatever the weights."""
    module, _ = plain(classnames)
    return module, lambda module: lambda images: module(images) * torch.nan


def only_a_module() -> nn.Module:
    """Wrong: no predictor."""
    return Mlp(4)


def no_module() -> tuple[str, Any]:
    """Wrong: the first value is no module."""
    return "module", _itself


def predictor_that_is_none() -> tuple[nn.Module, None]:
    """Wrong: the predictor cannot be called."""
    return Mlp(4), None


def preprocess_that_is_a_tuple() -> tuple[nn.Module, Any, tuple[int, int]]:
    """Wrong: the preprocess is something else."""
    return Mlp(4), _itself, (8, 8)


def four_values() -> tuple[nn.Module, Any, None, None]:
    """Wrong: too many values."""
    return Mlp(4), _itself, None, None
