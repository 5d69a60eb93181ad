"""Racing: when a mix that has seen some of the samples can be given up. Pure; no torch, no Optuna.

The samples of a split stand in one fixed random order, so the first of them are a fair sample of all. A mix is compared
with an incumbent sample by sample; what they differ by on the samples to come is predicted from those seen.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# A mix is given up where the chance that it ends as good as the incumbent is below this, at every look.
LEVEL = 0.005
# Looks at even distances; the first of them sees enough samples for a normal approximation.
LOOKS = 10
FEWEST = 200


def looks(total: int, batch: int = 1) -> list[int]:
    """How many samples have been seen at each look, ascending: whole batches, and at the last look all of them."""
    step = math.ceil(max(FEWEST, total / LOOKS) / batch) * batch
    return [*range(step, total, step), total]


def out_of_reach(gains: NDArray[np.float64], total: int, level: float = LEVEL) -> bool:
    """Whether a mix that has gained so much on the samples seen will not reach 0 on all of them.

    The sum over all is predicted as normal: the samples to come have the mean and variance of those seen, and the mean
    is itself an estimate. A sample's worth of variance is added, so that a mix that has not differed yet goes on.

    Args:
        gains: ``[seen]``, how much better than the incumbent on each sample seen; negative is worse.
        total: Samples in all.
        level: Give up where the chance to reach 0 is below this.
    """
    seen = len(gains)
    rest = total - seen
    if not rest or not np.all(np.isfinite(gains)):
        return False
    variance = (float(np.sum(np.square(gains - gains.mean()))) + float(np.max(np.abs(gains), initial=0.0)) ** 2) / seen
    spread = math.sqrt(variance * rest * total / seen)
    expected = float(gains.sum()) * total / seen
    return expected < 0 and 0.5 * math.erfc(-expected / (spread * math.sqrt(2))) < level
