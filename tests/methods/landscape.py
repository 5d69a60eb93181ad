"""A pool of random weights and an objective with a score for every mix of it: what methods are tested on.

The score is a smooth function of the coefficients alone, with a known optimum, so that no model has to run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from mixopt import Mix, one_hot
from mixopt.scoring.cache import Gradient
from mixopt.scoring.score import Score
from mixopt.scoring.tally import Asked, Tally
from mixopt.values.groups import Groups, make_groups
from mixopt.values.metrics import METRICS
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool, open_pool
from tests.conftest import random_states
from tests.unhurried import Unhurried

STEPS = ("step_100", "step_200", "step_300", "step_400", "step_500")
SAMPLES = 24


def random_pool(folder: Path, seed: int = 0, ingredients: int = len(STEPS), base: bool = True) -> Pool:
    """A pool of random weights: ``step_100``, ``step_200`` ... and, if wanted, ``base``."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"step_{100 * number}" for number in range(1, ingredients + 1)]
    states = random_states(ingredients + 1, seed=seed)
    paths = {name: folder / f"{name}.safetensors" for name in [*names, "base"]}
    for path, state in zip(paths.values(), states, strict=True):
        save_file(state, path)
    pretrained = paths.pop("base")
    return open_pool(paths, ("base", pretrained) if base else None)


class Landscape(Unhurried):
    """An objective: 1 minus (or, for nll, plus) the squared distance of the rows to an optimum.

    Attributes:
        pool: The pool.
        optimum: ``[n_mixed_tensors, n_columns]``, every row on the simplex of the ingredients.
        levels: Scores are rounded to so many levels where given, so that equals occur.
        asked: The rows of every mix that was scored, in order.
        learned: How many samples each gradient was taken on.
    """

    def __init__(self, pool: Pool, seed: int = 0, metric: str = "accuracy", levels: int | None = None) -> None:
        random = np.random.default_rng(seed)
        self.pool = pool
        self.metric = METRICS[metric]
        self.levels = levels
        self.samples = SAMPLES
        self.optimum = np.zeros((len(pool.mixed), len(pool.columns)))
        # One row for all tensors plus a little of its own for each: both kinds of methods find something.
        shared = random.dirichlet(np.ones(len(pool.ingredients)))
        own = random.dirichlet(np.ones(len(pool.ingredients)), size=len(pool.mixed))
        self.optimum[:, : len(pool.ingredients)] = 0.8 * shared + 0.2 * own
        self.asked: list[bytes] = []
        self.learned: list[int] = []

    def distance(self, mix: Mix) -> float:
        """Mean over tensors of the squared distance to the optimum."""
        return float(np.sum((tensor_rows(mix, self.pool) - self.optimum) ** 2) / len(self.optimum))

    def value(self, mix: Mix) -> float:
        """The score."""
        distance = self.distance(mix)
        value = distance if self.metric.direction == "minimize" else 1 - distance
        return value if self.levels is None else round(value * self.levels) / self.levels

    def score(self, mix: Mix, split: str = "validation") -> Score:
        """As `mixopt.scoring.objective.Objective.score`; no other split than ``search`` may be asked for."""
        assert split == "validation", "a method may look at the validation split alone"
        self.asked.append(tensor_rows(mix, self.pool).tobytes())
        nothing: Any = None
        return Score(self.value(mix), {}, nothing, 0.0, cached=False)

    @property
    def tally(self) -> Tally:
        """The distinct mixes scored so far."""
        return Tally({rows.hex(): Asked(self.samples, 0.0) for rows in self.asked})

    def gradient(self, mix: Mix, samples: NDArray[np.int64], scale: float = 1.0) -> Gradient:
        """As `mixopt.scoring.objective.Objective.gradient`, of the distance plus ``(scale - 1)^2``."""
        assert np.all((samples >= 0) & (samples < self.samples))
        self.learned.append(len(samples))
        per_tensor = 2 * (tensor_rows(mix, self.pool) - self.optimum) / len(self.optimum)
        group_of = mix.groups.index()
        rows = np.zeros_like(mix.coefficients)
        np.add.at(rows, [group_of[place.name] for place in self.pool.mixed], per_tensor)
        return Gradient(self.distance(mix) + (scale - 1) ** 2, rows, 2 * (scale - 1))


def whole(pool: Pool) -> Groups:
    """One group of all mixed tensors."""
    return make_groups("whole", pool.sizes)


def ingredients_of(pool: Pool) -> dict[str, Mix]:
    """Every ingredient alone."""
    return {name: one_hot(whole(pool), pool.columns, name) for name in pool.ingredients}
