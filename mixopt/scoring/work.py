"""Work: the seam between what asks for outcomes and what computes them, here (`Engine`) or by workers (`Crew`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixopt.scoring.evaluator import Evaluator
from mixopt.scoring.looks import Looks
from mixopt.scoring.outcomes import NO_OUTCOMES, Outcomes
from mixopt.scoring.own_objective import OwnEvaluator
from mixopt.values.mix import Mix

AnyEvaluator = Evaluator | OwnEvaluator
OnBatch = Callable[[int], None]
# From a first sample and one past the last to their outcomes, and the seconds that computing those took.
Compute = Callable[[int, int], tuple[Outcomes, float]]


class Slope(NamedTuple):
    """A mean loss and how it changes.

    Attributes:
        loss: Mean cross-entropy in nats.
        tensors: ``[n_mixed, n_columns]`` float64, its derivative with respect to the coefficient of every mixed tensor.
        scale: Its derivative with respect to the factor on the logits.
        seconds: What computing it took.
    """

    loss: float
    tensors: NDArray[np.float64]
    scale: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Wanted:
    """A mix that is going to be asked for.

    Attributes:
        mix: Over the pool's columns.
        split: Of the samples.
        looks: How far it will be looked at.
        known: Outcomes of the first samples that are known already.
    """

    mix: Mix
    split: str
    looks: Looks
    known: Outcomes = NO_OUTCOMES


class Work(Protocol):
    """Computes what is not cached.

    Attributes:
        ahead: Of how many mixes it wants to know before they are asked for, as it works on several at once; or 0.
    """

    @property
    def ahead(self) -> int:
        """See above."""

    def scoring(self, wanted: Wanted, on_batch: OnBatch | None) -> AbstractContextManager[Compute]:
        """What gives a mix's outcomes on stretches of a split, one after another, while the block is open."""

    def logits(self, mix: Mix, split: str, stop: int, on_batch: OnBatch | None) -> Tensor:
        """The logits ``[stop, n_classes]`` float32 of a split's first samples, on the CPU."""

    def slope(self, mix: Mix, samples: NDArray[np.int64], scale: float, tuning: int, on_batch: OnBatch | None) -> Slope:
        """The mean loss on some validation samples, and its derivatives; see `Engine.slope`."""

    def expect(self, wanted: Iterable[Wanted], *, unsure: bool = False) -> None:
        """Begin what will be asked for, parts of all of them in turn; nothing where it cannot be done ahead.

        Args:
            wanted: In the order in which they will be asked for.
            unsure: Only where nothing else is to be done: they may not be asked for after all.
        """

    def forget(self) -> None:
        """Leave what was expected and has not been asked for."""

    def beside(self, name: str, evaluator: AnyEvaluator) -> Self:
        """The same, which knows one more split, or another one of this name."""
