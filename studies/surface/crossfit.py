"""How often the last choice of a search on a surface takes a step, where there is something to gain and where not.

    OMP_NUM_THREADS=1 python studies/surface/crossfit.py --searches 100

No pool: logits of 500 samples and 5 classes that are quadratic in 15 dimensions (5 layer groups of 4 columns), 50 mixes
scored around the start, and labels drawn from the probabilities at a point along which all layer groups move alike, so
far from the start that the loss there is lower by ``gain`` nats; of no gain, from those at the start. What is really
gained is over all labels that could have been drawn. Prints a table, and writes crossfit.json to ``--results``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq

from mixopt.scoring.logits import outcomes_of, told
from mixopt.scoring.outcomes import Outcomes
from mixopt.spaces.linear import Affine
from mixopt.study import cross_fit, make_folds, regions_of
from mixopt.study.landscape import Landscape, Steering
from mixopt.surface.fitting import fit
from mixopt.values.groups import make_groups
from mixopt.values.kept_logits import KeptLogits
from mixopt.values.metrics import METRICS, smoothed
from mixopt.values.mix import constant
from mixopt.values.samples import VALIDATION

Floats = NDArray[np.float64]

GROUPS, COLUMNS, CLASSES, SAMPLES, SCORED = 5, 4, 5, 500, 50
# Of the effect of layer groups, what they share.
SHARED = 0.7
HALF = 0.5
GAINS = (0.0, 0.003, 0.01, 0.03)
SIGNALS = ("nll", "accuracy")


class World:
    """Logits of all mixes of a space.

    Args:
        seed: Of everything random.
    """

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        names = tuple(f"model_{number}" for number in range(COLUMNS))
        groups = make_groups("tensor", {f"block.{number}": 1 for number in range(GROUPS)})
        self.space = Affine(constant(groups, names, np.full(COLUMNS, 1 / COLUMNS)), names, 1.0)
        shape, dims = (SAMPLES, CLASSES), self.space.dims
        draw = self.random.normal
        self._base = 2 * draw(size=shape)
        shared = np.sqrt(SHARED) * draw(size=(1, COLUMNS - 1, *shape)) / GROUPS
        own = np.sqrt(1 - SHARED) * draw(size=(GROUPS, COLUMNS - 1, *shape)) / np.sqrt(GROUPS)
        self._slopes = (shared + own).reshape(dims, *shape)
        self._curves, self._directions = 0.3 * draw(size=(3, *shape)), draw(size=(3, dims)) / np.sqrt(dims)
        starts = self.space.to_mix(np.zeros(dims)).coefficients
        self._moves = np.stack([(self.space.to_mix(each).coefficients - starts).ravel() for each in np.eye(dims)], 1)
        self._starts = starts.ravel()

    def chances(self, point: Floats) -> Floats:
        """Log-probabilities ``[samples, classes]`` at a point ``[dims]``."""
        logits = self._base + np.tensordot(point, self._slopes, axes=1)
        logits = logits + np.tensordot((self._directions @ point) ** 2, self._curves, axes=1)
        return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))

    def point_of(self, coefficients: Floats) -> Floats:
        """The point of a mix ``[groups, columns]``, in the box or not."""
        return np.asarray(np.linalg.lstsq(self._moves, coefficients.ravel() - self._starts, rcond=None)[0])

    def outcomes(self, point: Floats, labels: NDArray[np.int64]) -> tuple[Outcomes, KeptLogits]:
        """What a search would see."""
        found = outcomes_of([told(torch.from_numpy(self.chances(point)).float(), torch.from_numpy(labels))])
        assert found.logits is not None
        return found, found.logits

    def far(self, gain: float) -> Floats:
        """A point at which the loss, with labels drawn there, is lower by so much than at the start."""
        (direction,) = [region.basis for name, region in regions_of(self.space, HALF).items() if name == "shared"]
        assert direction is not None
        step = direction @ self.random.normal(size=direction.shape[1])
        step /= np.abs(step).max()

        def lacks(length: float) -> float:
            there = self.chances(length * step)
            return float(np.mean(np.sum(np.exp(there) * (there - self.chances(0 * step)), axis=1))) - gain

        return np.asarray(brentq(lacks, 0, 5) * step) if gain else 0 * step


def searched(seed: int, signal: str, gain: float) -> dict[str, Any]:
    """One search's last choice: whether a step was taken, what it was said to gain, and what it does."""
    world = World(seed)
    there = np.exp(world.chances(world.far(gain)))
    labels = (there.cumsum(axis=1) > world.random.random((SAMPLES, 1))).argmax(axis=1)
    dims = world.space.dims
    points = np.vstack([np.zeros(dims), world.random.uniform(-HALF, HALF, (SCORED - 1, dims))])
    surface = fit(
        np.stack([world.space.to_mix(point).coefficients for point in points]),
        [world.outcomes(point, labels)[1] for point in points],
        labels,
    )
    metric = METRICS[signal] if signal == "nll" else smoothed(METRICS[signal])
    found = cross_fit(
        Landscape(world.space, {VALIDATION: Steering(surface, labels, 1.0)}, metric),
        regions_of(world.space, HALF),
        {VALIDATION: world.outcomes(points[0], labels)[0]},
        make_folds({VALIDATION: labels}),
        seed=seed,
    )

    def truly(point: Floats) -> float:
        chances = world.chances(point)
        loss = -float(np.mean(np.sum(there * chances, axis=1)))
        right = float(np.mean(there[np.arange(SAMPLES), chances.argmax(axis=1)]))
        return -loss if signal == "nll" else right - loss

    real = truly(world.point_of(found.mix.coefficients)) - truly(points[0])
    return {"step": found.share > 0, "said": found.share * found.gain, "real": real}


def row_of(signal: str, gain: float, every: list[dict[str, Any]]) -> dict[str, Any]:
    """What searches come to."""
    steps = [each for each in every if each["step"]]

    def mean(key: str) -> float | None:
        return float(np.mean([each[key] for each in steps])) if steps else None

    return {
        "signal": signal,
        "gain": gain,
        "searches": len(every),
        "steps": len(steps),
        "worse": sum(each["real"] < 0 for each in steps),
        "said": mean("said"),
        "real": mean("real"),
    }


def table_of(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| signal | to gain, nats | searches | steps | worse than the start | said | really |", "|---" * 7 + "|"]
    for row in rows:
        said, real = ("" if row[key] is None else f"{row[key]:+.4f}" for key in ("said", "real"))
        cells = (row["signal"], row["gain"], row["searches"], row["steps"], row["worse"], said, real)
        lines.append("".join(f"| {cell} " for cell in cells) + "|")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the searches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=100)
    parser.add_argument("--gains", default=",".join(map(str, GAINS)))
    parser.add_argument("--signals", default=",".join(SIGNALS))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent)
    options = parser.parse_args(arguments)
    rows = []
    for gain in map(float, options.gains.split(",")):
        for signal in options.signals.split(","):
            rows.append(row_of(signal, gain, [searched(seed, signal, gain) for seed in range(options.searches)]))
            print(rows[-1], file=sys.stderr, flush=True)
    (options.results / "crossfit.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table_of(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
