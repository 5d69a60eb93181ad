"""Fronts of samplers side by side: two splits that steer, the same start; judged on samples that steered nothing.

    OMP_NUM_THREADS=1 python studies/surface/fronts.py --models DIR --out RUNS/NAME.json [--arms surface:40,nsgaii:200]
        [--seeds 3] [--start greedy] [OPTION=VALUE ...]

The validation split and synthetic shifts of it steer (``--shifts synthetic --pareto``). Of every study the hypervolume
is taken that the trials so far dominate, in units of 1e-4 of the squared smooth signal, above a reference that lies
0.1 below the start in both: by what steered, and of the same front by the samples that ``--confirm`` holds back. What
was measured goes to ``--out`` study by study; the same command again goes on. ``--show`` prints the table: means over
seeds, from the least to the most.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState
from samplers import STOPS, Arm, Beginning, more_of, opened, parser_of

from mixopt import load_spec
from mixopt import study as search
from mixopt.assemble import assemble
from mixopt.files import write_json
from mixopt.listener import Listener
from mixopt.scoring.objective import Objective
from mixopt.spec import StudySpec
from mixopt.study.fronts import undominated
from mixopt.study.studies import mix_of
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION

# How far below the start the reference lies.
BELOW = 0.1


def volume(points: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """The area that points ``[n, 2]`` dominate above a reference, higher being better."""
    area, above = 0.0, float(reference[1])
    for first, second in sorted(points.tolist(), reverse=True):
        if second > above and first > reference[0]:
            area, above = area + (first - float(reference[0])) * (second - above), second
    return area


def held_out(objective: Objective, mix: Mix) -> list[float]:
    """The signal on the samples of each split that steered nothing."""
    whole, found = objective.whole(), []
    for name in (VALIDATION, *objective.weights):
        outcomes = whole.outcomes(mix, name, whole.count(name)).rest(objective.count(name))
        labels = whole.evaluators[name].split.labels[objective.count(name) :]
        found.append(objective.signal.sign * objective.signal.of(labels, outcomes))
    return found


def run(beginning: Beginning, arm: Arm, seed: int, spec: StudySpec) -> dict[str, Any]:
    """One study."""
    objective, space = beginning.objective.weighing(spec.steering), beginning.space
    with tempfile.TemporaryDirectory() as folder:
        storage = search.open_storage(Path(folder) / "study.journal", None)
        direction = objective.signal.direction
        study = search.open_study(storage, "study", direction, objectives=1 + len(spec.steering))
        schedule = search.Schedule(arm.sampler, arm.trials, seed, spec.population, evidence=beginning.evidence)
        search.run_trials(study, objective, space, schedule)
        stops = list(stops_of(study, objective, beginning))
    return {"arm": [arm.sampler, arm.trials], "seed": seed, "dims": space.dims, "stops": stops}


def stops_of(study: optuna.Study, objective: Objective, beginning: Beginning) -> Iterator[dict[str, Any]]:
    """What the front so far is worth, as the study goes on."""
    trials = [each for each in study.get_trials(deepcopy=False) if each.state == TrialState.COMPLETE]
    values = objective.signal.sign * np.array([each.values for each in trials])
    reference = held_out(objective, beginning.start)
    for stop in sorted({*(each for each in STOPS if each < len(trials)), len(trials)}):
        front = np.flatnonzero(undominated(values[:stop]))
        others = np.array([held_out(objective, mix_of(trials[number], beginning.space)) for number in front])
        yield {
            "trials": stop,
            "images": sum(each.user_attrs["images"] for each in trials[:stop]),
            "front": len(front),
            "steering": volume(values[front], values[0] - BELOW),
            "held out": volume(others, np.array(reference) - BELOW),
        }


def table(done: dict[str, Any]) -> list[str]:
    """Lines of a table: each arm at its stops, means over its seeds, and from the least to the most."""
    lines = ["| arm | seeds | trials | images | on the front | steering | held out |", "|---|---|---|---|---|---|---|"]
    for arm in dict.fromkeys(tuple(each["arm"]) for each in done["studies"]):
        studies = [each for each in done["studies"] if tuple(each["arm"]) == arm]
        for stop in sorted({each["trials"] for study in studies for each in study["stops"]}):
            some = [each for study in studies for each in study["stops"] if each["trials"] == stop]
            images, front = (float(np.mean([each[what] for each in some])) for what in ("images", "front"))
            cells = []
            for what in ("steering", "held out"):
                found = [1e4 * each[what] for each in some]
                cells.append(f"{np.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})")
            lines.append(
                f"| {arm[0]}:{arm[1]} | {len(some)} | {stop} | {images:,.0f} | {front:.0f} | {' | '.join(cells)} |"
            )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Run the arms, and print a line for each study."""
    parser = parser_of(__doc__, "surface:40,nsgaii:200", 3)
    parser.add_argument("--start", default="greedy")
    given = parser.parse_args(argv)
    done = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {"studies": []}
    if given.show:
        print("\n".join(table(done)))
        return
    options = {"models": given.models, "start": given.start, "shifts": "synthetic", "pareto": True, **more_of(given)}
    assembly = assemble(load_spec(options), Listener(warn=print))
    for arm in map(Arm.of, given.arms.split(",")):
        spec = load_spec({**options, "sampler": arm.sampler})
        beginning = opened(spec, assembly)
        for seed in range(given.seeds):
            if any(each["arm"] == [arm.sampler, arm.trials] and each["seed"] == seed for each in done["studies"]):
                continue
            done["studies"].append(run(beginning, arm, seed, spec))
            write_json(given.out, done)
            last = done["studies"][-1]["stops"][-1]
            print(f"{arm.sampler}:{arm.trials} seed {seed}: {last}", flush=True)


if __name__ == "__main__":
    main()
