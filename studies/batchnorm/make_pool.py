"""Make a pool of BatchNorm networks from scikit-learn's digits: `mixopt demo`'s sweep on noisy images.

    OMP_NUM_THREADS=1 python studies/batchnorm/make_pool.py runs/batchnorm/pool

Every image gets noise of its own, once and for all, so that the best single network is far from perfect. Nothing is
downloaded. One seed gives one pool.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from digits_net import DigitsNet

from mixopt import demo
from mixopt.weights.checkpoints import write

NOISE = 140.0  # standard deviation, of 255
SHIFT_NOISE = 30.0
INGREDIENTS = 12
PART_SIZES = {"base": 300, "tune": 440, "val": 520, "test": 537}  # disjoint, 1,797 images in all


def noisy(images: demo.Pixels, deviation: float, rng: np.random.Generator) -> demo.Pixels:
    """Grey noise on images ``[n, h, w, 3]``."""
    grey = images[..., :1] + rng.normal(0, deviation, (*images.shape[:3], 1))
    return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8), 3, axis=-1)


def splits_of(parts: Mapping[str, demo.Part], rng: np.random.Generator) -> dict[str, demo.Part]:
    """What is scored: the selection split, the test split, and the test images under four shifts, all of them noisy."""
    images, labels = parts["test"]
    shifted = {name: (noisy(x, SHIFT_NOISE, rng), labels) for name, x in demo.shifted(images, rng).items()}
    kept = {name: (noisy(parts[name][0], NOISE, rng), parts[name][1]) for name in ("val", "test")}
    return kept | shifted


def tuned(start: DigitsNet, part: demo.Part, recipe: demo.Hyperparameters) -> DigitsNet:
    """A copy of a network, trained on."""
    model = deepcopy(start)
    for _ in demo.training(model, model, model.classes, part, recipe):
        pass
    return model


def make_pool(
    directory: Path, seed: int, ingredients: int = INGREDIENTS, base: demo.Hyperparameters = demo.BASE
) -> None:
    """Train the pool and write it, ``pool.toml`` last.

    Args:
        directory: Where to; made if absent.
        seed: Of the division of the images, the noise, the base and the sweep.
        ingredients: How many.
        base: How the base is trained; its seed is drawn.
    """
    rng = np.random.default_rng(seed)
    parts = demo.draw_parts(demo.scans(), PART_SIZES, rng)
    splits = splits_of(parts, rng)
    train = {name: (noisy(parts[name][0], NOISE, rng), parts[name][1]) for name in ("base", "tune")}
    recipe = replace(base, seed=int(rng.integers(2**31)))
    sweep = {f"model_{number:02d}": demo.draw_hyperparameters(rng) for number in range(ingredients)}
    directory.mkdir(parents=True, exist_ok=True)
    with demo.one_thread():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            start = tuned(DigitsNet(), train["base"], recipe)
        write(directory / "base.safetensors", start.state_dict(), tied={}, metadata={})
        print("base trained", flush=True)
        for name, each in sweep.items():
            model = tuned(start, train["tune"], each)
            write(directory / f"{name}.safetensors", model.state_dict(), tied={}, metadata={})
            print(f"{name}: {each}", flush=True)
    for name, (x, y) in splits.items():
        np.savez_compressed(directory / f"{name}.npz", x=x, y=y)
    lines = [
        'family = "studies.batchnorm.digits_net:network"  # found from the root of this repository',
        'base = "base.safetensors"',
        'ingredients = ["model_*.safetensors"]',
        "\n[data]",
        'search = "val.npz"',
        "\n[data.test]",
        *(f'{name} = "{name}.npz"' for name in splits if name != "val"),
    ]
    (directory / "pool.toml").write_text("\n".join(lines) + "\n")


def main(given: Sequence[str] | None = None) -> int:
    """Make the pool; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(given)
    if (options.directory / "pool.toml").exists():
        parser.error(f"{options.directory}: holds a pool already; name another folder or remove it")
    make_pool(options.directory, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
