"""Periodic Model Stock against Model Stock after training, on scikit-learn's digits.

Every seed is a new division of the digits, a new base and a new fine-tuning recipe of the demo's sweep; what is
compared within a seed shares all of them, and the two runs' order of images and augmentations. Prints the tables of
README.md and writes results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixopt import demo
from mixopt.methods.model_stock import merge, products, ratio

HERE = Path(__file__).parent
PART_SIZES = {"base": 300, "tune": 440, "val": 520, "test": 537}  # disjoint, 1,797 images in all
SHIFTS = ("inverted", "blurred", "noisy", "edges")
COLUMNS = ("val", "test", *SHIFTS, "shifts")
LEARNED = 0.5  # accuracy on val below which a base did not learn, so that its seed is left out of the means
PAIRS = (
    ("periodic stock", "stock"),
    ("periodic stock", "average"),
    ("periodic stock", "best single"),
    ("periodic stock", "periodic average"),
    ("periodic stock, every 4", "stock"),
    ("following stock", "stock"),
    ("following stock", "periodic stock"),
    ("stock", "average"),
    ("stock", "best single"),
    ("average", "best single"),
)

State = Mapping[str, Tensor]
Merger = Callable[[Sequence[State], State], dict[str, Tensor]]
Row = dict[str, float]


@dataclass
class Setting:
    """What one seed holds fixed.

    Attributes:
        start: The CLIP with the base's weights.
        head: Its zero-shot head, ``[width, classes]``.
        part: The images to fine-tune on.
        recipes: The two runs' recipes, which differ in their seeds.
        splits: What is scored.
        base: The base's weights.
    """

    start: Any
    head: Tensor
    part: demo.Part
    recipes: tuple[demo.Hyperparameters, demo.Hyperparameters]
    splits: dict[str, demo.Part]
    base: State = field(init=False)

    def __post_init__(self) -> None:
        self.base = deepcopy(self.start.state_dict())


def setting_of(seed: int) -> Setting:
    """Divide the digits, train a base, draw a recipe."""
    rng = np.random.default_rng(seed)
    parts = demo.draw_parts(demo.scans(), PART_SIZES, rng)
    base = demo.train_base(parts["base"], replace(demo.BASE, seed=int(rng.integers(2**31))), lambda: None)
    recipe = demo.draw_hyperparameters(rng)
    images, labels = parts["test"]
    shifted = {name: (x, labels) for name, x in demo.shifted(images, rng).items()}
    recipes = (recipe, replace(recipe, seed=int(rng.integers(2**31))))
    splits = {"val": parts["val"], "test": parts["test"], **shifted}
    return Setting(*demo.zero_shot(base), parts["tune"], recipes, splits)


def score(setting: Setting, state: State) -> Row:
    """Accuracy on every split, and the mean of the shifts."""
    model = deepcopy(setting.start)
    model.load_state_dict(state)
    row = {}
    with torch.no_grad():
        for name, (images, labels) in setting.splits.items():
            x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255) * 2 - 1
            predicted = (model.encode_image(x, normalize=True) @ setting.head).argmax(1)
            row[name] = float((predicted == torch.from_numpy(labels)).double().mean())
    return row | {"shifts": float(np.mean([row[name] for name in SHIFTS]))}


def average(states: Sequence[State], base: State) -> dict[str, Tensor]:
    """The uniform average, in the form of `merge`; the base has no part in it."""
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in base}


@dataclass(frozen=True)
class Plan:
    """When two runs are merged and how.

    Attributes:
        merger: Makes one model of two.
        every: Epochs between merges; beyond the training's length, after it alone.
        following: Whether the last merge takes the base's place as the point that deltas are taken from.
    """

    merger: Merger
    every: int = 10**9
    following: bool = False


PLANS = {
    "stock": Plan(merge),
    "periodic stock": Plan(merge, every=1),
    "periodic stock, every 4": Plan(merge, every=4),
    "following stock": Plan(merge, every=1, following=True),
    "periodic average": Plan(average, every=1),
}


def mean_ratio(states: Sequence[State], base: State) -> float:
    """Model Stock's ratio, averaged over the parameters that the runs train."""
    found = []
    for name, origin in base.items():
        if not states[0][name].equal(states[1][name]):
            share = ratio(products([state[name].flatten() for state in states], origin.flatten())).t
            found.append((share, origin.numel()))
    return float(np.average([share for share, _ in found], weights=[count for _, count in found]))


def train_two(setting: Setting, plan: Plan) -> tuple[dict[str, Tensor], list[State], list[float]]:
    """Train two runs and merge them as planned, and after the last epoch.

    Optimizers and schedules go on across merges as if nothing had happened to the weights.

    Returns:
        The merged weights, the two runs' before the last merge, and Model Stock's mean ratio at every merge.
    """
    models = [deepcopy(setting.start) for _ in setting.recipes]
    runs = [
        demo.training(model, model.visual, lambda: setting.head, setting.part, recipe)
        for model, recipe in zip(models, setting.recipes, strict=True)
    ]
    epochs, anchor, ratios = setting.recipes[0].epochs, setting.base, []
    for epoch in range(1, epochs + 1):
        for run in runs:
            next(run)
        if epoch < epochs and epoch % plan.every:
            continue
        states: list[State] = [model.state_dict() for model in models]
        ratios.append(mean_ratio(states, anchor))
        merged = plan.merger(states, anchor)
        if epoch < epochs:
            for model in models:
                model.load_state_dict(merged)
            anchor = merged if plan.following else anchor
    return merged, states, ratios


def one_seed(seed: int) -> dict[str, Any]:
    """Every row of one seed; the base's alone where it did not learn."""
    setting = setting_of(seed)
    rows: dict[str, Row] = {"base": score(setting, setting.base)}
    ratios: dict[str, list[float]] = {}
    if rows["base"]["val"] < LEARNED:
        return {"seed": seed, "rows": rows, "ratios": ratios}
    for name, plan in PLANS.items():
        merged, runs, ratios[name] = train_two(setting, plan)
        if name == "stock":
            singles = [score(setting, run) for run in runs]
            rows["single"] = {column: float(np.mean([row[column] for row in singles])) for column in COLUMNS}
            rows["best single"] = max(singles, key=lambda row: row["val"])
            rows["average"] = score(setting, average(runs, setting.base))
        rows[name] = score(setting, merged)
    return {"seed": seed, "recipe": asdict(setting.recipes[0]), "rows": rows, "ratios": ratios}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard error."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return {"mean": float(np.mean(values)), "error": error}


def table(head: str, rows: Mapping[str, Mapping[str, dict[str, float]]], sign: str = "") -> str:
    """Points of 100, with standard errors."""
    lines = [f"| {head} | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    for name, row in rows.items():
        cells = [f"{100 * row[column]['mean']:{sign}.2f} ± {100 * row[column]['error']:.2f}" for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run every seed, print the tables, write results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    started = time.process_time()
    found: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    with demo.one_thread():
        for seed in range(options.seeds):
            result = one_seed(seed)
            learned = bool(result["ratios"])
            (found if learned else left_out).append(result)
            outcome = "" if learned else ", left out: the base did not learn"
            print(f"seed {seed}: {time.process_time() - started:.0f} s of one thread{outcome}", flush=True)
    rows = {
        name: {column: spread([each["rows"][name][column] for each in found]) for column in COLUMNS}
        for name in found[0]["rows"]
    }
    differences = {
        f"{one} - {other}": {
            column: spread([each["rows"][one][column] - each["rows"][other][column] for each in found])
            for column in COLUMNS
        }
        for one, other in PAIRS
    }
    ratios = {
        name: {
            "first merge": spread([each["ratios"][name][0] for each in found]),
            "last merge": spread([each["ratios"][name][-1] for each in found]),
        }
        for name in found[0]["ratios"]
    }
    print(table("accuracy, %", rows), table("paired difference, points", differences, "+"), sep="\n\n")
    print("\nmean ratio t at the first and the last merge:")
    for name, ends in ratios.items():
        print(f"  {name}: {ends['first merge']['mean']:.3f}, {ends['last merge']['mean']:.3f}")
    results = {
        "cpu_seconds": round(time.process_time() - started),
        "rows": rows,
        "differences": differences,
        "ratios": ratios,
        "seeds": found,
        "left_out": left_out,
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
