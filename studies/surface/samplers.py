"""Samplers side by side: the same start, space and steering samples; judged on samples that steered nothing.

    OMP_NUM_THREADS=1 python studies/surface/samplers.py --models DIR --out RUNS/NAME.json --arms ARM,ARM,...
        [--seeds 5] [--starts learned,greedy] [--space residual] [--radius R] [--against learned] [OPTION=VALUE ...]

An arm is ``sampler:trials`` or ``sampler:trials:signal``, such as ``surface:40``, ``cmaes:200`` or
``surface:40:metric``. Every study has its own seed; all share the baselines and the cache of outcomes. Of every study
the best trial so far, by what steered, is scored after 25, 40, 100 and 200 trials and at its end, on the samples that
``--confirm`` holds back and on the test splits. Images are those that a study's trials ran through a model, the start
included, racing counted. ``--against`` is a start whose test predictions each of these is compared with, by exact
McNemar tests. What was measured goes to ``--out`` study by study; the same command again goes on.
``--show`` prints the table of what is there: means over seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from mixopt import load_spec
from mixopt import study as search
from mixopt.assemble import Assembly, assemble
from mixopt.files import write_json
from mixopt.listener import Listener
from mixopt.reporting.statistics import mcnemar
from mixopt.scoring.objective import Objective
from mixopt.spaces import Space
from mixopt.spec import StudySpec
from mixopt.stages.evidence import evidence_of_pool
from mixopt.stages.plan import plan_search, steered
from mixopt.stages.space import make_space
from mixopt.stages.start import find_start
from mixopt.study.studies import mix_of, signal_of
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION

STOPS = (25, 40, 100, 200)


@dataclass(frozen=True)
class Arm:
    """A sampler and how far it goes."""

    sampler: str
    trials: int
    signal: str

    @classmethod
    def of(cls, text: str) -> Arm:
        """From ``sampler:trials[:signal]``."""
        sampler, trials, *signal = text.split(":")
        return cls(sampler, int(trials), signal[0] if signal else "smooth")


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a search begins with."""

    objective: Objective
    space: Space
    start: Mix
    evidence: list[search.Known]
    against: Mix | None = None


def judged(objective: Objective, mix: Mix, against: Mix | None = None) -> dict[str, dict[str, float]]:
    """Accuracy and loss on the steering samples, on those held back, and on every test split, and p against a mix."""
    whole = objective.whole()
    tuning, labels = objective.tuning, objective.evaluators[VALIDATION].split.labels
    outcomes = whole.score(mix).outcomes
    parts = {
        "steering": (labels[:tuning], outcomes.first(tuning)),
        "held out": (labels[tuning:], outcomes.rest(tuning)),
    }
    found = {}
    for name, (own, some) in parts.items():
        found[name] = {
            "accuracy": float(np.mean(own == some.predicted)),
            "nll": float(np.mean(some.losses)),
            objective.metric.name: objective.metric.of(own, some),
        }
    for name in objective.evaluators:
        if name != VALIDATION:
            metrics = whole.score(mix, name).metrics
            found[name] = {
                each: metrics[each] for each in {"accuracy", "nll", objective.metric.name} if each in metrics
            }
            if against is not None:
                labels = objective.evaluators[name].split.labels
                ours, theirs = (whole.score(each, name).outcomes.predicted == labels for each in (mix, against))
                found[name]["p"] = mcnemar(ours, theirs)
    return found


def stops_of(study: optuna.Study, objective: Objective, beginning: Beginning) -> Iterator[dict[str, Any]]:
    """What the best trial so far is worth, as the study goes on."""
    trials = [each for each in study.get_trials(deepcopy=False) if each.state == TrialState.COMPLETE]
    for stop in sorted({*(each for each in STOPS if each < len(trials)), len(trials)}):
        some = [each for each in trials[:stop] if not each.user_attrs.get("estimated")]
        best = max(some, key=lambda trial: signal_of(study, trial))
        yield {
            "trials": stop,
            "images": sum(each.user_attrs["images"] for each in trials[:stop]),
            "trial": best.number,
            "signal": signal_of(study, best),
            **judged(objective, mix_of(best, beginning.space), beginning.against),
        }


def run(beginning: Beginning, arm: Arm, seed: int, spec: StudySpec) -> dict[str, Any]:
    """One study."""
    began = time.perf_counter()
    objective, space, evidence = beginning.objective.counting(), beginning.space, beginning.evidence
    with tempfile.TemporaryDirectory() as folder:
        storage = search.open_storage(Path(folder) / "study.journal", None)
        study = search.open_study(storage, "study", objective.signal.direction)
        schedule = search.Schedule(arm.sampler, arm.trials, seed, spec.population, spec.race == "on", evidence=evidence)
        before = objective.stopwatch.seconds.get("optimizer", 0.0)
        search.run_trials(study, objective, space, schedule)
        seconds = sum(each.user_attrs["seconds"] for each in study.get_trials(deepcopy=False))
        return {
            "sampler": arm.sampler,
            "signal": arm.signal,
            "seed": seed,
            "dims": space.dims,
            "stops": list(stops_of(study, objective, beginning)),
            "scoring": seconds,
            "sampling": objective.stopwatch.seconds.get("optimizer", 0.0) - before,
            "seconds": time.perf_counter() - began,
        }


def opened(spec: StudySpec, assembly: Assembly) -> Beginning:
    """What a search of these options begins with."""
    objective = steered(spec, assembly.objective).needing("logits")
    plan = plan_search(spec, assembly)
    start = find_start(plan, replace(assembly, objective=objective), Listener())
    evidence = evidence_of_pool(plan, start, objective)
    return Beginning(objective, make_space(plan, start, objective), start.mix, evidence)


def table(done: dict[str, Any]) -> list[str]:
    """Lines of a table: each start, then each arm at its stops, means over its seeds."""
    arms: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for each in done["studies"]:
        key = each["key"]
        arms.setdefault((key["start"], key["space"], *map(str, key["arm"])), []).append(each)
    first = next(iter(done["starts"].values()))
    splits = list(first)
    lines = [
        "| arm | seeds | trials | images | signal | " + " | ".join(splits) + " |",
        "|---" * (5 + len(splits)) + "|",
    ]
    for name, start in done["starts"].items():
        lines.append(f"| {name.split('/')[0]}: the start | - | - | - | - | " + _cells([start], splits))
    for (start, _, sampler, trials, signal), studies in arms.items():
        for stop in sorted({each["trials"] for study in studies for each in study["stops"]}):
            some = [each for study in studies for each in study["stops"] if each["trials"] == stop]
            label = f"{start}: {sampler}:{trials}" + (f":{signal}" if signal != "smooth" else "")
            images, value = (float(np.mean([each[what] for each in some])) for what in ("images", "signal"))
            lines.append(f"| {label} | {len(some)} | {stop} | {images:,.0f} | {value:.4f} | " + _cells(some, splits))
    return lines


def _cells(some: list[dict[str, Any]], splits: list[str]) -> str:
    cells = []
    for name in splits:
        accuracy, loss = (float(np.mean([each[name][what] for each in some])) for what in ("accuracy", "nll"))
        p = sorted(each[name]["p"] for each in some if "p" in each[name])
        cells.append(f"{accuracy:.4f} / {loss:.4f}" + (f" (p {p[0]:.2f} to {p[-1]:.2f})" if p else ""))
    return " | ".join(cells) + " |"


def parser_of(about: str | None, arms: str, seeds: int) -> argparse.ArgumentParser:
    """What the commands here have in common, with their defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--arms", default=arms)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("options", nargs="*", help="option=value in JSON, as keys of a study.toml")
    return parser


def more_of(given: argparse.Namespace) -> dict[str, Any]:
    """The options of mixopt that were given."""
    return {key: json.loads(value) for key, _, value in (each.partition("=") for each in given.options)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the arms, and print a line for each study."""
    parser = parser_of(__doc__, "surface:40,cmaes:200,gp:200", 5)
    parser.add_argument("--starts", default="learned")
    parser.add_argument("--space", default="residual")
    parser.add_argument("--radius", type=float)
    parser.add_argument("--against")
    given = parser.parse_args(argv)
    if given.show:
        print("\n".join(table(json.loads(given.out.read_text(encoding="utf-8")))))
        return
    more = more_of(given)
    options = {"models": given.models, "space": given.space, "radius": given.radius, **more}
    done = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {"options": more, "studies": []}
    assembly = assemble(load_spec(options), Listener(warn=print))
    for start in given.starts.split(","):
        for arm in map(Arm.of, given.arms.split(",")):
            spec = load_spec({**options, "start": start, "sampler": arm.sampler, "signal": arm.signal})
            beginning = opened(spec, assembly)
            if given.against:
                other = opened(load_spec({**options, "start": given.against}), assembly)
                beginning = replace(beginning, against=other.start)
            done.setdefault("starts", {})[f"{start}/{given.space}"] = judged(beginning.objective, beginning.start)
            for seed in range(given.seeds):
                key = {
                    "start": start,
                    "space": given.space,
                    "radius": given.radius,
                    "arm": [arm.sampler, arm.trials, arm.signal],
                }
                if any(each["key"] == key and each["seed"] == seed for each in done["studies"]):
                    continue
                found = run(beginning, arm, seed, spec)
                done["studies"].append({"key": key, **found})
                write_json(given.out, done)
                last = found["stops"][-1]
                steering, held = ("{accuracy:.4f}/{nll:.4f}".format(**last[part]) for part in ("steering", "held out"))
                print(
                    f"{start} {given.space} {arm.sampler}:{arm.trials}:{arm.signal} seed {seed}: "
                    f"signal {last['signal']:.4f} steering {steering} held out {held} images {last['images']:,} "
                    f"sampling {found['sampling']:.1f} s of {found['seconds']:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
