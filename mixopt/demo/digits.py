"""Handwritten digits, their disjoint parts, and the images that shifts and augmentation make of them.

The images are scikit-learn's bundled digits (1,797 grey 8x8 scans; Alpaydin and Kaynak, 1998).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
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
PART_SIZES = {"base": 300, "tune": 440, "val": 520, "test": 537}  # disjoint, 1,797 images in all
IMAGE_SIZE = 16

Pixels = NDArray[np.uint8]  # [n, h, w, 3]
Labels = NDArray[np.int64]  # [n]
Part = tuple[Pixels, Labels]


def draw_parts(rng: np.random.Generator) -> dict[str, Part]:
    """The digits, divided at random into the disjoint parts of `PART_SIZES`.

    Raises:
        MixoptError: scikit-learn is missing.
    """
    images, labels = _load_digits()
    parts = _stratified(labels, PART_SIZES.values(), rng)
    return {name: (images[rows], labels[rows]) for name, rows in zip(PART_SIZES, parts, strict=True)}


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


def _load_digits() -> Part:
    """All digits as RGB `[1797, 16, 16, 3]`, and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MixoptError("the demo needs scikit-learn: pip install 'mixopt[demo]'") from error
    scans, labels = load_digits(return_X_y=True)
    small = torch.as_tensor(scans, dtype=torch.float32).view(-1, 1, 8, 8) * (255 / 16)
    large = functional.interpolate(small, size=IMAGE_SIZE, mode="bicubic", align_corners=False)
    return _to_pixels(large[:, 0].numpy()), np.asarray(labels, dtype=np.int64)


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
