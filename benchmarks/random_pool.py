"""A pool of random weights and random images to time things on; no accuracy means anything here.

    python benchmarks/random_pool.py DIR [--ingredients 16] [--images 1000] [--width 128] ...

One open_clip vision transformer is the base, and every ingredient is the base plus small random deltas of its image
tower. The small text tower is the same in all. The images are PNG files in one folder per class. The other benchmarks
make their pools with this, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from mixopt.values.groups import Groups
from mixopt.values.mix import Mix
from mixopt.weights import checkpoints

CONFIG = "open_clip_config.json"
CLASSNAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEMPLATES = ("a photo of a {}.",)
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
DELTA = 0.02
FLOOR = 0.01  # biases begin at 0, and differ all the same


@dataclass(frozen=True)
class Sizes:
    """How large a random pool is.

    Attributes:
        ingredients: Checkpoints beside the base.
        images: Images of the validation split.
        image_size: Height and width of an image in pixels.
        patch_size: Of the image tower.
        width: Of the image tower.
        layers: Of the image tower.
        head_width: Of the image tower.
        dtype: Of the checkpoints: fp32, fp16 or bf16.
    """

    ingredients: int = 16
    images: int = 1000
    image_size: int = 32
    patch_size: int = 8
    width: int = 128
    layers: int = 6
    head_width: int = 32
    dtype: str = "fp32"

    @property
    def config(self) -> dict[str, Any]:
        """The open_clip config of the model."""
        vision = {
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "width": self.width,
            "layers": self.layers,
            "head_width": self.head_width,
        }
        text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}
        model = {"embed_dim": max(32, 2 * self.width // 3), "vision_cfg": vision, "text_cfg": text}
        return {"model_cfg": model, "preprocess_cfg": {"mean": MEAN, "std": STD}}


# The image tower and data of the published run: a checkpoint of about 350 MB.
VIT_B_32 = Sizes(
    ingredients=72, images=26_000, image_size=224, patch_size=32, width=768, layers=12, head_width=64, dtype="fp32"
)
TINY = Sizes(ingredients=3, images=40, image_size=16, patch_size=8, width=32, layers=2, head_width=16)


def add_size_options(parser: argparse.ArgumentParser, default: Sizes) -> None:
    """An option per field of `Sizes`."""
    for each in fields(Sizes):
        value = getattr(default, each.name)
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=type(value), default=value)


def sizes_from(arguments: argparse.Namespace) -> Sizes:
    """The sizes that the options of `add_size_options` give."""
    return Sizes(**{each.name: getattr(arguments, each.name) for each in fields(Sizes)})


def make_pool(folder: Path, sizes: Sizes, seed: int = 0) -> Path:
    """Write checkpoints, images and pool.toml.

    Args:
        folder: Made where it does not exist.
        sizes: How large.
        seed: Of weights and images.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(sizes.config))
    torch.manual_seed(seed)
    saved = checkpoints.dtype_of(sizes.dtype)
    base = make_model(folder).state_dict()
    _save(base, folder / "base.safetensors", saved)
    for number in range(sizes.ingredients):
        state = {
            name: tensor + DELTA * max(float(tensor.abs().mean()), FLOOR) * torch.randn_like(tensor)
            if name.startswith("visual.")
            else tensor
            for name, tensor in base.items()
        }
        _save(state, folder / f"model_{number:02}.safetensors", saved)
    _write_images(folder / "images", sizes, seed)
    (folder / "pool.toml").write_text(
        f'family = "open_clip"\nmodel = "{CONFIG}"\nbase = "base.safetensors"\n'
        f"classnames = {json.dumps(CLASSNAMES)}\ntemplates = {json.dumps(TEMPLATES)}\n"
        '[data]\nsearch = "images"\n'
    )
    return folder


def make_model(folder: Path) -> Any:
    """A new open_clip model of the pool's config, randomly initialised."""
    return open_clip.CLIP(**json.loads((folder / CONFIG).read_text())["model_cfg"])


def make_transform(folder: Path) -> Callable[[Any], torch.Tensor]:
    """open_clip's own evaluation transform for that model."""
    config = json.loads((folder / CONFIG).read_text())
    size = config["model_cfg"]["vision_cfg"]["image_size"]
    transform: Callable[[Any], torch.Tensor] = image_transform_v2(
        PreprocessCfg(size=size, **config["preprocess_cfg"]), is_train=False
    )
    return transform


def random_mix(groups: Groups, columns: Sequence[str], random: np.random.Generator) -> Mix:
    """Rows drawn evenly from the simplex."""
    return Mix(groups, tuple(columns), random.dirichlet(np.ones(len(columns)), size=len(groups)))


def _save(state: dict[str, torch.Tensor], path: Path, dtype: torch.dtype) -> None:
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file({name: tensor.contiguous() for name, tensor in cast.items()}, path)


def _write_images(folder: Path, sizes: Sizes, seed: int) -> None:
    for name in CLASSNAMES:
        (folder / name).mkdir(parents=True, exist_ok=True)

    def write(number: int) -> None:
        shape = (sizes.image_size, sizes.image_size, 3)
        pixels = np.random.default_rng([seed, number]).integers(0, 256, shape, dtype=np.uint8)
        path = folder / CLASSNAMES[number % len(CLASSNAMES)] / f"{number:06}.png"
        Image.fromarray(pixels).save(path, compress_level=1)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(write, range(sizes.images)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a pool to keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    add_size_options(parser, Sizes())
    options = parser.parse_args(arguments)
    print(make_pool(options.folder, sizes_from(options)))


if __name__ == "__main__":
    main()
