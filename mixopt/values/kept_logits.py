"""Kept logits: what is kept of a model's logits, sample by sample, compactly enough to be kept for every mix."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

# Models of at most so many classes keep all of them.
ALL_UP_TO = 32
# Of more classes, so many are kept of each sample: those of the largest logits, the right one among them.
FEW = 16
# The least log-probability, in nats; what is less, or minus infinity, counts as this.
LEAST = -1000.0

Places = slice | NDArray[np.int64]


def kept_of(class_count: int) -> int:
    """How many classes of each sample are kept, of a model's ``class_count``."""
    return class_count if class_count <= ALL_UP_TO else FEW


def sum_tolerance(class_count: int) -> float:
    """By how much the probabilities that are kept of a sample may miss 1 together.

    Log-probabilities are kept to the nearest float16, within ``2**-11`` of their size. That moves the sum by at most as
    much of the entropy, which is the logarithm of the classes where it is largest.
    """
    return 2.0**-11 * math.log(class_count) + 1e-5


@dataclass(frozen=True, eq=False)
class KeptLogits:
    """Log-probabilities of some samples; logits, but for the constant of each sample that no probability depends on.

    What a model did is rounded to the nearest float16 before it is put here, so that it is the same bits whether it was
    computed or read from the cache: values are off by at most ``2**-11`` of their size (0.0005 at -1, 0.008 at -16).
    So may two classes be level here where one was a little ahead; predictions and losses are kept beside this, exact.

    Attributes:
        values: ``[n, k]`` float32, log-probabilities in nats, from `LEAST` to 0; k is as `kept_of` says.
        classes: ``[n, k]`` int64, the class of each value, ascending in every row; the right class is among them. None
            where all classes are kept, in order.
        rest: ``[n]`` float32, the logarithm of the summed probability of all other classes, from `LEAST` to 0; None
            where there are none.
        class_count: The model's classes.

    Raises:
        ValueError: The arrays are of shapes that do not fit together.
    """

    values: NDArray[np.float32]
    classes: NDArray[np.int64] | None
    rest: NDArray[np.float32] | None
    class_count: int

    def __post_init__(self) -> None:
        count, kept = len(self.values), kept_of(self.class_count)
        is_whole = kept == self.class_count
        if self.class_count < 1 or self.values.shape != (count, kept):
            raise ValueError(f"logits {list(self.values.shape)}, expected {kept} of {self.class_count} classes each")
        if (self.classes is None) != is_whole or (self.rest is None) != is_whole:
            raise ValueError(f"logits of {self.class_count} classes name their classes and the rest where some are out")
        if self.classes is not None and self.classes.shape != self.values.shape:
            raise ValueError(f"logits {list(self.values.shape)} of classes {list(self.classes.shape)}")
        if self.rest is not None and self.rest.shape != (count,):
            raise ValueError(f"logits of {count} samples with a rest {list(self.rest.shape)}")

    def __len__(self) -> int:
        return len(self.values)

    def check(self) -> None:
        """Check what is in the arrays.

        Raises:
            ValueError: A value is no log-probability, a class is none of the model's or out of order, or the
                probabilities of a sample do not sum to 1 within `sum_tolerance`.
        """
        for values in (self.values, self.rest):
            if values is not None and not np.all((values >= LEAST) & (values <= 0)):
                raise ValueError("logits that are no log-probabilities")
        if self.classes is not None:
            is_within = np.all((self.classes >= 0) & (self.classes < self.class_count))
            if not (is_within and np.all(np.diff(self.classes, axis=1) > 0)):
                raise ValueError("logits of classes that are not the model's, each once and in order")
        total = np.exp(self.values).sum(axis=1, dtype=np.float64)
        if self.rest is not None:
            total += np.exp(self.rest)
        if not np.all(np.abs(total - 1) <= sum_tolerance(self.class_count)):
            raise ValueError("logits whose probabilities do not sum to 1")

    def first(self, count: int) -> KeptLogits:
        """Those of the first samples."""
        return self.at(slice(count))

    def at(self, places: Places) -> KeptLogits:
        """Those at some places ``[k]``, in their order."""
        return replace(
            self,
            values=self.values[places],
            classes=None if self.classes is None else self.classes[places],
            rest=None if self.rest is None else self.rest[places],
        )

    def then(self, more: KeptLogits) -> KeptLogits:
        """These, and those of the samples after them.

        Raises:
            ValueError: Those are of a model with other classes.
        """
        if self.class_count != more.class_count:
            raise ValueError(f"logits of {self.class_count} classes, and then of {more.class_count}")
        classes = rest = None
        if self.classes is not None and more.classes is not None:
            classes = np.concatenate([self.classes, more.classes])
        if self.rest is not None and more.rest is not None:
            rest = np.concatenate([self.rest, more.rest])
        return replace(self, values=np.concatenate([self.values, more.values]), classes=classes, rest=rest)
