"""What prefix reuse saves: the same rows of a comparison with it and without, in one run.

    OMP_NUM_THREADS=1 python benchmarks/prefix.py --models DIR [--methods manifold,coordinates] [--limit 200]

Every mix passes both ways, in turns, so that what else the machine does meets both alike. ``coordinates`` stands for
methods that settle one layer group after another, the last first: from the uniform soup of the first two ingredients,
four shares of the first for each block in turn, the best of which stays. ``stages``: the share of the passes, in stages
times images, that was not computed anew. ``forward``: seconds of forward passes. ``identical``: whether every
prediction and loss was the same to the last bit. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixopt import load_spec
from mixopt.assemble import assemble
from mixopt.comparison.requests import requests_of
from mixopt.comparison.running import run_requests
from mixopt.listener import Listener
from mixopt.scoring.activation_reuse import Resumed
from mixopt.scoring.evaluator import Predict
from mixopt.scoring.objective import Objective
from mixopt.scoring.outcomes import Outcomes
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION

ROWS = "coordinates,manifold,manifold:groups=block:models=3:tolerance=0.9,manifold:prefix=2:models=3:tolerance=0.9"
SHARES = (0.2, 0.35, 0.65, 0.8)


def coordinates(objective: Objective) -> None:
    """One layer group after another, the last first."""
    groups = make_groups("block", objective.pool.sizes)
    rows = np.zeros((len(groups), len(objective.pool.columns)))
    rows[:, :2] = 0.5
    best = objective.score(Mix(groups, objective.pool.columns, rows)).value
    for number in reversed(range(len(groups))):
        for share in SHARES:
            tried = rows.copy()
            tried[number, :2] = share, 1 - share
            value = objective.score(Mix(groups, objective.pool.columns, tried)).value
            if objective.metric.better(value, best):
                rows, best = tried, value


def measure(models: str, row: str, limit: int) -> dict[str, Any]:
    """One row of the table."""
    seconds = {"without": 0.0, "with": 0.0}
    identical: list[bool] = []
    with tempfile.TemporaryDirectory() as cache:
        options = {"models": models, "limit": limit, "cache": Path(cache), "device": "cpu", "precision": "fp32"}
        objective = assemble(load_spec(options), Listener()).objective
        evaluator: Any = objective.evaluators[VALIDATION]
        run = evaluator.run

        def both(predict: Predict | Resumed, *span: int | None, **more: Any) -> Outcomes:
            found: dict[str, Outcomes] = {}
            order = list(seconds) if len(identical) % 2 else list(reversed(seconds))
            for name in order:
                started = time.perf_counter()
                found[name] = run(predict if name == "with" else objective.scorer.engine.predict(), *span, **more)
                seconds[name] += time.perf_counter() - started
            identical.append(same(*found.values()))
            return found["with"]

        evaluator.run = both
        if row == "coordinates":
            coordinates(objective)
        else:
            requests = requests_of([row], objective.pool.columns)
            entries = run_requests(objective, requests, seed=0, device=torch.device("cpu"), listener=Listener())
            for entry in entries.values():
                if entry.error is not None:
                    raise entry.error
    return {
        "name": row,
        "mixes": len(identical),
        "stages": objective.reused,
        "forward": seconds,
        "identical": all(identical),
    }


def same(first: Outcomes, second: Outcomes) -> bool:
    """Whether outcomes are equal to the last bit."""
    return np.array_equal(first.predicted, second.predicted) and np.array_equal(first.losses, second.losses)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", required=True)
    parser.add_argument("--methods", default=ROWS)
    parser.add_argument("--limit", type=int, default=200)
    given = parser.parse_args(arguments)
    rows = []
    print("| row | mixes computed | stages | forward s, without | with | spared | identical |")
    print("|---|---|---|---|---|---|---|")
    for name in given.methods.split(","):
        row = measure(given.models, name, given.limit)
        before, after = row["forward"].values()
        rows.append(row)
        print(
            f"| `{name}` | {row['mixes']} | {row['stages']:.1%} | {before:.2f} | {after:.2f} "
            f"| {1 - after / before:.1%} | {'yes' if row['identical'] else 'no'} |",
            flush=True,
        )
    print(json.dumps({"benchmark": "prefix", "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
