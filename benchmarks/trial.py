"""A whole trial against the naive way, on the same machine, checkpoints and images, in one run.

    OMP_NUM_THREADS=1 python benchmarks/trial.py [--ingredients 16] [--images 1000] [--repeats 5] ...

``naive`` is the way of the published codes: load every checkpoint from disk, sum the state dicts in a Python loop,
``load_state_dict``, then a ``DataLoader`` over the image files with open_clip's own transform, in fp32. It is spared
the text tower, whose zero-shot head it keeps from trial to trial. ``mixopt`` is `Objective.score` of a new mix, nothing
of it in the cache, in ``--precision``. ``forward`` is the model alone in fp32 over batches that are ready in memory,
the floor. All three in turn, medians; every file is in the system's page cache. Weights and images are random. Prints
tables and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from random_pool import (
    CLASSNAMES,
    TEMPLATES,
    Sizes,
    add_size_options,
    make_model,
    make_pool,
    make_transform,
    random_mix,
    sizes_from,
)
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixopt import load_spec
from mixopt.assemble import Assembly, assemble
from mixopt.listener import Listener
from mixopt.spec import StudySpec
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix

Timed = dict[str, list[float]]


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """The image files of a folder of class folders, through a model's own transform."""

    def __init__(self, folder: Path, transform: Callable[[Any], Tensor]) -> None:
        self.files = [
            (path, number) for number, name in enumerate(CLASSNAMES) for path in sorted((folder / name).glob("*.png"))
        ]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        with Image.open(path) as image:
            return self.transform(image), label


class Naive:
    """The way of the published codes.

    Args:
        folder: A random pool.
        paths: Column name to checkpoint.
        device: Where the model runs.
        workers: Of the ``DataLoader``.
        batch_size: Images per forward pass.
    """

    def __init__(
        self, folder: Path, paths: dict[str, Path], device: torch.device, workers: int = 0, batch_size: int = 100
    ) -> None:
        self.paths = paths
        self.device = device
        self.model = make_model(folder).eval().to(device)
        self.model.load_state_dict(load_file(next(iter(paths.values()))))
        files = ImageFiles(folder / "images", make_transform(folder))
        self.loader = DataLoader(files, batch_size=batch_size, num_workers=workers, pin_memory=device.type == "cuda")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        self.head = open_clip.build_zero_shot_classifier(self.model, tokenizer, CLASSNAMES, TEMPLATES, device=device)

    def score(self, mix: Mix) -> float:
        """Accuracy of a mix."""
        self.fuse(mix)
        right = 0
        with torch.inference_mode():
            for images, labels in self.loader:
                predicted = self.logits(images.to(self.device)).argmax(dim=1).cpu()
                right += int((predicted == labels).sum())
        return right / len(self.loader.dataset)  # type: ignore[arg-type]

    def fuse(self, mix: Mix) -> None:
        """Load, sum in a loop over names and checkpoints, and load into the model."""
        group_of = mix.groups.index()
        fused: dict[str, Tensor] = {}
        for column, weights in zip(mix.columns, mix.coefficients.T, strict=True):
            for name, tensor in load_file(self.paths[column]).items():
                # What is the same in all is summed too: a loop does not know.
                term = tensor.float() * float(weights[group_of.get(name, 0)])
                fused[name] = fused[name] + term if name in fused else term
        self.model.load_state_dict(fused)

    def logits(self, images: Tensor) -> Tensor:
        """Zero-shot logits, up to their scale."""
        return torch.as_tensor(self.model.encode_image(images, normalize=True) @ self.head)


def open_trial(folder: Path, cache: Path, device: str, **flags: object) -> tuple[StudySpec, Assembly]:
    """Open a random pool as a search would."""
    # All images steer: a trial then runs as many as the floor and the naive way do.
    spec = load_spec({"models": folder, "cache": cache, "device": device, "confirm": 0.0, **flags})
    return spec, assemble(spec, Listener())


def measure(assembly: Assembly, naive: Naive, repeats: int) -> tuple[Timed, Timed, int]:
    """Seconds of the ways, in turn; where mixopt's went; images on which the two ways may differ at most."""
    objective = assembly.objective
    groups = make_groups("4", objective.pool.sizes)
    random = np.random.default_rng(0)
    evaluator: Any = objective.evaluators["validation"]
    batches = [images for images, _ in evaluator.batches()]
    times: Timed = {"forward": [], "mixopt": [], "naive": []}
    parts: Timed = {"fuse": [], "forward": [], "cache": [], "other": []}
    differ = 0
    for repeat in range(repeats + 1):  # the first warms up
        mix = random_mix(groups, objective.pool.columns, random)
        found: dict[str, float] = {}

        def forward() -> float:
            with torch.inference_mode():
                return float(sum(naive.logits(images).argmax(dim=1).sum().cpu() for images in batches))

        def ours(mix: Mix = mix) -> float:
            return objective.score(mix).metrics["accuracy"]

        def peer(mix: Mix = mix) -> float:
            return naive.score(mix)

        before = dict(objective.stopwatch.seconds)
        for name, work in (("forward", forward), ("mixopt", ours), ("naive", peer)):
            started = time.perf_counter()
            found[name] = work()
            if repeat:
                times[name].append(time.perf_counter() - started)
        differ = max(differ, round(abs(found["mixopt"] - found["naive"]) * len(evaluator.split)))
        if repeat:
            spent = {name: seconds - before.get(name, 0.0) for name, seconds in objective.stopwatch.seconds.items()}
            for name in ("fuse", "forward", "cache"):
                parts[name].append(spent.get(name, 0.0))
            parts["other"].append(times["mixopt"][-1] - sum(spent.values()))
    return times, parts, differ


def paired(times: Timed, one: str, other: str) -> float:
    """The median of the ratios of neighbours in time."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_size_options(parser, Sizes())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", help="of mixopt's forward passes")
    options = parser.parse_args(arguments)
    sizes = sizes_from(options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_pool(Path(temporary) / "pool", sizes)
        _, assembly = open_trial(folder, Path(temporary) / "cache", options.device, precision=options.precision)
        pool = assembly.objective.pool
        naive = Naive(folder, pool.paths, assembly.device, options.workers)
        times, parts, differ = measure(assembly, naive, options.repeats)
    print(f"{len(pool.columns)} checkpoints, {pool.stack.shape[1]:,} mixed parameters, {sizes.images:,} images\n")
    print("| | seconds per trial | images/s | of the forward pass |\n|---|---|---|---|")
    ratios = {name: paired(times, name, "forward") for name in times}
    for name, measured in times.items():
        seconds = statistics.median(measured)
        print(f"| {name} | {seconds:.3f} | {sizes.images / seconds:,.0f} | {ratios[name]:.3f} |")
    faster = paired(times, "naive", "mixopt")
    middle = {name: statistics.median(measured) for name, measured in parts.items()}
    total = sum(middle.values())
    split = ", ".join(f"{name} {1e3 * seconds:.1f} ms ({seconds / total:.1%})" for name, seconds in middle.items())
    print(f"\nmixopt's trial is {faster:.2f}x faster than the naive one (target 3x on a CPU, 30x on a GPU).")
    print(f"Its time over the pure forward time: {ratios['mixopt']:.3f} (target at most 1.05 on a CPU).")
    print(f"Where it goes: {split}.")
    print(f"Accuracies of the two ways differ by at most {differ} images.")
    line = {
        "benchmark": "trial",
        "threads": torch.get_num_threads(),
        "device": str(assembly.device),
        "precision": options.precision,
        "ingredients": sizes.ingredients,
        "parameters": pool.stack.shape[1],
        "images": sizes.images,
        "seconds": {name: statistics.median(measured) for name, measured in times.items()},
        "parts": middle,
        "times_faster": faster,
        "over_forward": ratios["mixopt"],
        "differ": differ,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
