"""What evidence without labels of a shift is worth, on the ways from chosen mixes to the middle of their pool.

    OMP_NUM_THREADS=1 python studies/robust/lines.py --models DIR --out RUNS/NAME.json [OPTION=VALUE ...]
    python studies/robust/lines.py --show RUNS/NAME.json ...

From each start (what the search chooses without a last step, before and after it was learned again, the greedy soup,
the best checkpoint) ways lead to the uniform soup and to the base. Every mix on them is scored on the selection
samples, on those under synthetic shifts where they are images, and on every test split. Kept is by how much it is
better than the start, by each kind of evidence and in truth. Test splits choose nothing here: what they say is what the
evidence is compared with. Outcomes are cached, so that the same command again takes seconds.

``--show`` prints a table for each file: over all ways and shifts, Spearman's rank correlation of evidence and truth
along half of the way (the mean), and how often the evidence has the sign of the truth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

import mixopt
from mixopt import load_spec
from mixopt.assemble import Assembly, assemble
from mixopt.assemble.shifted import with_shifted
from mixopt.comparison.running import checkpoint_mix, ingredient_mixes
from mixopt.errors import DataError
from mixopt.files import write_json
from mixopt.listener import Listener
from mixopt.scoring.objective import Objective
from mixopt.scoring.outcomes import Outcomes
from mixopt.spec import StudySpec
from mixopt.stages.plan import plan_search, steered
from mixopt.stages.start import find_start
from mixopt.values.mix import Mix, combine
from mixopt.values.samples import SYNTHETIC, VALIDATION

Floats = NDArray[np.float64]

SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
HALF = 0.5


def probabilities(outcomes: Outcomes) -> Floats:
    """``[n, classes]``, of models that keep all logits."""
    if outcomes.logits is None or outcomes.logits.classes is not None:
        raise DataError("a study of models with few classes, all of whose logits are kept")
    return np.exp(outcomes.logits.values.astype(np.float64))


def nuclear(found: Floats) -> float:
    """The nuclear norm of probabilities ``[n, k]``, 1 where all samples are sure and classes alike."""
    count, classes = found.shape
    return float(np.linalg.norm(found, "nuc") / np.sqrt(count * min(count, classes)))


class Ways:
    """Mixes of one pool, and what is said of them.

    Args:
        objective: With a split ``synthetic`` where samples are images.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective.whole().needing("logits")
        self._held = objective.tuning
        self.shifts = [name for name in objective.evaluators if name not in (VALIDATION, SYNTHETIC)]
        self._is_image = SYNTHETIC in objective.evaluators
        members = ingredient_mixes(objective).values()
        self._votes = {
            split: np.mean([probabilities(self._outcomes(mix, split)) for mix in members], axis=0).argmax(axis=1)
            for split in (VALIDATION, *self.shifts)
        }

    def said(self, mix: Mix, start: Mix) -> dict[str, dict[str, float]]:
        """By split, by how much a mix is better than a start, by each kind of evidence and in truth."""
        held = slice(self._held, None)
        right, loss = self._better(mix, start, VALIDATION)
        common = {"held out": right[held].mean(), "held out, with loss": (right + loss)[held].mean()}
        if self._is_image:
            more, less = self._better(mix, start, SYNTHETIC)
            common |= {"shifted": more.mean(), "shifted, loss": less.mean()}
            common["held out and shifted, with loss"] = common["held out, with loss"] + (more + less).mean()
            same = [
                (self._outcomes(each, VALIDATION).predicted == self._outcomes(each, SYNTHETIC).predicted).mean()
                for each in (mix, start)
            ]
            common["agreement under shift"] = same[0] - same[1]
        found = {split: {**common, **self._without_labels(mix, start, split, right[held])} for split in self.shifts}
        return {split: {kind: round(float(value), 5) for kind, value in each.items()} for split, each in found.items()}

    def accuracy(self, mix: Mix) -> dict[str, float]:
        """On every split."""
        labels = {name: each.split.labels for name, each in self._objective.evaluators.items()}
        return {name: float(np.mean(self._outcomes(mix, name).predicted == labels[name])) for name in labels}

    def _without_labels(self, mix: Mix, start: Mix, split: str, held: Floats) -> dict[str, float]:
        ours, theirs = (probabilities(self._outcomes(each, split)) for each in (mix, start))
        here, there = (self._voted(mix, start, each) for each in (VALIDATION, split))
        return {
            "confidence": float(ours.max(axis=1).mean() - theirs.max(axis=1).mean()),
            "nuclear norm": nuclear(ours) - nuclear(theirs),
            "vote": float(there.mean()),
            "vote against held out": float(held.mean() + there.mean() - here[self._held :].mean()),
            "truth": float(self._better(mix, start, split)[0].mean()),
        }

    def _better(self, mix: Mix, start: Mix, split: str) -> tuple[Floats, Floats]:
        """By how much each sample is answered better, and what less it loses."""
        labels = self._objective.evaluators[split].split.labels
        ours, theirs = self._outcomes(mix, split), self._outcomes(start, split)
        return (ours.predicted == labels) - (theirs.predicted == labels).astype(float), theirs.losses - ours.losses

    def _voted(self, mix: Mix, start: Mix, split: str) -> Floats:
        vote = self._votes[split]
        ours, theirs = (self._outcomes(each, split).predicted == vote for each in (mix, start))
        return ours - theirs.astype(float)

    def _outcomes(self, mix: Mix, split: str) -> Outcomes:
        return self._objective.outcomes(mix, split, len(self._objective.evaluators[split].split))


def starts_of(spec: StudySpec, assembly: Assembly, chosen: Mix) -> tuple[dict[str, Mix], dict[str, Mix]]:
    """Where ways begin, and where they lead."""
    objective = assembly.objective
    start = find_start(plan_search(spec, assembly), assembly, Listener())
    made = {name: entry.mix for name, entry in start.baselines.items() if entry.mix is not None}
    ends = {"uniform": made["uniform"]}
    if objective.pool.base is not None:
        ends["base"] = checkpoint_mix(objective, objective.pool.base)
    begins = {"search": chosen, "before refit": start.mix, "greedy": made["greedy"], "individual": made["individual"]}
    return begins, ends


def measured(models: str, run: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """A pool's ways."""
    heard = Listener(warn=print)
    found = mixopt.search(models, **options, robust="off", out=run, listener=heard)
    spec = load_spec({"models": models, **options, "precision": found.report.precision["mode"]})
    assembly = assemble(spec, heard)
    assembly = replace(assembly, objective=steered(spec, assembly.objective))
    begins, ends = starts_of(spec, assembly, found.recipe.mix)
    ways = Ways(with_shifted(spec, assembly, heard) or assembly.objective)
    rows = {**begins, **ends, **ingredient_mixes(assembly.objective)}
    done: dict[str, Any] = {"pool": Path(models).name, "rows": {name: ways.accuracy(mix) for name, mix in rows.items()}}
    for begin, mix in begins.items():
        for end, target in ends.items():
            done.setdefault("ways", {})[f"{begin} to {end}"] = {
                str(share): ways.said(combine([mix, target], [1 - share, share]), mix) for share in SHARES
            }
            print(f"{done['pool']}: {begin} to {end}", flush=True)
    return done


def worth(done: Mapping[str, Any], shifts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Evidence to its rank correlation with the truth along half of each way, and to how often its sign is right."""
    found: dict[str, list[tuple[float, float]]] = {}
    for points in done["ways"].values():
        some = [point for share, point in points.items() if float(share) <= HALF]
        for shift in shifts:
            truth = [0.0, *(point[shift]["truth"] for point in some)]
            for kind in some[0][shift]:
                said = [0.0, *(point[shift][kind] for point in some)]
                if kind != "truth" and len(set(said)) > 1 and len(set(truth)) > 1:
                    right = np.mean(np.sign(said[1:]) == np.sign(truth[1:]))
                    found.setdefault(kind, []).append((float(stats.spearmanr(said, truth).statistic), float(right)))
    return {kind: (float(each[:, 0].mean()), float(each[:, 1].mean())) for kind, each in
            ((kind, np.array(pairs)) for kind, pairs in found.items())}  # fmt: skip


def shown(paths: Sequence[str]) -> list[str]:
    """Lines of a table, a column for each pool."""
    every = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    columns = {done["pool"]: worth(done, _shifts(done)) for done in every}
    kinds = list(dict.fromkeys(kind for column in columns.values() for kind in column))
    lines = ["| evidence | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for kind in kinds:
        cells = [f"{each[kind][0]:+.2f}, {each[kind][1]:.0%}" if kind in each else "-" for each in columns.values()]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def _shifts(done: Mapping[str, Any]) -> list[str]:
    """Test splits but the first, which is in distribution."""
    way = next(iter(done["ways"].values()))
    return list(next(iter(way.values())))[1:]


def main(argv: Sequence[str] | None = None) -> None:
    """Score the ways and write what was found, or show what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", nargs="+", help="files that were written")
    parser.add_argument("options", nargs="*", help="option=value in JSON, as keys of a study.toml")
    given = parser.parse_args(argv)
    if given.show:
        print("\n".join(shown(given.show)))
        return
    if not (given.models and given.out):
        parser.error("expected --models and --out, or --show")
    options = {key: json.loads(value) for key, _, value in (each.partition("=") for each in given.options)}
    write_json(given.out, measured(given.models, given.out.with_suffix(""), options))


if __name__ == "__main__":
    main()
