"""Every GPU row of the table of targets, in one run: 72 x ViT-B/32 and 26,000 images, or smaller by options.

    python benchmarks/gpu.py                       on a machine with a CUDA GPU; needs about 35 GB of disk, 60 of memory
    python benchmarks/gpu.py --device cpu --tiny   proves that the program runs

Makes a pool of random weights and images in a temporary folder (``--folder`` for the disk it is on). On a machine
without CUDA every row says "not run". A row that fails says why, does not stop the others, and makes the exit code 1.
Every file is read once before it is timed. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import several
import torch
from random_pool import TINY, VIT_B_32, Sizes, add_size_options, make_pool, random_mix, sizes_from
from torch import Tensor, nn
from trial import Naive, open_trial

from mixopt import study as search
from mixopt.assemble import Assembly
from mixopt.assemble.family import family_of
from mixopt.ingredients import ingredient_files
from mixopt.spaces.simplex import Simplex
from mixopt.spec import load_spec
from mixopt.values.groups import Groups, make_groups
from mixopt.values.mix import Mix, constant
from mixopt.weights.builder import FastBuilder
from mixopt.weights.memory import peak_memory
from mixopt.weights.pool import Pool, open_pool
from mixopt.weights.stack import BF16, FP32, open_stack

NOT_RUN = "not run"
BLOCK = 2**24  # bytes of one plain read
ROWS = {
    "opening": ("opening the checkpoints: bytes/s over a plain sequential read", "report, aim at 60 %"),
    "host": ("peak host memory of opening beyond the stack, in checkpoints", "at most 2"),
    "fuse": ("fuse, stack in fp32: its bytes per second over device-to-device copy", "at least 60 %"),
    "fuse_bf16": ("fuse, stack in bf16: its bytes per second over device-to-device copy", "at least 60 %"),
    "memory": ("GPU memory beyond activations, stack in bf16", "at most 15 GB"),
    "evaluate": ("evaluate: images/s over the best compiled forward in bf16 on resident data", "at least 95 %"),
    "evaluate_compiled": ("the same with --compile; the better of both counts", "at least 95 %"),
    "agreement": ("images whose prediction differs from fp32's", "at most 0.2 %"),
    "several": ("several candidates at once, small model: time of each over one at a time", "report where it pays"),
    "naive": ("whole trial against the naive way", "at least 30x faster"),
    "search": ("search: time over evaluations x best compiled forward + opening", "at most 1.15"),
}

Result = dict[str, Any]


class Bench:
    """What the rows share: a pool on disk, and the objective that is opened on it.

    Args:
        folder: A random pool.
        options: The command line's.
        sizes: Of the pool.
    """

    def __init__(self, folder: Path, options: argparse.Namespace, sizes: Sizes) -> None:
        self.folder, self.options, self.sizes = folder, options, sizes
        self.device = torch.device(options.device)
        self.flags: dict[str, Any] = {"precision": options.precision}
        if options.batch_size is not None:
            self.flags["batch_size"] = options.batch_size
        self.best_forward, self.best_mode = float("nan"), ""
        self.eager = 0.0
        self.opened: Assembly | None = None
        self.opening = 0.0

    def open(self, cache: str = "cache", **more: Any) -> Assembly:
        """The objective, opened once; decoding its splits counts as opening where the cache is new."""
        if self.opened is None:
            started = time.perf_counter()
            _, self.opened = open_trial(
                self.folder, self.folder.parent / cache, self.options.device, **{**self.flags, **more}
            )
            self.opening = time.perf_counter() - started
        return self.opened

    @property
    def way(self) -> str:
        """What a row says of forward passes that are compiled."""
        return ", compiled" if self.flags.get("compile") else ""

    def close(self) -> None:
        """Free the objective."""
        self.opened = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Until the device has done all it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int | None = None) -> float:
        """The fastest of several runs, after one to warm up."""
        work()
        self.wait()
        times = []
        for _ in range(repeats or self.options.repeats):
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return min(times)


def read_plainly(paths: Sequence[Path]) -> tuple[int, float]:
    """Bytes of the files and the seconds that reading them one after the other takes."""
    started, total, buffer = time.perf_counter(), 0, bytearray(BLOCK)
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                total += count
    return total, time.perf_counter() - started


def measure_opening(bench: Bench) -> dict[str, Result]:
    """Rows ``opening`` and ``host``."""
    spec = load_spec({"models": bench.folder, "cache": bench.folder.parent / "cache"})
    family = family_of(spec)
    paths, base = ingredient_files(spec)
    files = [*paths.values(), *([base[1]] if base else [])]
    read_plainly(files)
    total, plain = read_plainly(files)
    with peak_memory(torch.device("cpu")) as peak:
        before = peak()
        started = time.perf_counter()
        pool = open_pool(paths, base, order=family.depth)
        seconds = time.perf_counter() - started
        top = peak()
    ratio = plain / seconds
    rows = {
        "opening": _row(f"{total / seconds / 1e9:.2f} GB/s", f"{total / plain / 1e9:.2f} GB/s", ratio, ratio >= 0.6)
    }
    if before is not None and top is not None:
        beyond = (top - before - pool.stack.nbytes) / (total / len(files))
        rows["host"] = _row(f"{(top - before) / 1e9:.2f} GB", f"{pool.stack.nbytes / 1e9:.2f} GB", beyond, beyond <= 2)
    return rows


def measure_fuse(bench: Bench) -> dict[str, Result]:
    """Rows ``fuse``, ``fuse_bf16`` and ``memory``."""
    spec = load_spec({"models": bench.folder, "cache": bench.folder.parent / "cache"})
    family = family_of(spec)
    paths, base = ingredient_files(spec)
    pool = open_pool(paths, base, order=family.depth)
    mix = random_mix(_groups(pool), pool.columns, np.random.default_rng(0))
    source = torch.empty(min(pool.stack.nbytes, 2**30), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    # A copy reads and writes every byte; fusing reads the stack and writes one column.
    copied = 2 * source.nbytes / bench.seconds(partial(target.copy_, source))
    del source, target
    on_gpu = bench.device.type == "cuda"
    rows: dict[str, Result] = {}
    column = pool.stack[0].nbytes
    # In bf16 each column is half as large, and the centre is one more in fp32.
    for name, mode, size in (("fuse", FP32, pool.stack.nbytes), ("fuse_bf16", BF16, pool.stack.nbytes // 2 + column)):
        bench.close()  # what the last stack took
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(bench.device)
        stack = open_stack(pool, bench.device, mode)
        builder = FastBuilder(pool, family.build(), bench.device, None, stack)
        fused = (size + column) / bench.seconds(partial(builder.apply, mix))
        share = fused / copied
        value = f"{fused / 1e9:.1f} GB/s" + (f" (on the {stack.place})" if stack.place == "host" else "")
        rows[name] = _row(value, f"{copied / 1e9:.1f} GB/s", share, share >= 0.6)
        if on_gpu and mode == BF16:
            held = torch.cuda.max_memory_allocated(bench.device) / 1e9
            rows["memory"] = _row(f"{held:.2f} GB", "", held / 15, held <= 15, "of 15 GB")
        del builder, stack
    return rows


def measure_evaluate(bench: Bench) -> dict[str, Result]:
    """Rows ``evaluate`` and ``agreement``."""
    bench.best_forward, bench.best_mode = best_forward(bench)
    row, predicted = _evaluate(bench)
    bench.eager = row["ratio"]
    bench.close()
    exact = bench.open("exact", precision="fp32").objective
    differ = max(
        float(np.mean(exact.score(mix).outcomes.predicted != found))
        for mix, found in zip(_mixes(bench, exact.pool), predicted, strict=True)
    )
    bench.close()
    return {"evaluate": row, "agreement": _row(f"{differ:.3%}", "", differ, differ <= 0.002)}


def measure_evaluate_compiled(bench: Bench) -> dict[str, Result]:
    """Row ``evaluate_compiled``; where it is the faster one, the rows after it are compiled too."""
    if bench.options.modes == "eager":
        return {}
    bench.close()
    row, _ = _evaluate(bench, compile=True)
    bench.close()
    if row["ratio"] > bench.eager:
        bench.flags["compile"] = True
    return {"evaluate_compiled": {**row, "reached": max(row["ratio"], bench.eager) >= 0.95}}


def _evaluate(bench: Bench, **more: Any) -> tuple[Result, list[Any]]:
    """The row of the forward passes of some mixes, and what each of these predicts."""
    objective = bench.open(**more).objective
    times, predicted = [], []
    for mix in _mixes(bench, objective.pool):
        before = objective.stopwatch.seconds.get("forward", 0.0)
        predicted.append(objective.score(mix).outcomes.predicted)
        times.append(objective.stopwatch.seconds["forward"] - before)
    share = bench.best_forward / min(times)
    images = bench.sizes.images
    floor = f"{images / bench.best_forward:,.0f} images/s ({bench.best_mode})"
    return _row(f"{images / min(times):,.0f} images/s", floor, share, share >= 0.95), predicted


def _mixes(bench: Bench, pool: Pool) -> list[Mix]:
    random = np.random.default_rng(1)
    return [random_mix(_groups(pool), pool.columns, random) for _ in range(bench.options.repeats)]


def best_forward(bench: Bench) -> tuple[float, str]:
    """Seconds of the image tower and head over all images, ready on the device, in its fastest way; and which."""
    spec = load_spec({"models": bench.folder, "cache": bench.folder.parent / "cache"})
    family: Any = family_of(spec)
    module = family.build().eval().to(bench.device)
    visual = module.visual.to(torch.bfloat16)
    head = torch.randn(module.visual.output_dim, 10, device=bench.device, dtype=torch.bfloat16)

    class Forward(nn.Module):
        """Images to logits."""

        def __init__(self) -> None:
            super().__init__()
            self.visual = visual

        def forward(self, images: Tensor) -> Tensor:
            """Cosines with the head."""
            return torch.as_tensor(nn.functional.normalize(self.visual(images), dim=-1) @ head)

    found: list[tuple[float, str]] = []
    problems = []
    for size in map(int, bench.options.batch_sizes.split(",")):
        # Whole batches only, so that nothing is compiled twice; the rest is counted in proportion.
        size = min(size, bench.sizes.images)
        count = bench.sizes.images // size
        shape = (size, 3, bench.sizes.image_size, bench.sizes.image_size)
        images = torch.randn(shape, device=bench.device).to(torch.bfloat16)
        for mode in bench.options.modes.split(","):
            try:
                model: Any = Forward() if mode == "eager" else torch.compile(Forward(), mode=mode, dynamic=False)

                def whole(model: Any = model, images: Tensor = images, count: int = count) -> None:
                    with torch.inference_mode():
                        for _ in range(count):
                            model(images)

                seconds = bench.seconds(whole) * bench.sizes.images / (count * size)
                found.append((seconds, f"{mode}, batch {size}"))
            except Exception as error:  # a compiler that is missing, or memory: other ways remain
                problems.append(f"{mode}, batch {size}: {type(error).__name__}")
            if hasattr(torch, "compiler"):
                torch.compiler.reset()
    if problems:
        print("forward passes that failed: " + "; ".join(problems), file=sys.stderr)
    if not found:
        raise RuntimeError("no forward pass ran: " + "; ".join(problems))
    return min(found)


def measure_several(bench: Bench) -> dict[str, Result]:
    """Row ``several``: of a small model, which by itself leaves a GPU idle."""
    bench.close()
    small = bench.folder.parent / "small"
    make_pool(small, TINY if bench.options.tiny else Sizes())
    found = several.open_and_measure(
        small, bench.folder.parent / "cache", bench.options.device, bench.options.candidates, bench.options.repeats
    )
    alone = found["seconds"].pop("one")
    ratios = {name.split()[-1]: seconds / alone for name, seconds in found["seconds"].items()}
    pays, before = "1", 1.0
    for count, ratio in ratios.items():
        if ratio > 0.98 * before:
            break
        pays, before = count, ratio
    told = ", ".join(f"{count}: {ratio:.2f}" for count, ratio in ratios.items())
    return {"several": _row(f"{told}; pays up to {pays} at once", f"{1000 * alone:.1f} ms", before)}


def measure_naive(bench: Bench) -> dict[str, Result]:
    """Row ``naive``."""
    assembly = bench.open()
    objective = assembly.objective
    naive = Naive(bench.folder, objective.pool.paths, assembly.device, bench.options.workers)
    random = np.random.default_rng(2)
    times: dict[str, list[float]] = {"mixopt": [], "naive": []}
    for repeat in range(1 + bench.options.naive_repeats):
        mix = random_mix(_groups(objective.pool), objective.pool.columns, random)
        for name, work in (("mixopt", objective.score), ("naive", naive.score)):
            started = time.perf_counter()
            work(mix)
            if repeat:
                times[name].append(time.perf_counter() - started)
    ours, peer = statistics.median(times["mixopt"]), statistics.median(times["naive"])
    return {"naive": _row(f"{ours:.3f} s{bench.way}", f"{peer:.3f} s", peer / ours, peer / ours >= 30, "x")}


def measure_search(bench: Bench) -> dict[str, Result]:
    """Row ``search``."""
    if np.isnan(bench.best_forward):
        bench.best_forward, bench.best_mode = best_forward(bench)
    bench.close()  # so that opening is counted
    started = time.perf_counter()
    objective = bench.open("search").objective
    pool = objective.pool
    start = constant(_groups(pool), pool.columns, np.full(len(pool.columns), 1 / len(pool.columns)))
    space = Simplex(start, pool.ingredients[:8], 0.5)
    storage = search.open_storage(bench.folder.parent / "study.journal", None, objective.stopwatch)
    study = search.open_study(storage, "gpu", objective.metric.direction)
    search.run_trials(study, objective, space, search.Schedule("cmaes", bench.options.trials, seed=0))
    wall = time.perf_counter() - started
    floor = objective.tally.evaluations * bench.best_forward + bench.opening
    value = f"{wall:.1f} s ({objective.tally.evaluations} evaluations, opening {bench.opening:.1f} s){bench.way}"
    return {"search": _row(value, f"{floor:.1f} s", wall / floor, wall / floor <= 1.15)}


def _groups(pool: Pool) -> Groups:
    return make_groups("4", pool.sizes)


def _row(
    value: str, floor: str = "", ratio: float | None = None, reached: bool | None = None, unit: str = ""
) -> Result:
    return {"value": value, "floor": floor, "ratio": ratio, "unit": unit, "reached": reached}


def measure(options: argparse.Namespace, sizes: Sizes) -> dict[str, Result]:
    """Every row that this machine can fill."""
    found: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        bench = Bench(make_pool(Path(temporary) / "pool", sizes), options, sizes)
        for work in (
            measure_opening,
            measure_fuse,
            measure_evaluate,
            measure_evaluate_compiled,
            measure_several,
            measure_naive,
            measure_search,
        ):
            try:
                found |= work(bench)
            except Exception as error:  # the other rows are worth having
                name = work.__name__.removeprefix("measure_")
                text = str(error).strip().splitlines()
                found[name] = {**_row(f"failed: {type(error).__name__}: {text[0] if text else ''}"), "failed": True}
            print(f"{work.__name__.removeprefix('measure_')}: done", file=sys.stderr, flush=True)
    return found


def show(found: dict[str, Result]) -> None:
    """Print the table."""
    print("| what | measured | floor or peer | ratio | target | reached |\n|---|---|---|---|---|---|")
    for name, (what, target) in ROWS.items():
        row = found.get(name, _row(NOT_RUN))
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g}{row['unit'] if row['unit'] == 'x' else ''}"
        reached = "" if row["reached"] is None else "yes" if row["reached"] else "no"
        print(f"| {what} | {row['value']} | {row['floor']} | {ratio} | {target} | {reached} |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_size_options(parser, VIT_B_32)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that prove only that the program runs")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, help="of mixopt's evaluator; its own choice without")
    parser.add_argument("--batch-sizes", default="256,512,1024", help="tried for the best compiled forward")
    parser.add_argument("--modes", default="eager,default,reduce-overhead,max-autotune")
    parser.add_argument("--candidates", default="1,2,4,8,16,32", help="at once, of the small model")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="of the naive DataLoader")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--naive-repeats", type=int, default=1)
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args(arguments)
    sizes = sizes_from(options)
    if options.tiny:
        sizes = replace(TINY, dtype=sizes.dtype)
        options.batch_sizes, options.modes, options.workers, options.trials = "20", "eager", 0, 3
        options.candidates = "1,2"
    found: dict[str, Result] = {}
    device = "none: no CUDA device here"
    if not options.device.startswith("cuda"):
        device = options.device
        found = measure(options, sizes)
    elif torch.cuda.is_available():
        device = torch.cuda.get_device_name(options.device)
        found = measure(options, sizes)
    print(f"device: {device}; {sizes.ingredients} ingredients, {sizes.images:,} images\n")
    show(found)
    print(json.dumps({"benchmark": "gpu", "device": device, "sizes": asdict(sizes), "rows": found}))
    return int(any(row.get("failed") for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
