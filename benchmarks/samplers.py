"""Which sampler, radius and split of dimensions to search with: measured on a pool's selection split alone.

    python benchmarks/samplers.py --models DIR [--trials 100] [--steer 2000] [--configs cmaes,tpe,...]

Each configuration steers on the first part of the selection split's fixed order and is judged on the rest of it,
which steered nothing; no test split is opened. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from optuna.samplers import CmaEsSampler

from mixopt import load_spec, open_objective, search
from mixopt.assemble import assemble
from mixopt.listener import Listener
from mixopt.mix import Mix
from mixopt.objective import Objective
from mixopt.stages import make_space, run_baselines


def separable(seed: int) -> CmaEsSampler:
    """Separable CMA-ES, by import path for mixopt's search."""
    return CmaEsSampler(seed=seed, use_separable_cma=True, popsize=14, warn_independent_sampling=False)


CONFIGS: dict[str, dict[str, Any]] = {
    "cmaes r=0.5 4x8": {},
    "cmaes r=0.25 4x8": {"radius": 0.25},
    "cmaes r=1 4x8": {"radius": 1.0},
    "cmaes r=0.5 pop 8": {"population": 8},
    "cmaes r=0.5 2x16": {"groups": "2", "top": 16},
    "cmaes r=0.5 8x4": {"groups": "block", "top": 4},
    "cmaes r=0.5 1x16": {"groups": "whole", "top": 16},
    "separable r=0.5 4x8": {"sampler": "samplers:separable", "population": 14},
    "tpe r=0.5 4x8": {"sampler": "tpe"},
    "gp r=0.5 4x8": {"sampler": "gp"},
    "random r=0.5 4x8": {"sampler": "random"},
}


def measure(options: dict[str, Any], rest: Objective, steer: int) -> dict[str, Any]:
    """One search, and its best mix on the samples that did not steer it."""
    spec = load_spec({**options, "limit": steer})
    assembly = assemble(spec, Listener())
    objective = assembly.objective
    baselines = run_baselines(spec, assembly, Listener())
    space = make_space(spec, objective, baselines)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        storage = search.open_storage(Path(folder) / "study.journal", None)
        study = search.open_study(storage, "benchmark", objective.metric.direction)
        search.run_trials(
            study,
            objective,
            space,
            sampler=spec.sampler,
            trials=spec.trials,
            seed=spec.seed,
            population=spec.population,
        )
        (mix,) = search.best_mixes(study, space, 1).values()
    start = space.to_mix(np.zeros(space.dims))
    return {
        "dims": space.dims,
        "start_steer": objective.score(start).value,
        "steer": objective.score(mix).value,
        "start_rest": _rest(rest, start, steer),
        "rest": _rest(rest, mix, steer),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _rest(objective: Objective, mix: Mix, steer: int) -> float:
    labels = objective.evaluators["search"].split.labels[steer:]
    return float(np.mean(objective.score(mix).outcomes.predicted[steer:] == labels))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", required=True)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--steer", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--configs", default=",".join(CONFIGS))
    arguments = parser.parse_args()
    base = {"models": arguments.models, "trials": arguments.trials}
    rest = open_objective(load_spec(base))
    results = {}
    print(
        f"{'configuration':22} {'dims':>4} {'start':>7} {'steer':>7} {'start':>7} {'rest':>7} {'seconds':>8}",
        flush=True,
    )
    for name in arguments.configs.split(","):
        runs = [
            measure({**base, **CONFIGS[name], "seed": seed}, rest, arguments.steer) for seed in range(arguments.seeds)
        ]
        mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        results[name] = runs
        print(
            f"{name:22} {mean['dims']:4.0f} {mean['start_steer']:7.4f} {mean['steer']:7.4f} "
            f"{mean['start_rest']:7.4f} {mean['rest']:7.4f} {mean['seconds']:8.1f}",
            flush=True,
        )
    print(json.dumps({"benchmark": "samplers", "trials": arguments.trials, "steer": arguments.steer, "runs": results}))


if __name__ == "__main__":
    main()
