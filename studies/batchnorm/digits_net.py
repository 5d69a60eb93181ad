"""A small convolutional network with BatchNorm for the digits, and the family function that mixopt loads it with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixopt.values.samples import Preprocess

WIDTHS = (16, 32, 64)
CLASSES = 10
SCALE = 16.0  # of cosine similarities, so that a softmax of them can be sharp
PREPROCESS = Preprocess(None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), lambda image: image, "scaled to -1..1")


class Block(nn.Module):
    """A residual block that halves the image: convolution, BatchNorm, ReLU, twice."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[b, before, h, w]`` to ``[b, after, h / 2, w / 2]``."""
        first = torch.relu(self.bn1(self.conv1(hidden)))
        return torch.relu(first + self.bn2(self.conv2(first)))


class DigitsNet(nn.Module):
    """A stem, two blocks, and a cosine classifier; `mixopt.demo.training` trains it as it trains a CLIP."""

    def __init__(self) -> None:
        super().__init__()
        narrow, middle, wide = WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(3, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU())
        self.blocks = nn.Sequential(Block(narrow, middle), Block(middle, wide))
        self.head = nn.Parameter(torch.randn(wide, CLASSES))

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Images ``[b, 3, h, w]`` to features ``[b, width]``."""
        features = self.blocks(self.stem(images)).mean((2, 3))
        return functional.normalize(features, dim=-1) if normalize else features

    def classes(self) -> Tensor:
        """The class embeddings, scaled, ``[width, classes]``."""
        return functional.normalize(self.head, dim=0) * SCALE

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[b, 3, h, w]`` to logits ``[b, classes]``."""
        return self.encode_image(images, normalize=True) @ self.classes()


def network() -> tuple[nn.Module, Callable[[nn.Module], nn.Module], Preprocess]:
    """The family: ``studies.batchnorm.digits_net:network`` in pool.toml."""
    return DigitsNet(), lambda module: module, PREPROCESS
