"""What evidence without labels of a shift is worth, on lines from mixes that were chosen to the rest of their pool.

    OMP_NUM_THREADS=1 python studies/robust/lines.py --models DIR --out RUNS/NAME.json [--starts search,greedy,individual]
        [OPTION=VALUE ...]

From each start, lines go to the uniform soup, to the base and to the flat middle of the search's trials (the mean of
those level with the chosen mix, within one standard error). Every mix on them is scored on the selection samples, on
these under ``--shifts synthetic`` where they are images, and on every test split; beside accuracy and loss, what a
split says without its labels is kept: mean confidence, nuclear norm, agreement with the ensemble of the ingredients,
and, of the selection samples, agreement of a sample with itself under synthetic shift. Differences from the start are
paired, with standard errors. Test splits choose nothing here; what they say is what the evidence is compared with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mixopt
from mixopt import load_spec
from mixopt import study as studies
from mixopt.assemble import assemble
from mixopt.comparison.running import checkpoint_mix, ingredient_mixes
from mixopt.errors import DataError
from mixopt.files import write_json
from mixopt.listener import Listener
from mixopt.scoring.objective import Objective
from mixopt.scoring.outcomes import Outcomes
from mixopt.stages.plan import steered
from mixopt.values.mix import Mix, combine
from mixopt.values.samples import SYNTHETIC, VALIDATION

Floats = NDArray[np.float64]

STEPS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)


def probabilities(outcomes: Outcomes) -> Floats:
    """``[n, classes]``, of models that keep all logits."""
    if outcomes.logits is None or outcomes.logits.classes is not None:
        raise DataError("a study of models with few classes, all of whose logits are kept")
    return np.exp(outcomes.logits.values.astype(np.float64))


def without_labels(found: Floats, vote: NDArray[np.int64]) -> dict[str, float]:
    """What probabilities ``[n, k]`` say by themselves, and by a vote ``[n]``."""
    count, classes = found.shape
    return {
        "confidence": float(found.max(axis=1).mean()),
        "nuclear": float(np.linalg.norm(found, "nuc") / np.sqrt(count * min(count, classes))),
        "entropy": float(-(found * np.log(np.maximum(found, 1e-12))).sum(axis=1).mean()),
        "vote": float((found.argmax(axis=1) == vote).mean()),
    }


def paired(ours: Floats, theirs: Floats) -> list[float]:
    """Mean difference and its standard error."""
    difference = ours - theirs
    return [float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))]


class Lines:
    """Everything about the mixes of one pool.

    Args:
        objective: With a synthetic split where there is one.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective.whole().needing("logits")
        self.splits = list(objective.evaluators)
        members = ingredient_mixes(objective).values()
        self.votes = {
            split: np.mean([probabilities(self.outcomes(mix, split)) for mix in members], axis=0).argmax(axis=1)
            for split in self.splits
        }

    def outcomes(self, mix: Mix, split: str) -> Outcomes:
        """On a whole split."""
        return self.objective.outcomes(mix, split, len(self.objective.evaluators[split].split))

    def measured(self, mix: Mix, start: Mix) -> dict[str, Any]:
        """By split, what a mix does, and by how much it does that better than the start."""
        found: dict[str, Any] = {}
        for split in self.splits:
            labels = self.objective.evaluators[split].split.labels
            ours, theirs = self.outcomes(mix, split), self.outcomes(start, split)
            right, was = ours.predicted == labels, theirs.predicted == labels
            found[split] = {
                "accuracy": float(right.mean()),
                "nll": float(ours.losses.mean()),
                "more": paired(right.astype(float), was.astype(float)),
                "less": paired(theirs.losses, ours.losses),
                **without_labels(probabilities(ours), self.votes[split]),
            }
            held = slice(self.objective_tuning, None)
            if split in (VALIDATION, SYNTHETIC):
                found[split]["held"] = {
                    "more": paired(right[held].astype(float), was[held].astype(float)),
                    "less": paired(theirs.losses[held], ours.losses[held]),
                }
        if SYNTHETIC in found:
            same = self.outcomes(mix, VALIDATION).predicted == self.outcomes(mix, SYNTHETIC).predicted
            found[SYNTHETIC]["agreement"] = float(same.mean())
        return found

    objective_tuning = 0


def middle(run: Path, found: mixopt.SearchResult, objective: Objective) -> Mix:
    """The mean of the trials that are level with the chosen mix, within one standard error."""
    del found, run, objective
    raise NotImplementedError


def main(argv: Sequence[str] | None = None) -> None:
    """Score the lines, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--starts", default="search,before,greedy,individual")
    parser.add_argument("options", nargs="*", help="option=value in JSON, as keys of a study.toml")
    given = parser.parse_args(argv)
    more: dict[str, Any] = {key: json.loads(value) for key, _, value in (each.partition("=") for each in given.options)}
    run = given.out.with_suffix("")
    report = mixopt.search(given.models, **more, out=run, listener=Listener(info=print, warn=print))
    more.pop("precision", None)
    options: Mapping[str, Any] = {"models": given.models, **more, "precision": report.report.precision["mode"]}
    try:
        spec = load_spec({**options, "shifts": "synthetic"})
        assembly = assemble(spec, Listener(warn=print))
    except DataError as error:
        print(error)
        spec = load_spec(options)
        assembly = assemble(spec, Listener(warn=print))
    objective = steered(spec, assembly.objective)
    lines = Lines(objective)
    lines.objective_tuning = objective.tuning
    from mixopt.stages.plan import plan_search
    from mixopt.stages.start import find_start
    from dataclasses import replace

    plan = plan_search(load_spec(options), assembly)
    start = find_start(plan, replace(assembly, objective=objective), Listener())
    made = {name: entry.mix for name, entry in start.baselines.items() if entry.mix is not None}
    made |= {"search": report.recipe.mix, "before": start.mix}
    ends = {"uniform": made["uniform"]}
    if objective.pool.base is not None:
        ends["base"] = checkpoint_mix(objective, objective.pool.base)
    done: dict[str, Any] = {"pool": Path(given.models).name, "tuning": objective.tuning, "lines": {}, "rows": {}}
    for name, mix in [*made.items(), *ends.items(), *ingredient_mixes(objective).items()]:
        done["rows"][name] = lines.measured(mix, made["search"])
    for name in given.starts.split(","):
        for end, target in ends.items():
            every = {}
            for step in (0.0, *STEPS):
                mix = combine([made[name], target], [1 - step, step])
                every[str(step)] = lines.measured(mix, made[name])
            done["lines"][f"{name}/{end}"] = every
            write_json(given.out, done)
            print(name, end, flush=True)
    write_json(given.out, done)


if __name__ == "__main__":
    main()
