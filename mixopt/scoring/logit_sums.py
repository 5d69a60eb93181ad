"""Sums of several models' logits, so that an ensemble which grows by one member costs one more forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixopt.values.mix import Mix

# Ensembles whose logits are kept: the one that is grown, and the one before.
_KEPT = 2


class LogitSums:
    """The sums of the last ensembles."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}  # the latest used stands last

    def of(self, members: Sequence[Mix], keys: tuple[str, ...], stop: int, logits: Callable[[Mix], Tensor]) -> Tensor:
        """The sum of the members' logits ``[stop, n_classes]``, from the longest kept sum of the first of them.

        Args:
            members: The models.
            keys: What the logits of each depend on.
            stop: How many of the first samples.
            logits: Gives those of a model.
        """
        known = max((size for size in range(len(keys) + 1) if keys[:size] in self._sums), default=0)
        total = self._sums.pop(keys[:known]) if known else None
        if total is not None:
            self._sums[keys[:known]] = total
        if total is not None and len(total) < stop:
            known, total = 0, None  # of fewer samples than are wanted now
        for size, mix in enumerate(members[known:], start=known + 1):
            found = logits(mix)
            total = found if total is None else total + found
            self._sums[keys[:size]] = total
            for old in list(self._sums)[:-_KEPT]:
                del self._sums[old]
        return torch.as_tensor(total)[:stop]
