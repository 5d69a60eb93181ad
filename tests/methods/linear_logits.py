"""An objective whose logits are a known function of the coefficients, for methods that look at logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt import Mix
from mixopt.errors import ScoreError
from mixopt.scoring.outcomes import Outcomes
from mixopt.scoring.score import Score
from mixopt.values.kept_logits import KeptLogits
from mixopt.values.metrics import METRICS
from mixopt.values.samples import VALIDATION
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool
from tests.unhurried import Unhurried

SAMPLES, CLASSES = 300, 4


class LinearLogits(Unhurried):
    """Logits are ``row @ own``, where ``own[column]`` are a column's and row the mean over tensors, and a bend.

    Attributes:
        pool: The pool.
        asked: The mean rows of every mix that was scored, in order.
        gone: Weights of the first column for which a score is no number.
    """

    def __init__(self, pool: Pool, seed: int = 0, metric: str = "accuracy", bend: float = 0.0) -> None:
        random = np.random.default_rng(seed)
        self.pool = pool
        self.metric = METRICS[metric]
        self.labels = random.integers(0, CLASSES, SAMPLES)
        shape = (len(pool.columns), SAMPLES, CLASSES)
        right = np.eye(CLASSES)[self.labels]
        better = random.uniform(0.0, 1.2, len(pool.columns))[:, None, None]
        self.own = random.normal(size=shape) + better * right
        self.bend = bend * random.normal(size=shape)
        self.has_logits = True
        self.gone: tuple[float, ...] = ()
        self.asked: list[NDArray[np.float64]] = []
        self.evaluators = {VALIDATION: SimpleNamespace(split=SimpleNamespace(labels=self.labels))}

    def needing(self, *fields: str) -> LinearLogits:
        """As `mixopt.scoring.objective.Objective.needing`."""
        assert fields == ("logits",)
        return self

    def score(self, mix: Mix, split: str = VALIDATION) -> Score:
        """As `mixopt.scoring.objective.Objective.score`."""
        assert split == VALIDATION, "a method may look at the validation split alone"
        row = tensor_rows(mix, self.pool).mean(axis=0)
        self.asked.append(row)
        if any(abs(row[0] - each) < 1e-9 for each in self.gone):
            raise ScoreError("not finite")
        outcomes = self.outcomes(row)
        return Score(self.metric.of(self.labels, outcomes), {}, outcomes, 0.0, cached=False)

    def outcomes(self, row: NDArray[np.float64]) -> Outcomes:
        """What a mix with a mean row ``[columns]`` does."""
        logits: Any = np.tensordot(row, self.own, 1) + np.tensordot(row**2 - row, self.bend, 1)
        chances = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        kept = KeptLogits(np.minimum(chances, 0).astype(np.float16).astype(np.float32), None, None, CLASSES)
        losses = -chances[np.arange(SAMPLES), self.labels]
        return Outcomes(logits.argmax(axis=1), losses, logits=kept if self.has_logits else None)

    @property
    def soups(self) -> int:
        """How many mixes of several columns were asked for, each once."""
        return len({row.tobytes() for row in self.asked if row.max() < 1 - 1e-9})
