"""What to search with: samplers, spaces and starts, on a recorded surrogate and for real.

    python benchmarks/search.py surrogate --models DIR [--space residual] [--points 300] [--seeds 20]
    python benchmarks/search.py surrogate --grid --models DIR [--cells residual:learned,affine:greedy,...] [--points 70]
    python benchmarks/search.py real --models DIR [--configs default,gp,...] [--trials 200] [--seeds 5]

``surrogate`` scores the start and random points of a space on the steering samples (cached: a run that was stopped goes
on), fits a ridge regression to the signal (its terms, linear, with squares or with all products, and its strength by
cross-validation), checks it on a fifth of the points that it was not fitted to, and lets every sampler search it: the
regret is how far the best point found is from the best that any run found, in units of the signal. With ``--grid``, all
that for every space and start, with the surrogate's value reached beside the regret, and the best point that each
sampler found there scored for real. All values are of the same signal on the same steering samples, but each surrogate
has an error of its own, larger where it explains less and far from the points that it was fitted to: small differences
between rows tell nothing.

``real`` runs whole searches. What chooses between them is ``held``: the gain over the start of the best trial on the
samples held back, which steered nothing; no test split is opened. It tells too what racing spared, and whether a trial
that was given up would have been the best after all. The two kinds of result are printed as tables of their own, and as
one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from surrogate import GRID, grid, opened, run_study, show_grid, show_one

from mixopt import study as search
from mixopt.assemble import assemble
from mixopt.listener import Listener
from mixopt.spec import load_spec
from mixopt.stages.confirm import choose_candidate
from mixopt.values.metrics import smoothed
from mixopt.values.samples import VALIDATION

# With CMA-ES, where no other sampler is named.
CONFIGS: dict[str, dict[str, Any]] = {
    "cmaes": {},
    "surface": {"sampler": "surface"},
    "tpe": {"sampler": "tpe"},
    "gp": {"sampler": "gp"},
    "random": {"sampler": "random"},
    "metric alone": {"signal": "metric"},
    "no racing": {"race": "off"},
    "radius 1": {"radius": 1.0},
    "affine": {"space": "affine", "radius": 0.1},
    "shared": {"space": "shared", "radius": 0.1},
    "depth": {"space": "depth", "radius": 0.1},
    "greedy residual": {"start": "greedy"},
    "greedy residual gp": {"start": "greedy", "sampler": "gp"},
    "greedy simplex": {"start": "greedy", "space": "simplex"},
    "uniform affine": {"start": "uniform", "space": "affine", "radius": 0.1},
}


def real(options: dict[str, Any], seed: int, audit: bool) -> dict[str, Any]:
    """One search."""
    spec = load_spec({**options, "seed": seed})
    objective, space = opened(spec, assemble(spec, Listener()))
    objective = objective.counting()
    started = time.perf_counter()
    study = run_study(objective, space, spec, seed, spec.race == "on")
    seconds = time.perf_counter() - started
    races = search.race_counts(study, objective.images)
    (best,) = search.best_mixes(study, space, 1).values()
    start = space.to_mix(np.zeros(space.dims))
    held = choose_candidate(objective, start, [best])
    metric = smoothed(objective.metric)
    labels = objective.evaluators[VALIDATION].split.labels[objective.tuning :]
    parts = [objective.whole().score(mix).outcomes.rest(objective.tuning) for mix in (best, start)]
    gains = metric.gains(labels, *parts)
    crown = objective.score(best).signal
    wrong = 0
    if audit:
        for trial in study.get_trials(deepcopy=False):
            if trial.user_attrs.get("estimated"):
                point = np.array([trial.params[label] for label in space.labels])
                wrong += objective.signal.better(objective.score(space.to_mix(point)).signal, crown)
    return {
        "dims": space.dims,
        "steer": objective.score(best).value - objective.score(start).value,
        "held": float(gains.mean()),
        "error": float(gains.std() / np.sqrt(len(gains))),
        "share": held.share,
        "spared": races["unraced_images"] / max(1, races["images"]),
        "given_up": races["given_up"],
        "wrong": wrong if audit else None,
        "seconds": seconds,
    }


def show_real(results: dict[str, list[dict[str, Any]]]) -> None:
    """Print the table of searches."""
    print("| configuration | dims | gain where it steered | held back, in signal | spared | given up wrongly | s |")
    print("|---|---|---|---|---|---|---|")
    for name, runs in results.items():
        mean = {
            key: np.mean([run[key] for run in runs]) for key in ("dims", "steer", "held", "error", "spared", "seconds")
        }
        audited = [run for run in runs if run["wrong"] is not None]
        wrong = (
            "-"
            if not audited
            else f"{sum(run['wrong'] for run in audited)} of {sum(run['given_up'] for run in audited)}"
        )
        print(
            f"| {name} | {mean['dims']:.0f} | {mean['steer']:+.4f} | {mean['held']:+.4f} ± {mean['error']:.4f} | "
            f"{mean['spared']:.2f}x | {wrong} | {mean['seconds']:.0f} |",
            flush=True,
        )


def cells_of(text: str) -> list[tuple[str, str]]:
    """Spaces and starts, from space:start,space:start,..."""
    cells = [tuple(cell.split(":")) for cell in text.split(",")]
    if wrong := [cell for cell in cells if len(cell) != 2]:
        raise argparse.ArgumentTypeError(f"expected space:start,space:start,..., found {':'.join(wrong[0])}")
    return [(space, start) for space, start in cells]


def main(given: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["surrogate", "real"])
    parser.add_argument("--models", required=True)
    parser.add_argument("--cache", help="mixopt's; its own choice without")
    parser.add_argument("--precision", help="mixopt's; its own choice without, measured anew by each run")
    parser.add_argument("--space", default="residual")
    parser.add_argument("--grid", action="store_true", help="a surrogate for every space and start")
    parser.add_argument("--cells", type=cells_of, default=GRID, help="those of the grid, space:start,space:start,...")
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--configs", default=",".join(CONFIGS))
    parser.add_argument("--audit", action="store_true", help="score what racing gave up, to see what it missed")
    options = parser.parse_args(given)
    base: dict[str, Any] = {"models": options.models, "trials": options.trials, "data": {"test": {}}}
    base |= {} if options.cache is None else {"cache": options.cache}
    base |= {} if options.precision is None else {"precision": options.precision}
    if options.kind == "surrogate":
        cells = options.cells if options.grid else [(options.space, "best")]
        rows = grid(base, cells, options.points, options.seeds)
        if options.grid:
            print(json.dumps({"benchmark": "search", "kind": "grid", "rows": show_grid(rows)}))
        else:
            found = next(rows)
            show_one(found)
            print(json.dumps({"benchmark": "search", "kind": "surrogate", **found}))
        return 0
    results: dict[str, list[dict[str, Any]]] = {}
    for name in options.configs.split(","):
        results[name] = [
            real({**base, "sampler": "cmaes", **CONFIGS[name]}, seed, options.audit) for seed in range(options.seeds)
        ]
        print(f"{name}: done", file=sys.stderr, flush=True)
    show_real(results)
    print(json.dumps({"benchmark": "search", "kind": "real", "trials": options.trials, "runs": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
