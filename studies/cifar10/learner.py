"""Which learned soup generalises, and which signal tells: cross-validated on the selection split alone.

    OMP_NUM_THREADS=1 python studies/cifar10/learner.py learn --models DIR [--folds 5] [--rows block:cosine,...]
    OMP_NUM_THREADS=1 python studies/cifar10/learner.py samples --models DIR [--rows block:cosine,...]
    OMP_NUM_THREADS=1 python studies/cifar10/learner.py signal --models DIR [--mixes 90]
    OMP_NUM_THREADS=1 python studies/cifar10/learner.py ceiling --models DIR --test NAME [--rows block:cosine,...]

``learn``: every row is learned on all folds but one and scored on that one; differences to the first row are paired.
``samples``: every row is learned on 1,000, 2,000, ... samples of all folds but one and scored on that one: what more
samples are worth. ``signal``: mixes around a learned soup are scored on four fifths and on the other fifth of the
split, 40 times at random; how accuracy, loss and the two together on the former correlate with accuracy on the latter.
No test split is opened. ``ceiling`` chooses nothing: every row is learned on the selection split and one half of a
test split, and scored on the other half (what more samples of that very distribution would give), and learned on the
whole test split and scored there (what the best mix of that kind could at most score). Prints a table and one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mixopt import load_spec, open_objective
from mixopt.comparison.running import ingredient_mixes
from mixopt.methods.learned import Training, learn
from mixopt.scoring.cache import Gradient
from mixopt.scoring.objective import Objective
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix
from mixopt.values.samples import stratified_order

ROWS = {
    "block:cosine": ("block", Training("affine", 3, 0.2, 0.0, 256, 0.1, "cosine")),
    "block:constant": ("block", Training("affine", 5, 0.2, 0.0, 256, 0.1)),
    "tensor:cosine": ("tensor", Training("affine", 3, 0.2, 0.0, 256, 0.1, "cosine")),
    "tensor:constant": ("tensor", Training("affine", 5, 0.2, 0.0, 256, 0.1)),
    "whole:cosine": ("whole", Training("affine", 3, 0.2, 0.0, 256, 0.1, "cosine")),
}
Numbers = NDArray[np.int64]


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


def learned(objective: Objective, name: str, numbers: Numbers) -> Mix:
    """A row, learned from some of the samples."""
    groups, training = ROWS[name]
    part = cast(Objective, Part(objective, numbers))
    return learn(part, ingredient_mixes(objective), make_groups(groups, objective.pool.sizes), training, 0).mix


def cross_validate(objective: Objective, rows: list[str], count: int) -> dict[str, Any]:
    """Held-out hits and losses of every row, and their paired differences to the first."""
    labels = objective.evaluators["validation"].split.labels
    folds = np.array_split(np.arange(len(labels)), 5)
    found: dict[str, Any] = {}
    first: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    for name in rows:
        hits, losses = [], []
        for held in folds[-count:]:
            rest = np.setdiff1d(np.arange(len(labels)), held)
            outcomes = objective.score(learned(objective, name, rest)).outcomes
            hits.append((outcomes.predicted == labels)[held].astype(float))
            losses.append(outcomes.losses[held])
        all_hits, all_losses = np.concatenate(hits), np.concatenate(losses)
        first = first or (all_hits, all_losses)
        change = all_losses - first[1]
        found[name] = {
            "accuracy": float(all_hits.mean()),
            "nll": float(all_losses.mean()),
            "nll_change": float(change.mean()),
            "error": float(change.std() / np.sqrt(len(change))),
        }
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in found[name].values()) + " |", flush=True)
    return found


def by_samples(objective: Objective, rows: list[str], step: int = 1000) -> dict[str, Any]:
    """Held-out accuracy and loss of every row by the number of samples it was learned from, over five folds."""
    labels = objective.evaluators["validation"].split.labels
    folds = np.array_split(np.arange(len(labels)), 5)
    found: dict[str, Any] = {}
    for name in rows:
        first: NDArray[np.float64] | None = None
        for size in range(step, len(labels) - len(folds[0]) + 1, step):
            hits, losses = [], []
            for fold, held in enumerate(folds):
                rest = np.random.default_rng(fold).permutation(np.setdiff1d(np.arange(len(labels)), held))[:size]
                outcomes = objective.score(learned(objective, name, np.sort(rest))).outcomes
                hits.append((outcomes.predicted == labels)[held])
                losses.append(outcomes.losses[held])
            lost = np.concatenate(losses)
            first = lost if first is None else first
            values = (np.concatenate(hits).mean(), lost.mean(), (lost - first).mean(), (lost - first).std())
            accuracy, nll, change, spread = map(float, values)
            error = spread / np.sqrt(len(lost))
            found.setdefault(name, {})[size] = {"accuracy": accuracy, "nll": nll, "nll_change": change, "error": error}
            print(f"| {name} | {size:,} | {accuracy:.4f} | {nll:.4f} | {change:+.4f} ± {error:.4f} |", flush=True)
    return found


def ceiling(objective: Objective, rows: list[str], own: Numbers, test: Numbers) -> dict[str, Any]:
    """Accuracies on a test split's samples, of what is learned from other samples and from themselves.

    Args:
        objective: Of a split that holds the selection split and the test split.
        rows: What to learn.
        own: The numbers of the selection split's samples there.
        test: Those of the test split's.
    """
    labels = objective.evaluators["validation"].split.labels
    halves = test[::2], test[1::2]

    def right(name: str, numbers: Numbers) -> NDArray[np.bool_]:
        return np.asarray(objective.score(learned(objective, name, numbers)).outcomes.predicted == labels)

    found: dict[str, Any] = {}
    for name in rows:
        crossed = [right(name, np.concatenate([own, half]))[other].mean() for half, other in (halves, halves[::-1])]
        values = (right(name, own)[test].mean(), np.mean(crossed), right(name, test)[test].mean())
        found[name] = dict(zip(("selection", "selection and half", "test itself"), map(float, values), strict=True))
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in found[name].values()) + " |", flush=True)
    return found


def joined(first: Path, second: Path, folder: Path) -> tuple[Path, Numbers, Numbers]:
    """One split of the samples of two, and the numbers of both's samples in its fixed order."""
    with np.load(first) as one, np.load(second) as other:
        arrays = {key: np.concatenate([one[key], other[key]]) for key in ("x", "y")}
        arrays |= {key: one[key] for key in one.files if key not in arrays}
        count = len(one["y"])
    np.savez(folder / "both.npz", **arrays)
    places = np.argsort(stratified_order(arrays["y"]))
    return folder / "both.npz", np.sort(places[:count]), np.sort(places[count:])


def correlate(objective: Objective, mixes: int) -> dict[str, Any]:
    """Correlations over mixes around a learned soup."""
    labels = objective.evaluators["validation"].split.labels
    centre = learned(objective, "block:cosine", np.arange(4 * len(labels) // 5))
    random = np.random.default_rng(0)
    columns = [centre.columns.index(name) for name in objective.pool.ingredients]
    uniform = np.zeros(len(centre.columns))
    uniform[columns] = 1 / len(columns)
    hits, losses = [], []
    for _ in range(mixes):
        moves = np.zeros_like(centre.coefficients)
        moves[:, columns] = random.normal(0, random.choice([0.02, 0.04, 0.08]), (len(moves), len(columns)))
        moves[:, columns] -= moves[:, columns].mean(axis=1, keepdims=True)
        share = random.uniform(0, 0.6)
        rows = (1 - share) * centre.coefficients + share * uniform + moves
        outcomes = objective.score(Mix(centre.groups, centre.columns, rows)).outcomes
        hits.append(outcomes.predicted == labels)
        losses.append(outcomes.losses)
    right, lost = np.array(hits, dtype=float), np.array(losses)
    best = np.argsort(-right.mean(axis=1))[: 4 * mixes // 9]
    found = {}
    for name, chosen in (("all mixes", np.arange(mixes)), ("the better 4 of 9", best)):
        rows = []
        for seed in range(40):
            order = np.random.default_rng(seed).permutation(len(labels))
            steer, held = order[: 4 * len(labels) // 5], order[4 * len(labels) // 5 :]
            accuracy, loss = right[chosen][:, steer].mean(axis=1), lost[chosen][:, steer].mean(axis=1)
            truth = right[chosen][:, held].mean(axis=1)
            rows.append([np.corrcoef(signal, truth)[0, 1] for signal in (accuracy, -loss, accuracy - loss)])
        found[name] = dict(zip(("accuracy", "loss", "accuracy - loss"), np.mean(rows, axis=0).tolist(), strict=True))
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in found[name].values()) + " |", flush=True)
    return found


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["learn", "samples", "signal", "ceiling"])
    parser.add_argument("--models", required=True)
    parser.add_argument("--cache")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--mixes", type=int, default=90)
    parser.add_argument("--test", default="test", help="ceiling: which test split")
    options = parser.parse_args()
    rows = options.rows.split(",")
    given: dict[str, Any] = {"models": options.models, "confirm": 0.0, "data": {"test": {}}, "cache": options.cache}
    if options.kind == "ceiling":
        data = load_spec({"models": options.models}).data
        if data.search is None or options.test not in data.test:
            parser.error(f"--test {options.test}: the pool has {', '.join(data.test)}, and needs a selection split")
        with tempfile.TemporaryDirectory() as folder:
            both, own, test = joined(data.search, data.test[options.test], Path(folder))
            objective = open_objective(load_spec({**given, "data": {"search": both, "test": {}}}))
    else:
        objective = open_objective(load_spec(given))
    if options.kind == "samples":
        print("| row | samples | accuracy | nll | nll less the first row's |\n|---|---|---|---|---|")
        found = by_samples(objective, rows)
    elif options.kind == "ceiling":
        print("| row | from the selection split | and from half of the test split | from the test split itself |")
        print("|---|---|---|---|")
        found = ceiling(objective, rows, own, test)
    elif options.kind == "learn":
        print("| row | accuracy | nll | nll less the first row's | standard error |\n|---|---|---|---|---|")
        found = cross_validate(objective, rows, options.folds)
    else:
        print("| mixes | accuracy | loss | accuracy - loss |\n|---|---|---|---|")
        found = correlate(objective, options.mixes)
    print(json.dumps({"study": options.kind, "models": options.models, "found": found}))


if __name__ == "__main__":
    main()
