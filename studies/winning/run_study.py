"""The study of the search on one pool: seeds, other samplers and starts, and every recipe by the same samples.

    OMP_NUM_THREADS=1 python studies/winning/run_study.py --models DIR --out RUNS --results studies/NAME
        [--seeds 5] [--trials 200] [--arms default,random,greedy] [--rows ROW,ROW,...] [OPTION=VALUE ...]

One run folder per arm and seed lies under ``--out``, beside the comparison. The same command again goes on where it was
stopped: runs that are finished are read back, so after a change of mixopt take another ``--out``. Then ManifoldMix
(``--cut``) is cut off at the images of the first arm's mean run. Everything measured goes to ``results.json`` in the
folder ``--results``, with a picture of the best signal so far; the table is printed, and again by ``show.py``. Test
splits choose nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from show import show

import mixopt
from mixopt.files import write_json
from mixopt.listener import Listener, TrialEvent
from mixopt.reporting.schema import FailedRow, MadeRow, Report
from mixopt.study import read_trials
from mixopt.values.metrics import METRICS

ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "cmaes": {"sampler": "cmaes"},
    "random": {"sampler": "random"},
    "tpe": {"sampler": "tpe"},
    "gp": {"sampler": "gp"},
    "greedy": {"start": "greedy"},
    "uniform": {"start": "uniform"},
    "no racing": {"race": "off"},
    "metric alone": {"signal": "metric"},
    "no refit": {"refit": "off"},
    "no robust": {"robust": "off"},
    "refined": {"refine": 3},
    "shifts": {"shifts": "synthetic"},
    "pareto": {"shifts": "synthetic", "pareto": True},
    "greedy shifts": {"start": "greedy", "shifts": "synthetic"},
    "greedy pareto": {"start": "greedy", "shifts": "synthetic", "pareto": True},
    "cmaes no refit": {"sampler": "cmaes", "refit": "off"},
    "cmaes greedy": {"sampler": "cmaes", "start": "greedy"},
    "cmaes shifts": {"sampler": "cmaes", "shifts": "synthetic"},
}
ROWS = (
    "individual",
    "uniform",
    "greedy",
    "model_stock",
    "wise_ft:greedy",
    "learned:affine",
    "learned_by_layer",
    "learned_by_layer:affine",
    "learned_by_layer:affine:groups=block:cosine",
    "manifold",
    "ensemble",
)
KEPT = (
    *("name", "error", "search", "test", "optimism", "evaluations", "computed", "images", "gradient_images", "seconds"),
    *("ingredients", "models", "metrics", "interval", "mcnemar_p", "notes"),
)
TRIALS_TOLD = 25


@dataclass(frozen=True)
class Plan:
    """What the study runs.

    Attributes:
        models: The pool's folder.
        out: Where run folders lie.
        seeds: How many.
        trials: Of each search.
        arms: Keys of `ARMS`.
        rows: Of the comparison.
        cut: Rows that are made again with as many images as a search.
        options: More of mixopt's options, the same for all.
    """

    models: Path
    out: Path
    seeds: int
    trials: int
    arms: tuple[str, ...]
    rows: tuple[str, ...]
    cut: tuple[str, ...]
    options: dict[str, Any]


def heard(label: str) -> Listener:
    """A listener that prints lines."""

    def trial(event: TrialEvent) -> None:
        if event.complete % TRIALS_TOLD == 0:
            print(f"{label}: {event.complete} of {event.total} trials, best {event.best:.4f}", flush=True)

    return Listener(warn=lambda text: print(f"{label}: {text}", flush=True), trial=trial)


def kept(row: MadeRow | FailedRow) -> dict[str, Any]:
    """What the results keep of a report's row."""
    values = row.model_dump()
    return {key: values[key] for key in KEPT if key in values}


def best_so_far(folder: Path, report: Report) -> list[list[float]]:
    """Where the best signal of a run improved, and its end: images scored in trials, and the signal.

    Trials that were given up count their images; what was estimated of them is no score. Where several splits steer,
    the signal is another one, and there is no curve.
    """
    if report.front is not None:
        return []
    sign = METRICS[report.metric].sign
    images, best, points = 0, -np.inf, []
    for trial in read_trials(folder / "study.journal"):
        images += trial.images
        if not trial.estimated and sign * trial.value > best:
            best = sign * trial.value
            points.append([float(images), trial.value])
    return [*points, [float(images), points[-1][1]]]


def searched(plan: Plan, arm: str, seed: int, precision: str) -> dict[str, Any]:
    """One search's record, from its file where it is finished."""
    folder = plan.out / f"{arm.replace(' ', '-')}-{seed}"
    record = folder.with_suffix(".json")
    if record.exists():
        found: dict[str, Any] = json.loads(record.read_text())
        return found
    resumed = (folder / "study.journal").exists()
    options = {**plan.options, "precision": precision, **ARMS[arm], "trials": plan.trials, "seed": seed, "out": folder}
    report = mixopt.search(plan.models, listener=heard(folder.name), **options).report
    row, said = report.row("search"), report.as_dict()
    found = {
        "seed": seed,
        # Of the last session alone where there were several: nothing that compares.
        "wall_seconds": None if resumed else report.wall_seconds,
        "start_stayed": row.notes["share"] == 0,
        **{key: said[key] for key in ("signal", "time", "race", "trials", "space", "tuning")},
        "row": kept(row),
        "best_so_far": best_so_far(folder, report),
    }
    write_json(record, found)
    print(f"{folder.name}: selection {row.search:.4f}, {row.images:,} images", flush=True)
    return found


def study(plan: Plan) -> dict[str, Any]:
    """Run everything that is not there yet; the content of results.json."""
    plan.out.mkdir(parents=True, exist_ok=True)
    first = {**plan.options, "listener": heard("compare")}
    compared = mixopt.compare(plan.models, methods=plan.rows, out=plan.out / "compare", **first).report
    # What one run measured to be fast enough another might not: all share the first one's precision, and its cache.
    precision = compared.precision["mode"]
    print(f"compare: {len(compared.methods)} rows, in {precision}", flush=True)
    arms = {
        arm: [searched(plan, arm, seed, precision) for seed in range(plan.seeds)] for arm in plan.arms
    }  # an arm's seeds after one another, so that the first arm is whole first
    images = round(float(np.mean([each["row"]["images"] for each in arms[plan.arms[0]]])))
    cut = tuple(f"{row}:images={images}" for row in plan.cut)
    second = {**plan.options, "precision": precision, "listener": heard("cut")}
    again = mixopt.compare(plan.models, methods=("individual", "greedy", *cut), out=plan.out / "cut", **second).report
    return {
        "pool": plan.models.absolute().name,
        "trials": plan.trials,
        "tuning": compared.tuning,
        "splits": {name: each.samples for name, each in compared.splits.items()},
        "precision": compared.precision,
        "batchnorm": compared.batchnorm,
        "rows": [kept(row) for row in [*compared.methods, *again.methods[-len(cut) :]]],
        "arms": arms,
    }


def main(given: Sequence[str] | None = None) -> int:
    """Run the study; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--arms", default="default,random,greedy", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--cut", default="manifold,manifold:prefix=2")
    parser.add_argument("--cache", type=Path, help="mixopt's; its own choice without")
    parser.add_argument("--limit", type=int, help="the first so many selection images, for a quick look")
    parser.add_argument("--precision", help="mixopt's; measured once without")
    parser.add_argument("options", nargs="*", help="more of mixopt's, as option=value in JSON")
    options = parser.parse_args(given)
    arms = tuple(options.arms.split(","))
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"--arms: expected some of {', '.join(ARMS)}; found {unknown[0]}")
    more = {key: getattr(options, key) for key in ("cache", "limit", "precision") if getattr(options, key) is not None}
    more |= {key: json.loads(value) for key, _, value in (each.partition("=") for each in options.options)}
    rows, cut = tuple(options.rows.split(",")), tuple(options.cut.split(","))
    if "greedy" not in rows:
        parser.error("--rows: greedy must be among them; all others are tested against it")
    results = study(Plan(options.models, options.out, options.seeds, options.trials, arms, rows, cut, more))
    options.results.mkdir(parents=True, exist_ok=True)
    write_json(options.results / "results.json", results)
    show(options.results / "results.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
