"""What keeping logits costs: bytes of a cached entry, and the time to take, write and read them.

    OMP_NUM_THREADS=1 python benchmarks/kept_logits.py [--splits 5000x10,26000x1000] [--models DIR]

For each split, random logits in batches of 100 on the CPU. ``without`` is what was kept before: predictions, losses,
ranks and confidences. With ``--models``, the logits of a pool's uniform soup instead, and what keeping them adds to the
seconds that scoring it takes. Medians. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixopt import load_spec
from mixopt.assemble import open_objective, uniform_soup
from mixopt.scoring.cache import OutcomeCache
from mixopt.scoring.logits import Told, outcomes_of, told
from mixopt.scoring.outcomes import Outcomes

BATCH = 100
KEY = "ab" * 32


@dataclass
class Row:
    """What a split's outcomes take, without logits and with them.

    Attributes:
        split: Samples and classes.
        bytes_without: Of an entry.
        bytes_with: The same.
        seconds_without: To take, write and read the outcomes.
        seconds_with: The same.
        share: What logits add, as a part of the seconds that scoring a mix takes; None where no model was run.
    """

    split: str
    bytes_without: int
    bytes_with: int
    seconds_without: float
    seconds_with: float
    share: float | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", default="5000x10,26000x1000")
    parser.add_argument("--models")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for split, batches, forward in _pool(options.models) if options.models else _random(options.splits):
            row = _measured(split, batches, OutcomeCache(Path(folder)), options.repeats)
            if forward:
                row.share = (row.seconds_with - row.seconds_without) / (forward + row.seconds_without)
            rows.append(row)
    print("| split | kB without | kB with | ms without | ms with | of scoring |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        share = "" if row.share is None else f"{row.share:.2%}"
        sizes = f"{row.bytes_without / 1000:.0f} | {row.bytes_with / 1000:.0f}"
        print(f"| {row.split} | {sizes} | {row.seconds_without * 1e3:.1f} | {row.seconds_with * 1e3:.1f} | {share} |")
    print(json.dumps({"benchmark": "kept_logits", "rows": [asdict(row) for row in rows]}))


Batches = list[tuple[Tensor, Tensor]]


def _random(splits: str) -> Iterator[tuple[str, Batches, float]]:
    torch.manual_seed(0)
    for split in splits.split(","):
        samples, classes = map(int, split.split("x"))
        logits, labels = torch.randn(samples, classes) * 3, torch.randint(0, classes, (samples,))
        yield split, _batches(logits, labels), 0.0


def _pool(models: str) -> Iterator[tuple[str, Batches, float]]:
    with tempfile.TemporaryDirectory() as cache:
        objective = open_objective(
            load_spec({"models": models, "cache": Path(cache), "device": "cpu", "precision": "fp32", "confirm": 0.0})
        )
        evaluator = objective.evaluators["validation"]
        started = time.perf_counter()
        objective.scorer.engine.fuse(uniform_soup(objective.pool))
        logits = evaluator.logits(objective.scorer.engine.predict())
        forward = time.perf_counter() - started
        batches = _batches(logits, torch.from_numpy(evaluator.split.labels))
        yield f"{len(logits)}x{logits.shape[1]}", batches, forward


def _batches(logits: Tensor, labels: Tensor) -> Batches:
    return list(zip(torch.split(logits, BATCH), torch.split(labels, BATCH), strict=True))


def _measured(split: str, batches: Batches, cache: OutcomeCache, repeats: int) -> Row:
    def store(take: Callable[[Tensor, Tensor], Told], strip: Callable[[Outcomes], Outcomes]) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            outcomes = strip(outcomes_of([take(*batch) for batch in batches]))
        cache.put(KEY, outcomes, 0.5)
        if cache.get(KEY, len(outcomes)) is None:
            raise RuntimeError("the entry is missing")
        return time.perf_counter() - started

    # In turn, so that a slow moment of the machine meets both alike.
    times: dict[bool, list[float]] = {False: [], True: []}
    sizes: dict[bool, int] = {}
    for _ in range(repeats):
        for is_kept in times:
            times[is_kept].append(store(told, lambda found: found) if is_kept else store(_plain, _without))
            (entry,) = cache.folder.rglob(f"{KEY}.npz")
            sizes[is_kept] = entry.stat().st_size
    before, after = (statistics.median(times[is_kept]) for is_kept in (False, True))
    return Row(split, sizes[False], sizes[True], before, after)


def _without(outcomes: Outcomes) -> Outcomes:
    return replace(outcomes, logits=None)


def _plain(logits: Tensor, labels: Tensor) -> Told:
    """The four numbers of each sample, and nothing else."""
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1]) < labels[:, None]
    each = {
        "predicted": logits.argmax(dim=1),
        "losses": torch.nn.functional.cross_entropy(logits, labels, reduction="none"),
        "above": ((logits > own) | ((logits == own) & lower)).sum(dim=1),
        "confidence": (logits - logits.amax(dim=1, keepdim=True)).exp().sum(dim=1).reciprocal(),
    }
    return Told(each, torch.from_numpy(np.zeros((len(labels), 1), dtype=np.float16)), None, None, 1)


if __name__ == "__main__":
    main()
