"""Optuna's own cost per trial in a search: ask, tell and storage, with scores that cost nothing.

    OMP_NUM_THREADS=1 python benchmarks/optuna_overhead.py [--trials 200,2000] [--parameters 32,200]
        [--samplers cmaes,tpe] [--storages journal,memory] [--trial-seconds 3.5] [--limit 120] [--profile]

Runs `search.run_trials` with the journal storage of a run folder, and with one in memory, which writes nothing and
shows what is left without files. The objective only measures how far the coefficients are from a point. The share is
that of a whole trial whose evaluation takes ``--trial-seconds``; the target is under 5 %. A run that is longer than
``--limit`` seconds is stopped and its row says so. With ``--profile``, the functions that took most of the time follow
each row. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import json
import pstats
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
from optuna.storages import InMemoryStorage

from mixopt import study as search
from mixopt.scoring.objective import Objective
from mixopt.scoring.outcomes import Outcomes
from mixopt.scoring.score import Score
from mixopt.scoring.stopwatch import Stopwatch
from mixopt.spaces.simplex import Simplex
from mixopt.values.groups import Groups
from mixopt.values.metrics import METRICS
from mixopt.values.mix import Mix, constant
from mixopt.values.samples import VALIDATION

TARGET = 0.05
GROUPS = {32: 4, 200: 8}
NOTHING = Outcomes(np.zeros(0, np.int64), np.zeros(0))


class Free:
    """Scores a mix at once: minus the squared distance of its rows from a fixed point."""

    def __init__(self, groups: int, columns: int) -> None:
        self.stopwatch = Stopwatch()
        self.metric = self.signal = METRICS["accuracy"]
        self.weights: dict[str, float] = {}
        self.ahead = 0
        self.evaluators: dict[str, Any] = {VALIDATION: None}
        self._best = np.random.default_rng(1).dirichlet(np.ones(columns), size=groups)

    def score(self, mix: Mix) -> Score:
        """The score."""
        with self.stopwatch("score"):
            value = 1 - float(np.sum((mix.coefficients - self._best) ** 2))
            return Score(value, {"accuracy": value}, NOTHING, 1.0, cached=True, signal=value)


def make_space(parameters: int) -> Simplex:
    """A space of so many dimensions around the uniform soup."""
    groups = GROUPS.get(parameters, 1)
    count = parameters // groups
    columns = tuple(f"model_{number:02}" for number in range(count))
    named = Groups(tuple((f"group_{number}", (f"tensor_{number}",)) for number in range(groups)))
    return Simplex(constant(named, columns, np.full(count, 1 / count)), columns, 0.5)


def measure(
    sampler: str, kind: str, trials: int, parameters: int, limit: float, profile: cProfile.Profile | None
) -> dict[str, Any]:
    """One row of the table."""
    space = make_space(parameters)
    free = Free(len(space.layer_groups), len(space.active))
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "study.journal"
        storage = InMemoryStorage() if kind == "memory" else search.open_storage(journal, None, free.stopwatch)
        study = search.open_study(storage, "overhead", "maximize")
        started = time.perf_counter()
        with profile or nullcontext():
            whole = search.run_trials(
                study,
                cast(Objective, free),
                space,
                search.Schedule(sampler, trials, seed=0, deadline=time.monotonic() + limit),
            )
        wall = time.perf_counter() - started
        size = journal.stat().st_size if journal.exists() else 0
        done = search.count_states(study)["complete"]
    spent = {name: 1e3 * free.stopwatch.seconds.get(name, 0.0) / done for name in ("optimizer", "storage", "score")}
    spent["other"] = 1e3 * wall / done - sum(spent.values())
    own = 1e3 * wall / done - spent.pop("score")
    return {
        "sampler": sampler,
        "storage": kind,
        "trials": trials,
        "done": done,
        "whole": whole,
        "parameters": space.dims,
        "ms_per_trial": own,
        **{f"{name}_ms": value for name, value in spent.items()},
        "journal_mb": size / 1e6,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="200,2000")
    parser.add_argument("--parameters", default="32,200")
    parser.add_argument("--samplers", default="cmaes,tpe")
    parser.add_argument("--storages", default="journal,memory")
    parser.add_argument("--trial-seconds", type=float, default=3.5, help="of one evaluation; the zoo's 5,000 images")
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args(arguments)
    print(
        "| sampler | storage | trials | parameters | ms/trial | ask ms | storage ms | other ms | journal MB | share |"
    )
    print("|---" * 10 + "|")
    rows = []
    wanted = [options.samplers.split(","), options.storages.split(",")]
    numbers = [map(int, options.parameters.split(",")), map(int, options.trials.split(","))]
    for sampler, kind, parameters, trials in itertools.product(*wanted, *numbers):
        profile = cProfile.Profile() if options.profile else None
        row = measure(str(sampler), str(kind), int(trials), int(parameters), options.limit, profile)
        row["share"] = row["ms_per_trial"] / (row["ms_per_trial"] + 1e3 * options.trial_seconds)
        rows.append(row)
        count = f"{trials:,}" if row["whole"] else f"{row['done']:,} of {trials:,} (stopped)"
        print(
            f"| {sampler} | {kind} | {count} | {row['parameters']} | {row['ms_per_trial']:.1f} | "
            f"{row['optimizer_ms']:.1f} | {row['storage_ms']:.1f} | {row['other_ms']:.1f} | "
            f"{row['journal_mb']:.1f} | {row['share']:.2%}{'' if row['share'] < TARGET else ' (over)'} |",
            flush=True,
        )
        if profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(15)
    print(json.dumps({"benchmark": "optuna_overhead", "trial_seconds": options.trial_seconds, "rows": rows}))


if __name__ == "__main__":
    main()
