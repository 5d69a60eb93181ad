"""Searches without models: logits that are quadratic in the coefficients, and labels drawn where they fit best.

A space of two layer groups and three columns, four dimensions, around the uniform soup. The labels are drawn from the
probabilities at one point of it, so that no point has a better loss on other samples; with the start for that point,
nothing is to be gained.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from mixopt import Objective
from mixopt.scoring.outcomes import Outcomes
from mixopt.scoring.score import Score
from mixopt.spaces.linear import Affine
from mixopt.study.landscape import Landscape, Steering
from mixopt.surface.fitting import fit
from mixopt.values.groups import Groups
from mixopt.values.metrics import METRICS, Metric
from mixopt.values.mix import Mix, constant
from mixopt.values.samples import VALIDATION
from tests.surface.worlds import kept_of, seen
from tests.unhurried import Unhurried

Floats = NDArray[np.float64]

GROUPS = Groups((("lower", ("one",)), ("upper", ("two",))))
COLUMNS = ("a", "b", "c")
SPACE = Affine(constant(GROUPS, COLUMNS, np.full(3, 1 / 3)), COLUMNS, 1.0)
ORIGIN = np.zeros(SPACE.dims)
OPTIMUM = np.array([0.4, -0.2, 0.4, -0.2])  # both layer groups move alike
CLASSES = 4


class Drawn(Unhurried):
    """What mixes of `SPACE` do, as an objective of one split or several says it.

    Args:
        optimum: The point that labels are drawn at.
        sizes: Split to its number of samples.
        signal: What steers.
        seed: Of samples and labels.
    """

    def __init__(
        self, optimum: Floats = OPTIMUM, sizes: dict[str, int] | None = None, signal: str = "nll", seed: int = 0
    ) -> None:
        self.sizes = sizes or {VALIDATION: 400}
        self.metric = self.signal = METRICS[signal]
        self.weights = {name: 1 / len(self.sizes) for name in list(self.sizes)[1:]}
        self._worlds, self.evaluators = {}, {}
        for place, (name, size) in enumerate(self.sizes.items()):
            random = np.random.default_rng([seed, place])
            self._worlds[name] = (
                2 * random.normal(size=(size, CLASSES)),
                random.normal(size=(len(GROUPS) * len(COLUMNS), size, CLASSES)),
                0.2 * random.normal(size=(size, CLASSES)),
            )
            chances = softmax(self.logits(SPACE.to_mix(optimum), name))
            labels = (chances.cumsum(axis=1) > random.random((size, 1))).argmax(axis=1)
            split = SimpleNamespace(labels=labels)
            self.evaluators[name] = SimpleNamespace(split=split, device=torch.device("cpu"))

    @property
    def objective(self) -> Objective:
        """Itself, to callers that ask for one."""
        return cast(Objective, self)

    def logits(self, mix: Mix, split: str = VALIDATION) -> Floats:
        """``[samples, classes]``."""
        base, slopes, curve = self._worlds[split]
        move = (mix.coefficients - 1 / len(COLUMNS)).ravel()
        return np.asarray(base + np.tensordot(move, slopes, axes=1) + np.sum(move) ** 2 * curve + move[0] ** 2 * curve)

    @property
    def every_label(self) -> dict[str, NDArray[np.int64]]:
        """By split."""
        return {name: self.labels(name) for name in self.sizes}

    def labels(self, split: str = VALIDATION) -> NDArray[np.int64]:
        """``[samples]``."""
        return np.asarray(self.evaluators[split].split.labels)

    def needing(self, *fields: str) -> Drawn:
        """Its outcomes always have logits."""
        return self

    def count(self, split: str) -> int:
        """Samples of a split."""
        return self.sizes[split]

    def outcomes(self, mix: Mix, split: str, count: int) -> Outcomes:
        """What a mix does on the first samples."""
        return seen(self.logits(mix, split), self.labels(split)).first(count)

    def score(self, mix: Mix) -> Score:
        """As an objective scores a mix."""
        found = {
            name: self.signal.of(self.labels(name), self.outcomes(mix, name, self.sizes[name])) for name in self.sizes
        }
        weights = [1 - sum(self.weights.values()), *self.weights.values()]
        signal = float(np.dot(weights, list(found.values())))
        value = found[VALIDATION]
        outcomes = self.outcomes(mix, VALIDATION, self.sizes[VALIDATION])
        return Score(value, {self.metric.name: value}, outcomes, 0.0, cached=True, signal=signal)

    def landscape(self, points: Floats, signal: Metric | None = None) -> Landscape:
        """What mixes at points ``[m, dims]``, the first the start, tell."""
        mixes = [SPACE.to_mix(point) for point in points]
        coefficients = np.stack([mix.coefficients for mix in mixes])
        splits = {}
        for name in self.sizes:
            kept = [kept_of(self.logits(mix, name), self.labels(name)) for mix in mixes]
            surface = fit(coefficients, kept, self.labels(name))
            splits[name] = Steering(surface, self.labels(name), 1 / len(self.sizes))
        return Landscape(SPACE, splits, signal or self.signal)


def softmax(logits: Floats) -> Floats:
    """Probabilities ``[n, classes]``."""
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def scattered(count: int, half: float = 0.6, seed: int = 0, first: Sequence[Floats] = (ORIGIN,)) -> Floats:
    """Points ``[count, dims]``: the start, and others drawn around it."""
    drawn = np.random.default_rng(seed).uniform(-half, half, (count - len(first), SPACE.dims))
    return np.vstack([*first, drawn])
