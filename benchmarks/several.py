"""Several candidates in one forward pass, and a compiled forward pass, against one candidate at a time.

    OMP_NUM_THREADS=1 python benchmarks/several.py [--device cuda] [--candidates 1,2,4,8] [--no-compile] ...

``one at a time`` fuses and runs each candidate by itself, as the search does. ``together`` fuses k of them one after
another and runs them by ``torch.func.vmap`` over their stacked weights. ``compiled`` is one at a time
again with ``torch.compile`` on the image tower, its compilation told apart. Random weights and images; times per
candidate, medians of repeats that take turns, and the ratio to one at a time. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_pool import Sizes, add_size_options, make_pool, random_mix, sizes_from
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from trial import open_trial

from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION
from mixopt.weights.builder import FastBuilder

HEAD = 10


class Tower(nn.Module):
    """Images to logits through the image tower and a fixed head.

    Args:
        visual: The tower.
        width: Of its output.
        device: Where it is.
    """

    def __init__(self, visual: nn.Module, width: int, device: torch.device) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("head", torch.randn(width, HEAD, device=device))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[b, 10]``."""
        return torch.as_tensor(self.visual(images) @ self.head)


@contextmanager
def batchable_attention(device: torch.device) -> Iterator[None]:
    """Only attention that vmap has a batching rule for: not the one call for a layer, and on a CPU nothing fused."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def measure(
    builder: FastBuilder,
    batches: Sequence[Tensor],
    mixes: Sequence[Mix],
    counts: Sequence[int],
    repeats: int,
    compiled: bool,
) -> dict[str, Any]:
    """Seconds per candidate: ``one``, ``together`` by number of candidates, and ``compiled``."""
    model: Any = builder.module
    device = batches[0].device
    tower = Tower(model.visual, model.visual.output_dim, device).eval()

    def one(mixes: Sequence[Mix], forward: Callable[[Tensor], Tensor]) -> None:
        for mix in mixes:
            builder.apply(mix)
            for images in batches:
                forward(images)

    def together(mixes: Sequence[Mix]) -> None:
        fused = []
        for mix in mixes:
            builder.apply(mix)
            fused.append({name: parameter.clone() for name, parameter in tower.named_parameters()})
        stacked = {name: torch.stack([weights[name] for weights in fused]) for name in fused[0]}

        def run(weights: dict[str, Tensor], images: Tensor) -> Tensor:
            return torch.as_tensor(functional_call(tower, weights, (images,)))

        with batchable_attention(device):
            for images in batches:
                vmap(run, in_dims=(0, None))(stacked, images)

    ways: dict[str, tuple[int, Callable[[], None]]] = {"one": (1, lambda: one(mixes[:1], tower))}
    for count in counts:
        ways[f"together {count}"] = (count, lambda count=count: together(mixes[:count]))  # type: ignore[misc]
    compiling = None
    if compiled:
        fast: Any = torch.compile(tower, dynamic=False)
        started = time.perf_counter()
        with torch.inference_mode():
            one(mixes[:1], fast)
        compiling = time.perf_counter() - started
        ways["compiled"] = (1, lambda: one(mixes[:1], fast))
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first warms up
            for name, (count, work) in ways.items():
                started = time.perf_counter()
                work()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times[name].append((time.perf_counter() - started) / count)
    seconds = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    return {"seconds": seconds, "compiling": compiling}


def open_and_measure(
    folder: Path, cache: Path, device: str, candidates: str, repeats: int, compiled: bool = False
) -> dict[str, Any]:
    """Open a random pool and `measure` it, by numbers of candidates with commas; also ``images`` and ``batch``."""
    counts = [int(count) for count in candidates.split(",")]
    _, assembly = open_trial(folder, cache, device, precision="fp32")
    objective = assembly.objective
    evaluator: Any = objective.evaluators[VALIDATION]
    # Whole batches only, so that nothing is compiled twice.
    whole = len(evaluator.split) // evaluator.batch_size * evaluator.batch_size
    batches = [images for images, _ in evaluator.batches(0, whole or None)]
    random = np.random.default_rng(0)
    groups = make_groups("4", objective.pool.sizes)
    mixes = [random_mix(groups, objective.pool.columns, random) for _ in range(max(counts))]
    builder = FastBuilder(objective.pool, assembly.family.build(), assembly.device)
    found = measure(builder, batches, mixes, counts, repeats, compiled)
    return {**found, "images": whole or len(evaluator.split), "batch": evaluator.batch_size}


def main(given: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_size_options(parser, Sizes(images=400))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--candidates", default="1,2,4,8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled way out")
    options = parser.parse_args(given)
    sizes = sizes_from(options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_pool(Path(temporary) / "pool", sizes)
        found = open_and_measure(
            folder,
            Path(temporary) / "cache",
            options.device,
            options.candidates,
            options.repeats,
            not options.no_compile,
        )
    print(f"{found['images']} images, batches of {found['batch']}, on {options.device}\n")
    print("| way | ms per candidate | of one at a time |\n|---|---|---|")
    alone = found["seconds"]["one"]
    for name, seconds in found["seconds"].items():
        print(f"| {name} | {1000 * seconds:.1f} | {seconds / alone:.2f} |")
    if found["compiling"] is not None:
        print(f"\ncompiling took {found['compiling']:.1f} s")
    print(json.dumps({"benchmark": "several", "device": options.device, "width": sizes.width, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
