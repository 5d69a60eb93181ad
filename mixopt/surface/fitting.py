"""Fit and predict: from mixes that were scored to the outcomes of those that were not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError
from torch import Tensor

from mixopt.surface.kernel import Kernel, LeftOut, choose_kernel, inverted, left_out
from mixopt.surface.outputs import Columns, PredictedOutcomes, columns_of, joined, numbers_of, outputs_of
from mixopt.values.kept_logits import KeptLogits

Floats = NDArray[np.float64]

# Bytes of predicted outputs at a time.
AT_ONCE = 64_000_000
# Added to the diagonal where a matrix cannot be inverted for rounding, and so on tenfold.
JITTER = 1e-10


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive samples that the same mixes were scored on.

    Attributes:
        first: The first sample.
        stop: One past the last.
        mixes: ``[k]``, numbers of the mixes, ascending; the first mix is among them.
        inverse: ``[k, k]``, of their kernel matrix with its noise.
        changes: ``[k, samples x columns]`` float32, their outputs less the first mix's.
    """

    first: int
    stop: int
    mixes: NDArray[np.int64]
    inverse: Floats
    changes: Tensor


@dataclass(frozen=True, eq=False)
class Surface:
    """Predicts what mixes do, sample by sample.

    Attributes:
        moves: ``[n, groups, columns]``, the coefficients of the mixes less those of the first, in units of ``unit``.
        centre: ``[groups, columns]``, the coefficients of the first.
        unit: So that moves have a mean square length of 1.
        kernel: How alike outputs are.
        columns: What the outputs are of.
        reference: ``[samples, columns]`` float32, the first mix's outputs.
        parts: The split's samples, in order.
        left_out: What each mix's outputs are predicted to be by the others, on the first part.
        spread: Root mean square of what outputs differ by between mixes, in nats: what there is to predict.
        scale: What a standard deviation of the kernel is in nats.
    """

    moves: Floats
    centre: Floats
    unit: float
    kernel: Kernel
    columns: Columns
    reference: Tensor
    parts: tuple[Part, ...]
    left_out: LeftOut
    spread: float
    scale: float

    @property
    def explained(self) -> float:
        """The share of what outputs differ by that is predicted of mixes left out, 0 to 1."""
        off = float(np.mean(self.left_out.errors[1:] ** 2)) if len(self.moves) > 1 else np.inf
        return max(0.0, 1 - off / max(self.spread**2, np.finfo(float).tiny))

    def outputs(self, coefficients: Floats, part: Part) -> Tensor:
        """The outputs ``[m, samples, columns]`` of mixes ``[m, groups, columns]`` on a part's samples."""
        moves = (coefficients - self.centre) / self.unit
        weights = self.kernel(moves, self.moves[part.mixes]) @ part.inverse
        given = torch.from_numpy(weights.astype(np.float32)).to(part.changes.device)
        found = (given @ part.changes).view(len(coefficients), part.stop - part.first, -1)
        return found.add_(self.reference[part.first : part.stop])

    def outcomes(self, coefficients: Floats) -> Iterator[PredictedOutcomes]:
        """What each mix ``[m, groups, columns]`` is predicted to do on all samples, mix by mix."""
        step = max(1, AT_ONCE // (4 * self.reference.numel()))
        for first in range(0, len(coefficients), step):
            some = coefficients[first : first + step]
            by_part = [numbers_of(self.outputs(some, part), self.columns, part.first) for part in self.parts]
            for found in zip(*by_part, strict=True):
                yield joined(found)

    def uncertainty(self, coefficients: Floats) -> Floats:
        """The standard deviation ``[m]`` of an output of each mix ``[m, groups, columns]``, in nats."""
        variance, _ = self._conditional((coefficients - self.centre) / self.unit)
        return self.scale * np.sqrt(np.maximum(np.diag(variance), 0))

    def least_sure(self, coefficients: Floats, count: int, taken: Sequence[int] = ()) -> list[int]:
        """Numbers of mixes whose outputs are least sure, each given that those before it will be scored.

        Args:
            coefficients: ``[m, groups, columns]``.
            count: How many.
            taken: Numbers of those that will be scored anyway.
        """
        left, noise = self._conditional((coefficients - self.centre) / self.unit)
        chosen: list[int] = []

        def condition(number: int) -> None:
            nonlocal left
            column = left[:, number].copy()
            left -= np.outer(column, column) / (column[number] + noise)

        for number in taken:
            condition(number)
        while len(chosen) < min(count, len(left) - len(taken)):
            rest = np.diag(left).copy()
            rest[[*taken, *chosen]] = -np.inf
            chosen.append(int(np.argmax(rest)))
            condition(chosen[-1])
        return chosen

    def _conditional(self, moves: Floats) -> tuple[Floats, float]:
        """The covariance ``[m, m]`` of mixes given those that were scored, in the kernel's units, and the noise."""
        part = self.parts[0]
        across = self.kernel(moves, self.moves[part.mixes])
        return self.kernel(moves, moves) - across @ part.inverse @ across.T, self.kernel.noise


def fit(
    coefficients: Floats,
    kept: Sequence[KeptLogits],
    labels: NDArray[np.int64],
    *,
    device: torch.device | None = None,
    before: Kernel | None = None,
) -> Surface:
    """Fit a surface.

    Args:
        coefficients: ``[n, groups, columns]`` of the mixes scored; the first is the reference, scored on all samples.
        kept: Their logits on the first samples of the split, on all or fewer.
        labels: ``[samples]``, which only say which of many classes matter.
        device: Where outputs are kept and predicted; the CPU by default.
        before: A kernel to begin the choice of this one's at.

    Raises:
        ValueError: The first mix was not scored on all samples, or a single mix was scored.
    """
    if len(kept) < 2 or len(kept[0]) != len(labels):
        raise ValueError("a surface needs two mixes at least, the first of them on all samples")
    where = device or torch.device("cpu")
    whole = [number for number, each in enumerate(kept) if len(each) == len(labels)]
    columns = columns_of([kept[number] for number in whole], labels)
    moves = coefficients - coefficients[0]
    unit = float(np.sqrt(np.mean(np.sum(moves[1:] ** 2, axis=(1, 2))))) or 1.0
    moves = moves / unit
    reference = torch.from_numpy(outputs_of(kept[0], columns)).to(where)
    rows = [torch.from_numpy(outputs_of(each, columns)).to(where) - reference[: len(each)] for each in kept]
    stops = sorted({len(each) for each in kept})
    lengths = np.array([len(each) for each in kept])
    # The first samples are those that all mixes were scored on; the kernel is chosen there.
    everywhere = torch.stack([row[: stops[0]].reshape(-1) for row in rows])
    gram = _gram(everywhere)
    kernel = choose_kernel(moves, gram, everywhere.shape[1], before)
    parts: list[Part] = []
    for first, stop in zip([0, *stops], stops, strict=False):
        mixes = np.flatnonzero(lengths >= stop)
        changes = torch.stack([rows[number][first:stop].reshape(-1) for number in mixes]) if parts else everywhere
        parts.append(Part(first, stop, mixes, _inverse(kernel, moves[mixes]), changes))
    outputs = everywhere.shape[1]
    errors = left_out(parts[0].inverse, gram, outputs)
    spread = float(np.sqrt(np.trace(gram) / outputs / max(1, len(kept) - 1)))
    scale = float(np.mean(errors.expected / np.sqrt(1 / np.diag(parts[0].inverse))))
    return Surface(moves, coefficients[0], unit, kernel, columns, reference, tuple(parts), errors, spread, scale)


def best_of(surface: Surface, coefficients: Floats, signal: Callable[[PredictedOutcomes], float]) -> tuple[int, Floats]:
    """The number of the mix of ``[m, groups, columns]`` with the largest signal, and the signals ``[m]``."""
    found = np.array([signal(each) for each in surface.outcomes(coefficients)])
    return int(np.argmax(found)), found


def _gram(changes: Tensor) -> Floats:
    """``[k, k]`` inner products in float64, some columns at a time."""
    total = np.zeros((len(changes), len(changes)))
    step = max(1, AT_ONCE // (8 * len(changes)))
    for first in range(0, changes.shape[1], step):
        some = changes[:, first : first + step].double()
        total += (some @ some.T).cpu().numpy()
    return total


def _inverse(kernel: Kernel, moves: Floats) -> Floats:
    matrix = kernel(moves, moves)
    jitter = 0.0
    while True:
        try:
            return inverted(
                matrix + (kernel.noise + jitter * float(np.trace(matrix)) / len(matrix)) * np.eye(len(matrix))
            )
        except LinAlgError:
            jitter = max(JITTER, 10 * jitter)
