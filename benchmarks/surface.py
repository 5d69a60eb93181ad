"""What a response surface takes beside the mixes that are scored for it: to fit, to predict, and in memory.

    OMP_NUM_THREADS=1 python benchmarks/surface.py [--splits 5000x10,26000x1000] [--mixes 200] [--models DIR]

Simulated logits, a quadratic function of the coefficients, of points of ``affine`` over 16 checkpoints and 8 layer
groups (120 dimensions). ``fit``: from nothing, as when a run is resumed. For every batch of 8 trials a search does two
things: it extends the surface by those before (``extend``), and climbs it for the next ones (``propose``); and once for
a quarter more trials it asks what the surface promises still (``promise``). ``predict``: ``--predictions`` mixes and
their accuracy; ``slopes``: 40 of the loss. ``naive``: the same predictions from all in float64, in NumPy, mix by mix,
where that fits in 4 GB. ``peak`` is of the whole process, of which each row has its own. With ``--models``, one forward
pass of a pool's uniform soup stands beside them, and the sampler's share of it per trial. Prints a table and one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mixopt.spaces.linear import Affine
from mixopt.study.climbing import Region
from mixopt.study.crossfit import expected_gain
from mixopt.study.folds import make_folds
from mixopt.study.landscape import Landscape, Steering
from mixopt.study.samplers import SURFACE_POPULATION
from mixopt.study.schedule import SPARED
from mixopt.study.surface_sampler import propose
from mixopt.surface.fitting import Surface, fit
from mixopt.surface.slopes import loss_and_slopes
from mixopt.values.groups import make_groups
from mixopt.values.kept_logits import KeptLogits, kept_of
from mixopt.values.metrics import METRICS, smoothed
from mixopt.values.mix import constant
from mixopt.values.samples import VALIDATION

Floats = NDArray[np.float64]

INGREDIENTS, GROUPS, RADIUS = 16, 8, 0.1
BATCH, SLOPES = SURFACE_POPULATION, 40
HALF = 0.3
# Classes of a sample that ever matter, and how much of the probability the others have together.
MATTER, OTHERS = 24, 0.02
TERMS = 8
NAIVE = 4_000_000_000


class Simulated:
    """A model of many classes whose logits are a quadratic function of the coefficients.

    Args:
        samples: Of the split.
        classes: Of the model.
    """

    def __init__(self, samples: int, classes: int) -> None:
        random = np.random.default_rng(0)
        few = kept_of(classes)
        self.class_count, self.is_whole = classes, few == classes
        size = classes if self.is_whole else MATTER
        offsets = np.arange(0, classes - classes % size, classes // size)[:size]
        shift = random.integers(0, classes // size, (samples, 1)) if not self.is_whole else 0
        self.classes = offsets[None] + shift + np.zeros((samples, 1), dtype=np.int64)
        self.base = 2 * random.normal(size=(samples, size)).astype(np.float32)
        self.factors = 2 * random.normal(size=(2 * TERMS, samples, size)).astype(np.float32)
        self.directions = random.normal(size=(TERMS, GROUPS * INGREDIENTS))
        own = self.base.argmax(axis=1)
        self.labels = np.take_along_axis(self.classes, own[:, None], axis=1)[:, 0]
        self.own = own
        self.seconds = 0.0

    def kept(self, coefficients: Floats) -> Iterator[KeptLogits]:
        """What is kept of mixes ``[m, groups, columns]``, one after another; the time that it takes is counted."""
        for rows in coefficients:
            started = time.perf_counter()
            found = self._kept(rows)
            self.seconds += time.perf_counter() - started
            yield found

    def _kept(self, rows: Floats) -> KeptLogits:
        along = self.directions @ (rows - 1 / INGREDIENTS).ravel()
        logits = self.base + np.tensordot(np.r_[along, along**2].astype(np.float32), self.factors, axes=1)
        chances = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        if self.is_whole:
            return KeptLogits(_rounded(chances), None, None, self.class_count)
        chances += np.float32(np.log1p(-OTHERS))
        chances[np.arange(len(chances)), self.own] += 100  # the right class is always kept
        places = np.sort(np.argpartition(-chances, kept_of(self.class_count), axis=1)[:, : kept_of(self.class_count)])
        chances[np.arange(len(chances)), self.own] -= 100
        values = np.take_along_axis(chances, places, axis=1)
        rest = np.log(np.maximum(1e-6, 1 - np.exp(values).sum(axis=1)))
        classes = np.take_along_axis(self.classes, places, axis=1)
        return KeptLogits(_rounded(values), classes, _rounded(rest), self.class_count)


def make_space() -> Affine:
    """Around the uniform soup."""
    names = tuple(f"model_{number}" for number in range(INGREDIENTS))
    groups = make_groups("block", {f"blocks.{number}.weight": 1 for number in range(GROUPS)})
    return Affine(constant(groups, names, np.full(INGREDIENTS, 1 / INGREDIENTS)), names, RADIUS)


def points(count: int, seed: int) -> Floats:
    """Coefficients ``[count, groups, columns]`` of points of the box, the start first."""
    space = make_space()
    return np.stack([space.to_mix(point).coefficients for point in drawn(count, seed)])


def drawn(count: int, seed: int) -> Floats:
    """Points ``[count, dims]`` of the box, the start first."""
    found = np.random.default_rng(seed).uniform(-1, 1, (count, make_space().dims))
    found[0] = 0
    return found


def measure(samples: int, classes: int, mixes: int, predictions: int) -> dict[str, Any]:
    """One row of the table."""
    peak_before = peak()
    simulated = Simulated(samples, classes)
    own = simulated.base.nbytes + simulated.factors.nbytes
    coefficients = points(mixes, 0)
    row: dict[str, Any] = {"split": f"{samples}x{classes}", "mixes": mixes, "predictions": predictions}
    surface, row["fit"] = timed(simulated, coefficients, None)
    row["megabytes"] = sum(block.nbytes for block in surface.scored.blocks) / 1e6
    # Another surface of all but a batch, and then the batch.
    del surface
    before, _ = timed(simulated, coefficients[:-BATCH], None)
    surface, row["extend"] = timed(simulated, coefficients, before)
    del before
    others, metric = points(predictions, 1), METRICS["accuracy"]
    started = time.perf_counter()
    for each in surface.outcomes(others, needs=metric.needs):
        metric.of(simulated.labels, each)
    row["predict"] = time.perf_counter() - started
    shares, started = np.full(samples, 1 / samples), time.perf_counter()
    for rows in others[:SLOPES]:
        loss_and_slopes(surface, rows, shares)
    row["slopes"] = time.perf_counter() - started
    signal, space = smoothed(METRICS["accuracy"]), make_space()
    landscape = Landscape(space, {VALIDATION: Steering(surface, simulated.labels, 1.0)}, signal)
    scored = drawn(mixes, 0)
    started = time.perf_counter()
    expected_gain(landscape, scored, HALF, make_folds(landscape.labels))
    row["promise"] = time.perf_counter() - started
    started = time.perf_counter()
    propose(landscape, Region(np.zeros(space.dims), HALF), BATCH, 0)
    row["propose"] = time.perf_counter() - started
    row["batch"] = row["extend"] + row["propose"] + row["promise"] / (mixes * (SPARED - 1) / BATCH)
    row["peak"], row["before"], row["simulated"] = peak(), peak_before, own / 1e6
    row["naive"] = naive(surface, others) if mixes * samples * classes * 8 < NAIVE else None
    return row


def timed(simulated: Simulated, coefficients: Floats, before: Surface | None) -> tuple[Surface, float]:
    """A surface, and the seconds that it took, without those that logits took to simulate."""
    known = 0 if before is None else len(before)
    spent, started = simulated.seconds, time.perf_counter()
    surface = fit(coefficients, simulated.kept(coefficients[known:]), simulated.labels, before=before)
    return surface, time.perf_counter() - started - (simulated.seconds - spent)


def naive(surface: Surface, others: Floats) -> float:
    """Seconds to predict mixes from logits of all in float64, one matrix of all that is predicted."""
    logits = surface.scored.changes(0, surface.reference.numel()).double().numpy()
    inverse, moves = surface.parts[0].inverse, surface.moves(surface.coefficients)
    started = time.perf_counter()
    weights = surface.kernel(surface.moves(others), moves) @ inverse
    for row in weights:
        found = (row @ logits).reshape(surface.reference.shape) + surface.reference.numpy()
        np.mean(found.argmax(axis=1) == surface.columns.own)
    return time.perf_counter() - started


def peak() -> float:
    """Of this process so far, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what the kernel says elsewhere starts with the parent's
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def forward(models: str) -> dict[str, Any]:
    """One forward pass of a pool's uniform soup over its validation split."""
    from mixopt import load_spec
    from mixopt.assemble import assemble
    from mixopt.listener import Listener

    options = {"models": models, "precision": "fp32", "batchnorm": "average"}
    objective = assemble(load_spec(options), Listener()).objective
    names = [name for name in objective.pool.columns if name != objective.pool.base]
    row = [1 / len(names) if name in names else 0.0 for name in objective.pool.columns]
    objective.scorer.engine.fuse(constant(make_groups("whole", objective.pool.sizes), objective.pool.columns, row))
    evaluator: Any = objective.evaluators[VALIDATION]
    started = time.perf_counter()
    evaluator.run(objective.scorer.engine.predict())
    return {"samples": len(evaluator.split), "seconds": time.perf_counter() - started}


def _rounded(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(np.minimum(values, 0).astype(np.float16), dtype=np.float32)


def _alone(*arguments: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    return measure(*arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", default="5000x10,26000x1000")
    parser.add_argument("--mixes", type=int, default=200)
    parser.add_argument("--predictions", type=int, default=2000)
    parser.add_argument("--models")
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    print("| split | fit s | extend s | promise s | propose s | predict s | slopes s | naive s | MB | peak MB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for split in given.splits.split(","):
        samples, classes = (int(number) for number in split.split("x"))
        # A process of its own: what it took at most is known of a whole process alone.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            row = alone.submit(_alone, samples, classes, given.mixes, given.predictions).result()
        rows.append(row)
        naive_seconds = "does not fit" if row["naive"] is None else f"{row['naive']:.2f}"
        print(
            f"| {split} | {row['fit']:.2f} | {row['extend']:.2f} | {row['promise']:.2f} | {row['propose']:.2f} "
            f"| {row['predict']:.2f} | {row['slopes']:.2f} | {naive_seconds} | {row['megabytes']:.0f} "
            f"| {row['peak']:.0f} |",
            flush=True,
        )
    passed = forward(given.models) if given.models else None
    if passed:
        seconds = f"{passed['seconds']:.2f} s for {passed['samples']} samples"
        print(f"\nOne forward pass: {seconds}. The sampler's share of a trial:")
        for row in rows:
            per_trial = passed["seconds"] * int(row["split"].split("x")[0]) / passed["samples"]
            row["share"] = row["batch"] / BATCH / per_trial
            print(f"{row['split']}: {row['share']:.1%}")
    print(json.dumps({"benchmark": "surface", "threads": torch.get_num_threads(), "forward": passed, "rows": rows}))


if __name__ == "__main__":
    main()
