"""Pools that are not there: logits that are a polynomial of the coefficients, and so known everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mixopt.scoring.logits import outcomes_of, told
from mixopt.scoring.outcomes import Outcomes
from mixopt.values.kept_logits import KeptLogits

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class World:
    """Mixes and what they do.

    Attributes:
        coefficients: ``[n, groups, columns]``, the reference first.
        logits: ``[n, samples, classes]``.
        labels: ``[samples]``.
        logits_at: The logits of any coefficients.
    """

    coefficients: Floats
    logits: Floats
    labels: Labels
    logits_at: Callable[[Floats], Floats]

    @property
    def outcomes(self) -> list[Outcomes]:
        """What an evaluator would say of each mix."""
        return [seen(each, self.labels) for each in self.logits]

    @property
    def kept(self) -> list[KeptLogits]:
        """Logits as they are kept of each mix."""
        return [kept_of(each, self.labels) for each in self.logits]

    def more(self, count: int, seed: int, size: float = 0.3) -> Floats:
        """Other coefficients ``[count, groups, columns]`` as near to the reference."""
        return drawn(count, self.coefficients.shape[1:], seed, size)


def make_world(
    count: int = 40,
    *,
    shape: tuple[int, int] = (2, 4),
    samples: int = 60,
    classes: int = 5,
    degree: int = 2,
    seed: int = 0,
    size: float = 0.3,
) -> World:
    """A world whose logits are a polynomial of the moves, of some degree.

    Args:
        count: Mixes, the reference first.
        shape: Layer groups and columns.
        samples: Of the split.
        classes: Of the model.
        degree: Of the polynomial.
        seed: Of everything random.
        size: Standard deviation of moves.
    """
    random = np.random.default_rng([seed, 1])
    inputs, terms = shape[0] * shape[1], 30
    directions = random.normal(size=(degree, terms, inputs)) / np.sqrt(inputs)
    factors = random.normal(size=(degree, terms, samples * classes)) * 2 / np.sqrt(terms)
    constant = random.normal(size=samples * classes) * 2

    def logits_at(coefficients: Floats) -> Floats:
        moves = (coefficients - 1 / shape[1]).reshape(len(coefficients), -1)
        found = np.tile(constant, (len(coefficients), 1))
        for power, (direction, factor) in enumerate(zip(directions, factors, strict=True), 1):
            found += (moves @ direction.T) ** power @ factor
        return found.reshape(-1, samples, classes)

    coefficients = np.concatenate([np.full((1, *shape), 1 / shape[1]), drawn(count - 1, shape, seed, size)])
    labels = random.integers(0, classes, samples)
    return World(coefficients, logits_at(coefficients), labels, logits_at)


def drawn(count: int, shape: tuple[int, ...], seed: int, size: float) -> Floats:
    """Coefficients around the uniform soup, whose rows sum to 1."""
    moves = size * np.random.default_rng([seed, 2]).normal(size=(count, *shape))
    return np.asarray(1 / shape[1] + moves - moves.mean(axis=2, keepdims=True))


def seen(logits: Floats, labels: Labels) -> Outcomes:
    """What an evaluator would say of logits ``[samples, classes]``."""
    return outcomes_of([told(torch.from_numpy(logits).float(), torch.from_numpy(labels))])


def kept_of(logits: Floats, labels: Labels) -> KeptLogits:
    """Logits as they are kept."""
    found = seen(logits, labels).logits
    assert found is not None
    return found


def exact(logits: Floats) -> KeptLogits:
    """All classes' log-probabilities, not rounded to float16."""
    chances = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return KeptLogits(chances.astype(np.float32), None, None, logits.shape[1])
