"""Objectives of users' own, named by import path: from a fused module and its device to scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.conftest import make_images

CALLS = [0]


def logits_and_labels(module: nn.Module, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of images that no split of mixopt's holds."""
    drawn = make_images(60, seed=9)
    images = torch.from_numpy(drawn["x"]).permute(0, 3, 1, 2).float().div(255).to(device)
    return module(images), torch.from_numpy(drawn["y"]).to(device)


def number(module: nn.Module, device: torch.device) -> float:
    """The mean log-likelihood: one number."""
    CALLS[0] += 1
    logits, labels = logits_and_labels(module, device)
    return -float(nn.functional.cross_entropy(logits, labels))


def each(module: nn.Module, device: torch.device) -> Tensor:
    """The log-likelihood of each sample: ``[n]``."""
    logits, labels = logits_and_labels(module, device)
    return -nn.functional.cross_entropy(logits, labels, reduction="none")


def several(module: nn.Module, device: torch.device) -> dict[str, float]:
    """Two numbers by name."""
    logits, labels = logits_and_labels(module, device)
    right = float((logits.argmax(dim=1) == labels).float().mean())
    return {"likelihood": number(module, device), "right": right}


def fixed(module: nn.Module, device: torch.device) -> float:
    """One number, whatever is asked of it."""
    return 0.5


def not_a_number(module: nn.Module, device: torch.device) -> float:
    """Never finite."""
    return float("nan")


def a_text(module: nn.Module, device: torch.device) -> str:
    """Wrong: no number."""
    return "good"


def a_matrix(module: nn.Module, device: torch.device) -> Any:
    """Wrong: two axes."""
    return np.zeros((2, 2))


def nothing(module: nn.Module, device: torch.device) -> dict[str, float]:
    """Wrong: no number at all."""
    return {}
