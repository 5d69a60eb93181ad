"""What to search with: samplers, spaces and starts, on a recorded surrogate and for real.

    python benchmarks/search.py surrogate --models DIR [--space residual] [--points 300] [--seeds 20]
    python benchmarks/search.py real --models DIR [--configs default,gp,...] [--trials 200] [--seeds 5]

``surrogate`` scores random points of a space on the steering samples, fits a quadratic (ridge) to the signal, checks it
on points that it was not fitted to, and lets every sampler search it: the regret, which is how far the best point found
is from the best that any run found, in units of the signal. ``real`` runs whole searches. What chooses between them is
``held``: the gain over the start of the best trial on the samples held back, which steered nothing; no test split is
opened. It tells too what racing spared, and whether a trial that was given up would have been the best after all. The
two kinds of result are printed as tables of their own, and as one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
from numpy.typing import NDArray

from mixopt import load_spec, search
from mixopt.assemble import Assembly, assemble
from mixopt.evaluator import NO_OUTCOMES
from mixopt.finalists import settle
from mixopt.listener import Listener
from mixopt.metrics import smoothed
from mixopt.mix import Mix
from mixopt.objective import SEARCH, Objective, Score
from mixopt.spaces import Space
from mixopt.spec import StudySpec
from mixopt.stages import make_space, run_baselines
from mixopt.stopwatch import Stopwatch

SAMPLERS = ("cmaes", "tpe", "gp", "random")
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
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
    "greedy simplex": {"start": "greedy", "space": "simplex"},
    "uniform affine": {"start": "uniform", "space": "affine", "radius": 0.1},
}
Floats = NDArray[np.float64]


class Surrogate:
    """A quadratic of a point, in the place of an objective.

    Args:
        space: Whose points it is of.
        points: ``[n, dims]`` that were scored.
        values: ``[n]`` their signal.
        direction: Which way is better.
    """

    def __init__(self, space: Space, points: Floats, values: Floats, direction: Any) -> None:
        self.stopwatch = Stopwatch()
        self.metric = self.signal = direction
        self.samples = 0
        self._space = space
        terms = quadratic(points)
        self._centre = float(values.mean())
        # A ridge that the scale of the terms makes weak; the linear ones are free of correlation by design.
        self._weights = np.linalg.solve(
            terms.T @ terms + 1e-3 * np.eye(terms.shape[1]), terms.T @ (values - self._centre)
        )

    def at(self, points: Floats) -> Floats:
        """The signal at points ``[n, dims]``, ``[n]``."""
        return np.asarray(self._centre + quadratic(points) @ self._weights)

    def score(self, mix: Mix) -> Score:
        """The score of a mix of the space."""
        point = self._space.from_mix(mix)
        value = float(self.at(np.zeros((1, self._space.dims)) if point is None else point[None])[0])
        return Score(value, {self.metric.name: value}, NO_OUTCOMES, 1.0, cached=True, signal=value)


def quadratic(points: Floats) -> Floats:
    """1, every coordinate, and every product of two: ``[n, dims]`` to ``[n, terms]``."""
    first, second = np.triu_indices(points.shape[1])
    return np.hstack([np.ones((len(points), 1)), points, points[:, first] * points[:, second]])


def opened(options: dict[str, Any]) -> tuple[StudySpec, Assembly, Space]:
    """A pool, and the space that a search of it would have."""
    spec = load_spec(options)
    assembly = assemble(spec, Listener())
    if spec.signal == "smooth":
        assembly.objective.signal = smoothed(assembly.objective.metric)
    baselines = run_baselines(spec, assembly, Listener())
    return spec, assembly, make_space(spec, assembly.objective, baselines)


def run_study(objective: Any, space: Space, spec: StudySpec, seed: int, race: bool) -> optuna.Study:
    """A search without a run folder."""
    with tempfile.TemporaryDirectory() as folder:
        storage = search.open_storage(Path(folder) / "study.journal", None)
        study = search.open_study(storage, "benchmark", objective.signal.direction)
        search.run_trials(
            study,
            objective,
            space,
            sampler=spec.sampler_name,
            trials=spec.trials,
            seed=seed,
            population=spec.population,
            race=race,
        )
        memory = optuna.create_study(direction=objective.signal.direction)
        memory.add_trials(study.get_trials(deepcopy=False))
    return memory


def surrogate(options: dict[str, Any], points: int, seeds: int) -> dict[str, Any]:
    """Record, fit, check, and let every sampler search."""
    spec, assembly, space = opened(options)
    objective = assembly.objective
    random = np.random.default_rng(0)
    drawn = random.uniform(-1, 1, (points, space.dims)) * random.uniform(0.1, 1, (points, 1))
    values = np.array([objective.score(space.to_mix(point)).signal for point in drawn])
    fitted = max(1, 4 * points // 5)
    checked = Surrogate(space, drawn[:fitted], values[:fitted], objective.signal).at(drawn[fitted:])
    truth = values[fitted:]
    explained = 1 - float(np.sum((truth - checked) ** 2) / np.sum((truth - truth.mean()) ** 2))
    fit = Surrogate(space, drawn, values, objective.signal)
    found: dict[str, list[list[float]]] = {}
    for sampler in SAMPLERS:
        for seed in range(seeds):
            # GP takes half a second or more to ask.
            one = spec.model_copy(update={"sampler": sampler, "trials": spec.trials // (2 if sampler == "gp" else 1)})
            study = run_study(cast(Objective, fit), space, one, seed, race=False)
            told = np.array([trial.value for trial in study.get_trials(deepcopy=False)])
            found.setdefault(sampler, []).append(np.maximum.accumulate(told).tolist())
    best = max(curve[-1] for curves in found.values() for curve in curves)
    stops = sorted({stop for stop in (25, 50, 100, 200) if stop < spec.trials} | {spec.trials})
    regret = {
        sampler: {
            stop: best - float(np.mean([curve[stop - 1] for curve in curves]))
            for stop in stops
            if stop <= len(curves[0])
        }
        for sampler, curves in found.items()
    }
    start = float(fit.at(np.zeros((1, space.dims)))[0])
    return {"dims": space.dims, "points": points, "explained": explained, "start": best - start, "regret": regret}


def real(options: dict[str, Any], seed: int, audit: bool) -> dict[str, Any]:
    """One search."""
    spec, assembly, space = opened({**options, "seed": seed})
    objective = assembly.objective.counting()
    started = time.perf_counter()
    study = run_study(objective, space, spec, seed, spec.race == "on")
    seconds = time.perf_counter() - started
    facts = search.race_facts(study, objective.samples)
    (best,) = search.best_mixes(study, space, 1).values()
    start = space.to_mix(np.zeros(space.dims))
    held = settle(objective, start, [best])
    metric = smoothed(objective.metric)
    labels = objective.evaluators[SEARCH].split.labels[objective.steering :]
    parts = [objective.whole().score(mix).outcomes.rest(objective.steering) for mix in (best, start)]
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
        "spared": facts["unraced_images"] / max(1, facts["images"]),
        "given_up": facts["given_up"],
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


def main(given: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["surrogate", "real"])
    parser.add_argument("--models", required=True)
    parser.add_argument("--cache", help="mixopt's; its own choice without")
    parser.add_argument("--space", default="residual")
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--configs", default=",".join(CONFIGS))
    parser.add_argument("--audit", action="store_true", help="score what racing gave up, to see what it missed")
    options = parser.parse_args(given)
    base: dict[str, Any] = {"models": options.models, "trials": options.trials, "data": {"test": {}}}
    base |= {} if options.cache is None else {"cache": options.cache}
    if options.kind == "surrogate":
        found = surrogate({**base, "space": options.space}, options.points, options.seeds)
        print(
            f"surrogate: {found['dims']} dimensions, {found['points']} points, explains {found['explained']:.1%} of "
            "the variance of points that it was not fitted to\n"
        )
        stops = list(next(iter(found["regret"].values())))
        print("| sampler | " + " | ".join(f"regret at {stop}" for stop in stops) + " |\n|---|" + "---|" * len(stops))
        print("| (the start) | " + " | ".join(f"{found['start']:.5f}" for _ in stops) + " |")
        for sampler, regret in found["regret"].items():
            print(
                f"| {sampler} | "
                + " | ".join(f"{regret[stop]:.5f}" if stop in regret else "-" for stop in stops)
                + " |"
            )
        print(json.dumps({"benchmark": "search", "kind": "surrogate", "space": options.space, **found}))
        return 0
    results: dict[str, list[dict[str, Any]]] = {}
    for name in options.configs.split(","):
        results[name] = [real({**base, **CONFIGS[name]}, seed, options.audit) for seed in range(options.seeds)]
        print(f"{name}: done", file=sys.stderr, flush=True)
    show_real(results)
    print(json.dumps({"benchmark": "search", "kind": "real", "trials": options.trials, "runs": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
