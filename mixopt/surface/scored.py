"""Scored: the outputs of mixes that were scored, in one matrix that grows with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt.surface.outputs import LOOKED_AT, Columns, columns_of, outputs_of
from mixopt.values.kept_logits import KeptLogits

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

# Outputs of a mix that are worked on at a time: few enough for a processor's cache, many enough for a GPU.
ON_CPU, ON_GPU = 8_192, 262_144
# Mixes whose inner products are taken in one product.
TILE = 32


@dataclass(frozen=True, eq=False)
class Scored:
    """What mixes did that were scored, less what the first of them did.

    Logits are kept as float16 (see `KeptLogits`), and so are changes here, which are smaller.

    Attributes:
        columns: What the outputs are of.
        reference: ``[samples, columns]`` float32, the first mix's outputs.
        blocks: Some mixes after others, ``[k, samples * columns]`` float16 each: the mixes' outputs less the first
            one's; 0 for samples that a mix was not scored on.
        lengths: ``[n]``, how many samples, the first ones, each was scored on.
        gram: ``[n, n]``, inner products of the changes on the first samples, those that all were scored on.
        early: The logits themselves, while columns may still become others.
    """

    columns: Columns
    reference: Tensor
    blocks: tuple[Tensor, ...]
    lengths: NDArray[np.int64]
    gram: Floats
    early: tuple[KeptLogits, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def common(self) -> int:
        """How many samples all were scored on."""
        return int(self.lengths.min())

    @property
    def outputs(self) -> int:
        """How many outputs the inner products are of."""
        return self.common * self.columns.count

    def changes(self, first: int, stop: int) -> Tensor:
        """Of all mixes, from an output on and up to another: ``[n, stop - first]`` float16."""
        return torch.cat([block[:, first:stop] for block in self.blocks])

    def pieces(self, first: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """The changes on samples, some of them at a time: from which one, to which, ``[n, outputs]`` float32."""
        step = max(1, step_on(self.reference.device) // self.columns.count)
        for begin in range(first, stop, step):
            end = min(stop, begin + step)
            yield begin, end, self.changes(begin * self.columns.count, end * self.columns.count).float()


def collected(
    kept: Iterable[KeptLogits],
    count: int,
    labels: Labels,
    *,
    device: torch.device | None = None,
    before: Scored | None = None,
) -> Scored:
    """The outputs of mixes; to the last bit the same, whether all are given at once or some were ``before``.

    Args:
        kept: Logits of the mixes, of those alone that come after ``before``; of the very first on all samples.
            Looked at one after another, so that they need not be in memory together.
        count: How many those are.
        labels: ``[samples]``.
        device: Where outputs are; the CPU by default.
        before: The mixes that come first.

    Raises:
        ValueError: There are more or fewer, one is of no samples, or the very first not of all.
    """
    coming = iter(kept)
    if before is not None and not before.early:
        return _extended(before, coming, count)
    known = () if before is None else before.early
    first = [*known, *_until_settled(coming, LOOKED_AT - _whole(known, labels), labels)]
    if not first or len(first[0]) != len(labels):
        raise ValueError(f"the first mix of a surface is to be scored on all of {len(labels)} samples")
    none = _begun(first, labels, device or torch.device("cpu"))
    return _extended(none, chain(_handed_on(first), coming), len(known) + count)


def _whole(kept: Sequence[KeptLogits], labels: Labels) -> int:
    return sum(len(each) == len(labels) for each in kept)


def _until_settled(coming: Iterator[KeptLogits], whole: int, labels: Labels) -> Iterator[KeptLogits]:
    """Up to so many of all samples, or all that there are."""
    while whole > 0 and (found := next(coming, None)) is not None:
        whole -= len(found) == len(labels)
        yield found


def _handed_on(kept: list[KeptLogits]) -> Iterator[KeptLogits]:
    """Each let go when it is given."""
    kept.reverse()
    while kept:
        yield kept.pop()


def _begun(kept: Sequence[KeptLogits], labels: Labels, device: torch.device) -> Scored:
    """None yet, but what the outputs are of."""
    columns = columns_of([each for each in kept if len(each) == len(labels)], labels)
    reference = torch.from_numpy(outputs_of(kept[0], columns)).to(device)
    early = () if columns.classes is None or _whole(kept, labels) >= LOOKED_AT else tuple(kept)
    return Scored(columns, reference, (), np.zeros(0, dtype=np.int64), np.zeros((0, 0)), early)


def _extended(before: Scored, kept: Iterable[KeptLogits], count: int) -> Scored:
    """With more mixes, of the same columns."""
    reference, lengths = before.reference, before.lengths.tolist()
    block = torch.zeros((count, reference.numel()), dtype=torch.float16, device=reference.device)
    for row, each in zip(block, kept, strict=True):
        if not 0 < len(each) <= len(reference):
            raise ValueError(f"a mix of a surface was scored on {len(each)} of {len(reference)} samples")
        outputs = torch.from_numpy(outputs_of(each, before.columns)).to(reference.device)
        outputs -= reference[: len(each)]
        row[: outputs.numel()] = outputs.view(-1)
        lengths.append(len(each))
    found = replace(before, blocks=(*before.blocks, block), lengths=np.array(lengths, dtype=np.int64))
    # Other samples that all were scored on are other inner products.
    is_same = len(before) > 0 and found.common == before.common
    return replace(found, gram=_gram(found, before.gram if is_same else np.zeros((0, 0))))


def step_on(device: torch.device) -> int:
    """How many outputs of a mix are worked on at a time."""
    return ON_CPU if device.type == "cpu" else ON_GPU


def _gram(scored: Scored, before: Floats) -> Floats:
    """Inner products ``[n, n]`` in float64.

    By tiles of whole rows, each the same product whatever comes after it: those that are known are not taken again.

    Args:
        scored: The changes.
        before: ``[k, k]``, those of the first mixes.
    """
    known, count = len(before) // TILE * TILE, len(scored)
    device = scored.reference.device
    total = torch.zeros((count, count), dtype=torch.float64, device=device)
    step = step_on(device)
    for first in range(0, scored.outputs, step):
        some = scored.changes(first, min(first + step, scored.outputs)).double()
        tiles = [some[row : row + TILE] for row in range(0, count, TILE)]
        for row in range(known // TILE, len(tiles)):
            for column in range(row + 1):
                places = slice(row * TILE, (row + 1) * TILE), slice(column * TILE, (column + 1) * TILE)
                total[places] += tiles[row] @ tiles[column].T
    found = np.tril(total.cpu().numpy())
    found[:known, :known] = np.tril(before[:known, :known])
    return np.asarray(found + np.tril(found, -1).T)
