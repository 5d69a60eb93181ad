"""How far to look at a split, and what was seen of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixopt.scoring.outcomes import Outcomes
from mixopt.scoring.racing import looks, out_of_reach


@dataclass(frozen=True, eq=False)
class Seen:
    """Outcomes of a split's first samples, from the cache or computed.

    Attributes:
        key: What they depend on.
        outcomes: Of as many samples as were wanted, or fewer where they were enough.
        seconds: What computing them takes, now or when they were first computed.
        images: Samples that computing them runs through a model, those for BatchNorm statistics included.
        runs: What was computed now: first sample to seconds.
    """

    key: str
    outcomes: Outcomes
    seconds: float
    images: int
    runs: Mapping[int, float]


@dataclass(frozen=True, eq=False)
class Looks:
    """How far to look at a split.

    Attributes:
        stops: Numbers of samples, ascending; the last is all that are wanted.
        enough: Whether what was seen at a stop is enough.
        needs: Fields of outcomes without which cached ones count as missing, beside those that the cache asks for.
    """

    stops: Sequence[int]
    enough: Callable[[Outcomes], bool] = lambda _: False
    needs: Sequence[str] = ()


def raced(
    total: int, batch: int, gains: Callable[[Outcomes], NDArray[np.float64]], level: float, needs: Sequence[str]
) -> Looks:
    """At even distances, until a mix will not reach an incumbent any more; see `mixopt.scoring.racing`.

    Args:
        total: Samples in all.
        batch: Samples per batch: looks are at whole ones.
        gains: How much better than the incumbent a mix is on each sample seen.
        level: Give up where the chance that it ends as good is below this.
        needs: As of `Looks`.
    """
    return Looks(looks(total, batch), lambda seen: out_of_reach(gains(seen), total, level), needs)
