"""Hyperparameters of the learned start, one changed at a time: cross-validated on the selection samples of a pool.

    OMP_NUM_THREADS=1 python studies/defaults/learning.py --models DIR --out RUNS/NAME.json [--folds 5] [--rows ROW,...]
        [OPTION=VALUE ...]
    python studies/defaults/learning.py --show RUNS/NAME.json ...

Every row is learned on all folds but one and judged on that one, for the last so many of five; differences from the
first row are paired over samples, with standard errors. ``leave:q`` leaves the worst q of the checkpoints out, by the
samples that it learns from; ``bagged`` is the mean of four soups, each learned from three quarters. No test split is
opened. What was found goes to ``--out`` row by row; the same command again goes on. ``--show`` prints a table with a
column for each file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mixopt import load_spec, open_objective
from mixopt.comparison.running import ingredient_mixes
from mixopt.files import write_json
from mixopt.listener import Listener
from mixopt.methods.learned import Training, learn
from mixopt.scoring.cache import Gradient
from mixopt.scoring.objective import Objective
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix, combine
from mixopt.values.samples import VALIDATION

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]

FOLDS = 5
PARTS = 4
# What it was before this study: steps of 256 samples, however few there are.
DEFAULT = Training("affine", 3, 0.2, 0.0, 256, 0.1, "cosine")


@dataclass(frozen=True)
class Row:
    """A learner: how it trains, on which layer groups, without which share of checkpoints, in how many parts."""

    training: Training = DEFAULT
    groups: str = "block"
    left_out: float = 0.0
    parts: int = 1


ROWS = {
    "default": Row(),
    "lr 0.1": Row(replace(DEFAULT, lr=0.1)),
    "lr 0.4": Row(replace(DEFAULT, lr=0.4)),
    "1 pass": Row(replace(DEFAULT, epochs=1)),
    "6 passes": Row(replace(DEFAULT, epochs=6)),
    "batch 64": Row(replace(DEFAULT, batch=64)),
    "batch 64 and 6 passes": Row(replace(DEFAULT, batch=64, epochs=6)),
    "pull 0.1": Row(replace(DEFAULT, weight_decay=0.1)),
    "pull 1": Row(replace(DEFAULT, weight_decay=1.0)),
    "whole": Row(groups="whole"),
    "tensor": Row(groups="tensor"),
    "leave 1/4": Row(left_out=0.25),
    "leave 1/2": Row(left_out=0.5),
    "bagged": Row(parts=PARTS),
}


class Part:
    """An objective that learns from some of the samples alone."""

    def __init__(self, objective: Objective, numbers: Numbers) -> None:
        self.pool = objective.pool
        self.samples = len(numbers)
        self._objective = objective
        self._numbers = numbers

    def gradient(self, mix: Mix, samples: Numbers, scale: float = 1.0) -> Gradient:
        """See `Objective.gradient`."""
        return self._objective.gradient(mix, self._numbers[samples], scale)


def learned(objective: Objective, row: Row, numbers: Numbers) -> Mix:
    """A row's soup from some of the samples."""
    columns = ingredient_mixes(objective)
    if row.left_out:
        labels = objective.evaluators[VALIDATION].split.labels
        scores = {
            name: np.mean((objective.score(mix).outcomes.predicted == labels)[numbers]) for name, mix in columns.items()
        }
        kept = sorted(scores, key=lambda name: -scores[name])[: max(2, round(len(scores) * (1 - row.left_out)))]
        columns = {name: mix for name, mix in columns.items() if name in kept}
    groups = make_groups(row.groups, objective.pool.sizes)
    parts = [numbers]
    if row.parts > 1:
        parts = [np.delete(numbers, np.s_[part :: row.parts]) for part in range(row.parts)]
    mixes = [learn(cast(Objective, Part(objective, part)), columns, groups, row.training, 0).mix for part in parts]
    return combine(mixes, [1 / len(mixes)] * len(mixes))


def judged(objective: Objective, row: Row, count: int) -> tuple[Floats, Floats]:
    """Hits and losses of the samples of the last so many folds, each by a soup that did not learn from them."""
    labels = objective.evaluators[VALIDATION].split.labels
    hits, losses = [], []
    for held in np.array_split(np.arange(len(labels)), FOLDS)[-count:]:
        outcomes = objective.score(learned(objective, row, np.setdiff1d(np.arange(len(labels)), held))).outcomes
        hits.append((outcomes.predicted == labels)[held].astype(float))
        losses.append(outcomes.losses[held])
    return np.concatenate(hits), np.concatenate(losses)


def shown(paths: Sequence[str]) -> list[str]:
    """Lines of a table: by row, gains over the default in points of accuracy and in nats."""
    every = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    lines = ["| row | " + " | ".join(done["pool"] for done in every) + " |", "|---" * (1 + len(every)) + "|"]
    for name in dict.fromkeys(name for done in every for name in done["rows"]):
        cells = []
        for done in every:
            found = done["rows"].get(name)
            if found is None:
                cells.append("-")
            elif name == "default":
                cells.append(f"{found['accuracy']:.4f}, {found['nll']:.4f}")
            else:
                (more, error), (less, unsure) = found["more"], found["less"]
                cells.append(f"{100 * more:+.2f} ± {100 * error:.2f}, {less:+.4f} ± {unsure:.4f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _difference(values: Floats) -> list[float]:
    return [float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))]


def main(argv: Sequence[str] | None = None) -> None:
    """Learn and judge the rows that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", nargs="+", help="files that were written")
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("options", nargs="*", help="option=value in JSON, as keys of a study.toml")
    given = parser.parse_args(argv)
    if given.show:
        print("\n".join(shown(given.show)))
        return
    options = {key: json.loads(value) for key, _, value in (each.partition("=") for each in given.options)}
    options["data"] = {**options.get("data", {}), "test": {}}
    objective = open_objective(load_spec({"models": given.models, "confirm": 0.0, **options}), Listener(warn=print))
    done: dict[str, Any] = {"pool": Path(given.models).name, "folds": given.folds, "rows": {}}
    first = judged(objective, ROWS["default"], given.folds)
    for name in given.rows.split(","):
        hits, losses = judged(objective, ROWS[name], given.folds)
        done["rows"][name] = {
            "accuracy": float(hits.mean()),
            "nll": float(losses.mean()),
            "more": _difference(hits - first[0]),
            "less": _difference(first[1] - losses),
        }
        write_json(given.out, done)
        print(name, done["rows"][name], flush=True)


if __name__ == "__main__":
    main()
