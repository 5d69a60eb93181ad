"""How far off a surface is, sample by sample: what it predicts of each mix that was scored, had that mix not been."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mixopt.surface.fitting import Surface
from mixopt.surface.outputs import EVERYTHING, PredictedOutcomes, joined, numbers_of, separated

# Mixes at a time.
AT_ONCE = 24


def left_out_outcomes(
    surface: Surface, mixes: NDArray[np.int64], needs: Sequence[str] = EVERYTHING
) -> Iterator[tuple[PredictedOutcomes, PredictedOutcomes]]:
    """What each mix is predicted to do by the others, and what it did, on all samples.

    Leaving one out takes no fit (Rasmussen and Williams, equation 5.12).

    Args:
        surface: Predicts.
        mixes: ``[m]``, numbers of mixes that were scored on all samples.
        needs: What is wanted beside classes and losses, see `mixopt.values.metrics.Metric`.
    """
    for first in range(0, len(mixes), AT_ONCE):
        some = mixes[first : first + AT_ONCE]
        pieces = []
        for part in surface.parts:
            rows, places = np.arange(len(some)), np.searchsorted(part.mixes, some)
            did = np.zeros((len(some), len(surface)))
            did[rows, some] = 1
            said = did.copy()
            said[:, part.mixes] -= part.inverse[places] / part.inverse[places, places][:, None]
            shares = torch.from_numpy(np.vstack([said, did]).astype(np.float32)).to(surface.reference.device)
            for begin, end, changes in surface.scored.pieces(part.first, part.stop):
                outputs = (shares @ changes).view(2 * len(some), end - begin, -1).add_(surface.reference[begin:end])
                pieces.append(numbers_of(outputs, surface.columns, begin, needs))
        both = separated(joined(pieces))
        yield from zip(both[: len(some)], both[len(some) :], strict=True)
