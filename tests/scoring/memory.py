"""A split in memory and a model for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mixopt import Preprocess, Samples
from mixopt.families.image_encoding import image_encoding

ENCODING = image_encoding(Preprocess(None, (0.2, 0.4, 0.6), (0.5, 0.25, 0.125), lambda image: image, "test"))


def make_split(count: int = 53, classes: int = 5) -> Samples:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    labels = random.integers(0, classes, count).astype(np.int64)
    return Samples("validation", "memory", {"images": images}, labels, np.zeros((count, 16), dtype=np.uint8))


def make_model(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes))
