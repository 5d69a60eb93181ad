"""How the demo's base is trained, and the random sweep of its fine-tunings (Wortsman et al., 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INGREDIENTS = 12


@dataclass(frozen=True)
class Hyperparameters:
    """How one training went; augmentations are the largest strength that a sample may get."""

    seed: int
    epochs: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float = 0.0
    mixup: float = 0.0  # both parameters of the Beta law of the mixing share; 0 is off
    rotation: float = 0.0  # degrees
    translation: float = 0.0  # pixels
    noise: float = 0.0  # standard deviation, where the range of a pixel is 1
    erase: float = 0.0  # probability that a square of a quarter of the width turns grey
    contrast: float = 0.0  # the gain is drawn from [1 - contrast, 1]; below 0 the image is inverted


BASE = Hyperparameters(0, 90, 6e-4, 0.1, rotation=15, translation=1, noise=0.1, contrast=1.8)


def draw_hyperparameters(rng: np.random.Generator) -> Hyperparameters:
    """One random fine-tuning, with about half of the regularizers and augmentations switched off."""

    def sometimes(strength: float) -> float:
        return round(strength, 3) if rng.random() < 0.5 else 0.0

    return Hyperparameters(
        seed=int(rng.integers(2**31)),
        epochs=int(rng.integers(16, 29)),
        learning_rate=round(float(10 ** rng.uniform(-3.4, -2.7)), 6),
        weight_decay=round(float(10 ** rng.uniform(-3, -0.3)), 6),
        label_smoothing=sometimes(rng.uniform(0, 0.25)),
        mixup=sometimes(rng.uniform(0.1, 0.5)),
        rotation=sometimes(rng.uniform(5, 25)),
        translation=sometimes(rng.uniform(0.5, 2)),
        noise=sometimes(rng.uniform(0.05, 0.3)),
        erase=sometimes(rng.uniform(0.2, 0.8)),
        contrast=sometimes(rng.uniform(0.2, 0.8)),
    )
