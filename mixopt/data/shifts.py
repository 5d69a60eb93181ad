"""A split under synthetic shifts: its own images, changed without their labels, five ways in turn.

Every image is shifted one way, by its number in the fixed order modulo five, so that every prefix holds all shifts
alike. The severities are of the middle kind in the corruption benchmarks (Hendrycks and Dietterich 2019,
arXiv 1903.12261), and lengths are fractions of the image's shorter side: 32 x 32 and 224 x 224 are shifted alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mixopt.data.decode import CHUNK
from mixopt.data.encoded_store import decoded_folder, load_decoded, write_decoded
from mixopt.errors import DataError, RunError
from mixopt.listener import Listener
from mixopt.values.samples import IMAGES, Samples

SEED = 0
# In the order in which they take turns; all that the shifted images follow from, beside the images themselves.
SHIFTS: dict[str, dict[str, float]] = {
    "blur": {"sigma_of_side": 1 / 48},
    "noise": {"deviation": 0.1},
    "contrast": {"factor": 0.4},
    "edges": {"sigma_of_side": 1 / 48, "gain": 4.0},
    "resolution": {"scale": 0.5},
}


def describe_shifts() -> dict[str, Any]:
    """What was done to the images, as plain JSON values."""
    return {"assignment": "number in the fixed order modulo 5", "seed": SEED, "shifts": SHIFTS}


def open_shifted(split: Samples, name: str, cache: Path, listener: Listener | None = None) -> Samples:
    """The same samples in the same order with shifted images, from the decoded cache where they are there already.

    Args:
        split: Whose images.
        name: What the shifted split is called.
        cache: The cache directory.
        listener: Told about progress, and a damaged copy.

    Raises:
        DataError: The samples are not images.
        RunError: The shifted copy cannot be read back.
    """
    if split.unit != "image":
        raise DataError(
            f"{split.source}: its samples are not images ({', '.join(split.arrays)}), and --shifts synthetic changes "
            "images alone; leave it out, or give a split that is shifted itself: --select NAME=FILE:WEIGHT"
        )
    folder = decoded_folder(cache, f"{json.dumps(describe_shifts())}|{split.fingerprint}")
    heard = listener or Listener()
    decoded = load_decoded(folder, heard)
    if decoded is None:
        write_decoded(folder, _shifted(split, heard), split.labels, split.classes, cache=cache)
        decoded = load_decoded(folder, heard)
    if decoded is None:
        raise RunError(f"{folder}: the shifted copy of {split.source} cannot be read back; choose another --cache")
    return Samples(name, f"{split.source} (shifted)", decoded.arrays, split.labels, decoded.digests, split.classes)


def _shifted(split: Samples, listener: Listener) -> Iterator[dict[str, NDArray[np.uint8]]]:
    for start in range(0, len(split), CHUNK):
        numbers = np.arange(start, min(start + CHUNK, len(split)))
        images = np.array(split.arrays[IMAGES][start : start + CHUNK])
        for turn, shift in enumerate(SHIFTS):
            chosen = numbers % len(SHIFTS) == turn
            if chosen.any():
                images[chosen] = shifted(images[chosen], shift, numbers[chosen])
        yield from ({IMAGES: image} for image in images)
        listener.progress("shifting images", int(numbers[-1]) + 1, len(split))


def shifted(images: NDArray[np.uint8], shift: str, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images under one shift.

    Args:
        images: ``[n, h, w, 3]``.
        shift: A name of `SHIFTS`.
        numbers: ``[n]``, the samples' numbers in the fixed order; with `SEED`, they seed the noise.
    """
    severity = SHIFTS[shift]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255
    if shift == "blur":
        made = _blur(pixels, severity["sigma_of_side"])
    elif shift == "noise":
        # Not torchvision's, which draws from torch's global state.
        noise = [np.random.default_rng([SEED, int(number)]).standard_normal(images.shape[1:]) for number in numbers]
        made = pixels + severity["deviation"] * torch.from_numpy(np.stack(noise)).permute(0, 3, 1, 2)
    elif shift == "contrast":
        made = F.adjust_contrast(pixels, severity["factor"])
    elif shift == "edges":
        grey = F.rgb_to_grayscale(pixels, num_output_channels=3)
        made = 1 - severity["gain"] * (grey - _blur(grey, severity["sigma_of_side"])).abs()
    else:
        size = list(pixels.shape[-2:])
        small = [max(1, round(side * severity["scale"])) for side in size]
        made = F.resize(F.resize(pixels, small, antialias=True), size, antialias=True)
    return (made.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _blur(pixels: Tensor, sigma_of_side: float) -> Tensor:
    side = min(pixels.shape[-2:])
    sigma = sigma_of_side * side
    radius = min(math.ceil(3 * sigma), side - 1)  # the images are mirrored at their borders
    blurred: Tensor = F.gaussian_blur(pixels, [2 * radius + 1, 2 * radius + 1], [sigma, sigma])
    return blurred
