"""BatchNorm networks for tests, named by import path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixopt.scoring.evaluator import Predict


class NormAndDrop(nn.BatchNorm2d):
    """A layer with another inside it, as timm's."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.inside = nn.Dropout(0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise, then drop."""
        dropped: Tensor = self.inside(super().forward(hidden))
        return dropped


class Net(nn.Module):
    """Convolutions with BatchNorm between them, the first of which is meant to be frozen; dropout; a linear head."""

    def __init__(self, kind: str, classes: int) -> None:
        super().__init__()
        norm = {"sync": nn.SyncBatchNorm, "inside": NormAndDrop}.get(kind, nn.BatchNorm2d)
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        self.frozen = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 6, 3)
        self.bn1 = norm(6)
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.bn2 = norm(8)
        if kind == "unused":
            self.never = nn.BatchNorm1d(5)
        if kind == "shared":
            self.alias = self.bn2
        self.head = nn.Linear(8, classes)

    def features(self, images: Tensor) -> Tensor:
        """What the head sees, ``[b, 8]``."""
        hidden = torch.relu(self.frozen(self.stem(images)))
        hidden = self.drop(torch.relu(self.bn1(self.conv1(hidden))))
        return torch.relu(self.bn2(self.conv2(hidden))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[b, 3, h, w]`` to logits ``[b, classes]``."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _itself(module: nn.Module) -> Predict:
    return module


def _in_eval_mode(module: nn.Module) -> Predict:
    def predict(images: Tensor) -> Tensor:
        logits: Tensor = module.eval()(images)
        return logits

    return predict


def net(model: str | None, classnames: tuple[str, ...] | None) -> tuple[nn.Module, Any]:
    """The network; ``model`` chooses a variant of it."""
    return Net(model or "plain", len(classnames or "1234")), _itself


def always_eval(model: str | None, classnames: tuple[str, ...] | None) -> tuple[nn.Module, Any]:
    """The same, with a predictor that undoes training mode."""
    return Net(model or "plain", len(classnames or "1234")), _in_eval_mode
