"""What a trial costs against ingredients, parameters, images and layer groups, each over a decade.

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--trials 30] [--picture benchmarks/growth.svg]

Every point opens a new random pool and runs a CMA-ES search on it (`search.run_trials`), nothing in the cache, two
dimensions per layer group. Times are means per trial, after the start; ``other`` holds the outcome cache and whatever
has no name. Memory is the peak of the process beyond what it held before opening, once while opening and once while
searching. The slope is that of a line through the logarithms: 1 is linear. What grows with more than 1.1 is named.
Prints tables and one JSON line, and draws the picture.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import chart
import numpy as np
import torch
from random_pool import TINY, Sizes, make_pool
from trial import open_trial

from mixopt import study as search
from mixopt.spaces.simplex import Simplex
from mixopt.values.groups import make_groups
from mixopt.values.mix import constant
from mixopt.weights.memory import peak_memory

STEPS = (1, 2, 5, 10)
STEEP = 1.1
TIMES = ("fuse", "forward", "optimizer", "storage", "other", "trial")
MEMORY = ("open_mb", "search_mb")
LABELS = {"open_mb": "peak, opening", "search_mb": "peak, searching"}
SMALL = Sizes(ingredients=8, images=100, width=128, layers=2)
SMALL_GROUPS = 4
AXES = ("ingredients", "parameters", "images", "groups")

Point = dict[str, float]


def point(axis: str, step: int, base: Sizes, groups: int) -> tuple[Sizes, int]:
    """Sizes and layer groups of one point: one axis made ``step`` times as long."""
    if axis == "ingredients":
        return replace(base, ingredients=base.ingredients * step), groups
    if axis == "parameters":
        return replace(base, layers=base.layers * step), groups
    if axis == "images":
        return replace(base, images=base.images * step), groups
    return replace(base, layers=4), groups * step


def measure(sizes: Sizes, groups: int, trials: int) -> Point:
    """One point: milliseconds per trial by kind of work, peak memory in MB, and the length of every axis."""
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_pool(Path(temporary) / "pool", sizes)
        with peak_memory(cpu) as peak:
            before = peak() or 0
            _, assembly = open_trial(folder, Path(temporary) / "cache", "cpu")
            opening = (peak() or 0) - before
        objective = assembly.objective
        pool, watch = objective.pool, objective.stopwatch
        start = constant(
            make_groups(groups, pool.sizes), pool.columns, np.full(len(pool.columns), 1 / len(pool.columns))
        )
        space = Simplex(start, pool.ingredients[:2], 0.5)
        storage = search.open_storage(Path(temporary) / "study.journal", None, watch)
        study = search.open_study(storage, "growth", objective.metric.direction)
        # The start first: the first trial warms up.
        search.run_trials(study, objective, space, search.Schedule("cmaes", 1, seed=0))
        seconds = dict(watch.seconds)
        with peak_memory(cpu) as peak:
            started = time.perf_counter()
            search.run_trials(study, objective, space, search.Schedule("cmaes", trials + 1, seed=0))
            wall = time.perf_counter() - started
            searching = (peak() or 0) - before
        spent = {name: watch.seconds.get(name, 0.0) - seconds.get(name, 0.0) for name in watch.seconds}
        shown = {name: 1e3 * spent.get(name, 0.0) / trials for name in TIMES[:-2]}
        return {
            "ingredients": sizes.ingredients,
            "parameters": pool.stack.shape[1],
            "images": sizes.images,
            "groups": groups,
            **shown,
            "other": 1e3 * wall / trials - sum(shown.values()),
            "trial": 1e3 * wall / trials,
            "open_mb": opening / 1e6,
            "search_mb": searching / 1e6,
        }


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line through the logarithms; NaN where a value is not above 0."""
    if min(*x, *y) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def report(axis: str, points: list[Point]) -> dict[str, float]:
    """Print the table of an axis; the slopes by name."""
    print(f"| {axis} | " + " | ".join(f"{name} ms" for name in TIMES) + " | opening MB | searching MB |")
    print("|---" * (len(TIMES) + 3) + "|")
    for each in points:
        times = " | ".join(f"{each[name]:.2f}" for name in TIMES)
        print(f"| {each[axis]:,} | {times} | " + " | ".join(f"{each[name]:.0f}" for name in MEMORY) + " |")
    x = [each[axis] for each in points]
    slopes = {name: slope(x, [each[name] for each in points]) for name in (*TIMES, *MEMORY)}
    print("| slope | " + " | ".join(f"{slopes[name]:.2f}" for name in (*TIMES, *MEMORY)) + " |\n", flush=True)
    return slopes


def draw(found: dict[str, list[Point]], trials: int) -> str:
    """The picture of all axes."""
    rows = []
    for names, unit in ((TIMES, "ms per trial"), (MEMORY, "peak memory, MB")):
        row: list[chart.Panel] = []
        for axis, points in found.items():
            lines = {LABELS.get(name, name): [each[name] for each in points] for name in names}
            title = f"against {axis}" if names is TIMES else ""
            row.append(chart.Panel(title, axis, "" if row else unit, [each[axis] for each in points], lines))
        rows.append(row)
    return chart.draw(rows, f"Both axes logarithmic. CPU, {torch.get_num_threads()} thread, {trials} trials per point.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--axes", default=",".join(AXES))
    parser.add_argument("--tiny", action="store_true", help="sizes that prove only that the program runs")
    options = parser.parse_args(arguments)
    base, steps = (TINY, STEPS[:2]) if options.tiny else (SMALL, STEPS)
    groups = 2 if options.tiny else SMALL_GROUPS
    measure(TINY, 2, 2)  # what libraries set up at their first use counts for no point
    found: dict[str, list[Point]] = {}
    slopes: dict[str, dict[str, float]] = {}
    for axis in options.axes.split(","):
        found[axis] = [measure(*point(axis, step, base, groups), options.trials) for step in steps]
        slopes[axis] = report(axis, found[axis])
    steep = [
        f"{LABELS.get(name, name)} against {axis} ({value:.2f})"
        for axis, by_name in slopes.items()
        for name, value in by_name.items()
        if value > STEEP
    ]
    print("Grows worse than linearly (slope above 1.1): " + (", ".join(steep) or "nothing") + ".")
    if options.picture:
        options.picture.write_text(draw(found, options.trials))
    threads = torch.get_num_threads()
    print(json.dumps({"benchmark": "growth", "threads": threads, "points": found, "slopes": slopes, "steep": steep}))


if __name__ == "__main__":
    main()
