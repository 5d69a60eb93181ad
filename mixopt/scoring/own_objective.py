"""A user's own objective in place of a split: ``function(module, device)`` scores the fused module itself.

It returns ``[n]`` scores, one number, or ``{name: number}``; higher is better. ``[n]`` scores keep paired tests and
samples to hold out; a number has neither. Of several numbers one drives, and the others are reported.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixopt.errors import DataError, PoolError, ScoreError, SpecError, names
from mixopt.imports import check_takes, import_function, source_hash
from mixopt.scoring.batches import Batches, Pass, plain_batches
from mixopt.scoring.outcomes import Outcomes
from mixopt.values.samples import ORDER_SEED, VALIDATION, Samples

SCORE = "score"
EXPECTED = "[n] scores, a number, or {name: number}"


@dataclass(frozen=True, eq=False)
class OwnEvaluator:
    """Runs a user's function on a module; stands where an `Evaluator` of a split does.

    Attributes:
        name: What the split is called.
        path: The function's import path.
        function: The function.
        module: What it is given, with the weights to score.
        device: Where the module is.
        metric: The number that drives, by name; the function's first without.
        split: Its scores as samples, once it has been called.
        precision: Always fp32: what the function runs its forward passes in is its own affair.
    """

    name: str
    path: str
    function: Callable[[nn.Module, torch.device], Any]
    module: nn.Module
    device: torch.device
    metric: str | None = None
    opened: Samples | None = None
    precision: str = "fp32"

    @property
    def split(self) -> Samples:
        """Its scores as samples without content."""
        if self.opened is None:
            raise DataError(f"{self.path}: not called yet, so that the number of its scores is not known")
        return self.opened

    @property
    def batch_size(self) -> int:
        """All at once."""
        return len(self.split)

    @property
    def batching(self) -> Batches:
        """All at once, in order."""
        return plain_batches(len(self.split), len(self.split))

    def called_once(self) -> OwnEvaluator:
        """The same, with as many samples as the function gives scores now, and a metric that it gives.

        Raises:
            SpecError: It gives no number of the metric's name.
            ScoreError: It gives something else than numbers.
        """
        values, others = self._call()
        identity = f"{self.path} {source_hash(self.function)} {self.metric}"
        digests = [hashlib.blake2b(f"{identity} {row}".encode(), digest_size=16).digest() for row in range(len(values))]
        labels = np.zeros(len(values), dtype=np.int64)
        content = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(values), 16)
        return replace(
            self,
            metric=self.metric or next(iter(others), SCORE),
            opened=Samples(self.name, self.path, {}, labels, content),
        )

    def on(self, module: nn.Module) -> OwnEvaluator:
        """The same for another module."""
        return replace(self, module=module)

    def at(self, precision: str, compiled: bool = False) -> OwnEvaluator:
        """The same: precision and compilation are the function's own affair."""
        return self

    def run(
        self,
        predict: Any,
        start: int = 0,
        stop: int | None = None,
        *,
        on_batch: Callable[[int], None] | None = None,
    ) -> Outcomes:
        """All scores from sample ``start`` on, also where fewer are wanted.

        Args:
            predict: Not used; the function runs the module.
            start: First sample.
            stop: Not used.
            on_batch: Told how many scores there are.

        Raises:
            ScoreError: Scores that are no finite numbers, or as many others as before.
        """
        values, others = self._call()
        if self.opened is not None and len(values) != len(self.opened):
            raise ScoreError(f"{self.path}: gave {len(values)} scores, and {len(self.opened)} before")
        if on_batch:
            on_batch(len(values))
        # A fixed random order: the first of them are a fair sample, whatever order the function has.
        order = np.random.default_rng(ORDER_SEED).permutation(len(values))
        predicted = np.full(len(values), -1, dtype=np.int64)
        return Outcomes(predicted, -values[order], others).rest(start)

    def run_pass(self, predict: Any, through: Pass, on_batch: Callable[[int], None] | None = None) -> Outcomes:
        """As `run`, from the first sample of a pass on."""
        return self.run(predict, through.start, on_batch=on_batch)

    def measure(self, outcomes: Outcomes, driving: Any = None) -> dict[str, float]:
        """The driving number by name, and the others."""
        driving = self.metric or next(iter(outcomes.also), SCORE)
        return {**outcomes.also, driving: float(np.mean(-outcomes.losses))}

    def take(self, samples: Any) -> NoReturn:
        """No samples to be had.

        Raises:
            PoolError: Always.
        """
        raise PoolError(
            f"the validation split is scored by your own function ({self.path}), which gives no gradients: methods "
            "that learn coefficients cannot run"
        )

    def logits(self, predict: Any, stop: int | None = None, *, on_batch: Any = None) -> Tensor:
        """No logits to be had.

        Raises:
            ScoreError: Always; the row of an ensemble says so.
        """
        raise ScoreError(
            f"split {self.name} is scored by your own function ({self.path}), which gives no logits: ensembles cannot "
            "run"
        )

    def logits_pass(self, predict: Any, through: Pass, on_batch: Any = None) -> Tensor:
        """As `logits`."""
        return self.logits(predict)

    def outcomes_of(self, logits: Tensor) -> NoReturn:
        """As `logits`."""
        raise PoolError(f"split {self.name} is scored by your own function ({self.path}), which takes no logits")

    def logits_of(self, given: Any, count: int) -> NoReturn:
        """As `take`."""
        self.take(None)

    def _call(self) -> tuple[NDArray[np.float64], dict[str, float]]:
        """The driving scores ``[n]``, and every number by name where there are several."""
        with torch.no_grad():
            given = self.function(self.module, self.device)
        others: dict[str, float] = {}
        if isinstance(given, Mapping):
            others = {str(name): self._number(value) for name, value in given.items()}
            if not others:
                raise ScoreError(
                    f"{self.path}: gave no number at all; expected [n] scores, a number, or {{name: number}}"
                )
            driving = self.metric or next(iter(others))
            if driving not in others:
                raise SpecError(f"--metric {driving}: {self.path} gives {names(others, 10)}")
            given = others[driving]
        values = self._array(given)
        if not np.all(np.isfinite(values)):
            bad = int(np.sum(~np.isfinite(values)))
            raise ScoreError(f"{self.path}: {bad} of {len(values)} scores are not finite")
        return values, others

    def _number(self, value: Any) -> float:
        found = self._array(value)
        if len(found) != 1 or not math.isfinite(found[0]):
            raise ScoreError(f"{self.path}: expected a finite number under each name, found {value!r}")
        return float(found[0])

    def _array(self, value: Any) -> NDArray[np.float64]:
        try:
            plain = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
            found = np.asarray(plain, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ScoreError(f"{self.path}: expected {EXPECTED}, found a {type(value).__name__} ({error})") from error
        if found.ndim > 1 or found.size == 0:
            raise ScoreError(f"{self.path}: expected [n] scores or a number, found shape {list(found.shape)}")
        return found.reshape(-1)


def own_evaluator(name: str, path: str, module: nn.Module, device: torch.device, metric: str | None) -> OwnEvaluator:
    """An evaluator of a function by its import path.

    Raises:
        SpecError: It cannot be imported, or does not take a module and a device.
    """
    option = "--data" if name == VALIDATION else f"--test {name}"
    function = import_function(path, option)
    check_takes(function, f"{option} {path}", "module", "device")
    return OwnEvaluator(name, path, function, module, device, metric)
