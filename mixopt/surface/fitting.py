"""Fit and predict: from mixes that were scored to the outcomes of those that were not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError
from torch import Tensor

from mixopt.surface.kernel import Kernel, LeftOut, choose_kernel, inverted, left_out
from mixopt.surface.outputs import EVERYTHING, Columns, PredictedOutcomes, joined, numbers_of, separated
from mixopt.surface.scored import Scored, collected
from mixopt.values.kept_logits import KeptLogits

Floats = NDArray[np.float64]

# Mixes that are predicted at a time.
AT_ONCE = 64
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
    """

    first: int
    stop: int
    mixes: NDArray[np.int64]
    inverse: Floats


@dataclass(frozen=True, eq=False)
class Surface:
    """Predicts what mixes do, sample by sample.

    Attributes:
        coefficients: ``[n, groups, columns]`` of the mixes that it was fitted to, the reference first.
        unit: What moves from the reference are measured in, so that they have a mean square length of 1.
        kernel: How alike outputs are.
        scored: The outputs of the mixes.
        parts: The split's samples, in order.
        left_out: What each mix's outputs are predicted to be by the others, on the first part.
    """

    coefficients: Floats
    unit: float
    kernel: Kernel
    scored: Scored
    parts: tuple[Part, ...]
    left_out: LeftOut

    def __len__(self) -> int:
        """The number of mixes that it was fitted to."""
        return len(self.coefficients)

    @property
    def columns(self) -> Columns:
        """What the outputs are of."""
        return self.scored.columns

    @property
    def reference(self) -> Tensor:
        """``[samples, columns]`` float32, the outputs of the first mix."""
        return self.scored.reference

    def explained(self, last: int | None = None) -> float:
        """The share of what outputs differ by from the reference's that is predicted of mixes left out, 0 to 1.

        Args:
            last: Of so many mixes, the last ones; of all without.
        """
        off = float(np.mean(self.left_out.errors[self._last(last)] ** 2))
        return max(0.0, 1 - off / max(self.spread(last) ** 2, np.finfo(float).tiny))

    def spread(self, last: int | None = None) -> float:
        """Root mean square of what outputs differ by from the reference's, in nats: what there is to predict.

        Args:
            last: Of so many mixes, the last ones; of all without.
        """
        changes = np.diag(self.scored.gram)[self._last(last)] / self.scored.outputs
        return float(np.sqrt(np.mean(changes)))

    def _last(self, count: int | None) -> slice:
        """The last mixes, never the reference."""
        return slice(-min(count or len(self), len(self) - 1), None)

    def moves(self, coefficients: Floats) -> Floats:
        """How far mixes ``[m, groups, columns]`` lie from the reference, in units."""
        return np.asarray((coefficients - self.coefficients[0]) / self.unit)

    def outputs(self, coefficients: Floats) -> Tensor:
        """The outputs ``[m, samples, columns]`` float32 of mixes ``[m, groups, columns]``, all at once."""
        return torch.cat([found for _, found in self._outputs(coefficients)], dim=1)

    def outcomes(self, coefficients: Floats, needs: Sequence[str] = EVERYTHING) -> Iterator[PredictedOutcomes]:
        """What each mix ``[m, groups, columns]`` is predicted to do on all samples, mix by mix.

        Args:
            coefficients: The mixes.
            needs: What is wanted beside classes and losses, see `mixopt.values.metrics.Metric`.
        """
        for first in range(0, len(coefficients), AT_ONCE):
            pieces = self._outputs(coefficients[first : first + AT_ONCE])
            yield from separated(joined([numbers_of(found, self.columns, begin, needs) for begin, found in pieces]))

    def uncertainty(self, coefficients: Floats) -> Floats:
        """The standard deviation ``[m]`` of what an output of each mix ``[m, groups, columns]`` is off by, in nats.

        Without the noise: of what more mixes would tell.
        """
        moves = self.moves(coefficients)
        part = self.parts[0]
        across = self.kernel(moves, self.moves(self.coefficients[part.mixes]))
        variance = self.kernel.own(moves) - np.einsum("mn,nk,mk->m", across, part.inverse, across)
        return np.asarray(self.left_out.scale * np.sqrt(np.maximum(variance, 0)))

    def expected(self, coefficients: Floats) -> Floats:
        """Root mean square ``[m]`` of what each mix's outputs are expected to be off by, noise and all, in nats."""
        noise = self.kernel.noise_of(self.moves(coefficients)) * self.left_out.scale**2
        return np.asarray(np.sqrt(self.uncertainty(coefficients) ** 2 + noise))

    def least_sure(self, coefficients: Floats, count: int, taken: Sequence[int] = ()) -> list[int]:
        """Numbers of mixes whose outputs are least sure, each given that those before it will be scored.

        Args:
            coefficients: ``[m, groups, columns]``.
            count: How many.
            taken: Numbers of those that will be scored anyway.
        """
        moves, part = self.moves(coefficients), self.parts[0]
        across = self.kernel(moves, self.moves(self.coefficients[part.mixes]))
        left = self.kernel(moves, moves) - across @ part.inverse @ across.T
        noise = self.kernel.noise_of(moves)
        chosen: list[int] = []

        def condition(number: int) -> None:
            nonlocal left
            column = left[:, number].copy()
            left -= np.outer(column, column) / (column[number] + noise[number])

        for number in taken:
            condition(number)
        while len(chosen) < min(count, len(left) - len(set(taken))):
            rest = np.diag(left).copy()
            rest[[*taken, *chosen]] = -np.inf
            chosen.append(int(np.argmax(rest)))
            condition(chosen[-1])
        return chosen

    def shares(self, values: Floats, part: Part) -> Tensor:
        """What each mix's outputs count ``[m, n]`` float32 on a part, of kernel values ``[m, k]`` with its mixes."""
        found = np.zeros((len(values), len(self)), dtype=np.float32)
        found[:, part.mixes] = values @ part.inverse
        return torch.from_numpy(found).to(self.reference.device)

    def _outputs(self, coefficients: Floats) -> Iterator[tuple[int, Tensor]]:
        """Some samples after others: the first of them, and the outputs ``[m, samples, columns]``."""
        moves, known = self.moves(coefficients), self.moves(self.coefficients)
        for part in self.parts:
            shares = self.shares(self.kernel(moves, known[part.mixes]), part)
            for begin, end, changes in self.scored.pieces(part.first, part.stop):
                found = (shares @ changes).view(len(moves), end - begin, -1)
                yield begin, found.add_(self.reference[begin:end])


def fit(
    coefficients: Floats,
    kept: Iterable[KeptLogits],
    labels: NDArray[np.int64],
    *,
    device: torch.device | None = None,
    before: Surface | None = None,
) -> Surface:
    """Fit a surface.

    Args:
        coefficients: ``[n, groups, columns]`` of the mixes scored; the first is the reference, scored on all samples.
        kept: Their logits on the first samples of the split, on all or fewer; where there is a surface ``before``,
            those of the mixes after its own alone. Looked at one after another.
        labels: ``[samples]``, which only say which of many classes matter.
        device: Where outputs are kept and predicted; the CPU by default.
        before: A surface of the first of these mixes, on the same samples and device, whose work is not done again.
            What is found is to the last bit what it is without.

    Raises:
        ValueError: The first mix was not scored on all samples, a single mix was scored, or the mixes are not those
            before and then those that logits are of.
    """
    known = 0 if before is None else len(before)
    if len(coefficients) < max(2, known):
        raise ValueError(f"a surface of {len(coefficients)} mixes, {known} of them before; it needs two at least")
    if before is not None and not np.array_equal(before.coefficients, coefficients[:known]):
        raise ValueError("a surface goes on with other mixes than it was fitted to before")
    earlier = None if before is None else before.scored
    scored = collected(kept, len(coefficients) - known, labels, device=device, before=earlier)
    moves = coefficients - coefficients[0]
    unit = float(np.sqrt(np.mean(np.sum(moves[1:] ** 2, axis=(1, 2))))) or 1.0
    moves = moves / unit
    # The first samples are those that all mixes were scored on; the kernel is chosen there.
    kernel = choose_kernel(moves, scored.gram, scored.outputs)
    stops = sorted({int(length) for length in scored.lengths})
    parts: list[Part] = []
    for first, stop in zip([0, *stops], stops, strict=False):
        mixes = np.flatnonzero(scored.lengths >= stop)
        parts.append(Part(first, stop, mixes, _inverse(kernel, moves[mixes])))
    errors = left_out(parts[0].inverse, scored.gram, scored.outputs)
    return Surface(coefficients, unit, kernel, scored, tuple(parts), errors)


def _inverse(kernel: Kernel, moves: Floats) -> Floats:
    matrix = kernel(moves, moves)
    jitter = 0.0
    while True:
        try:
            added = kernel.noise_of(moves) + jitter * float(np.trace(matrix)) / len(matrix)
            return inverted(matrix + np.diag(added))
        except LinAlgError:
            if jitter > 1:  # it is no rounding: numbers that are not finite
                raise
            jitter = max(JITTER, 10 * jitter)
