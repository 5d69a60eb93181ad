"""What scoring a mix gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mixopt.scoring.outcomes import Outcomes


@dataclass(frozen=True, eq=False)
class Score:
    """What a mix scored on one split.

    Attributes:
        value: The driving metric.
        metrics: Every metric by name (fractions; nll in nats).
        outcomes: Per-sample predictions and losses, in the split's fixed order.
        seconds: What computing it took, now or when it was first computed.
        cached: Whether it came from the cache.
        images: Samples that computing it ran through a model, those for BatchNorm statistics included.
        signal: What steers a search, see `Objective.signal`; with `Objective.weighing`, the weighted mean over splits.
        estimated: Whether the mix was given up before all samples: then ``signal`` and ``value`` are those of the
            incumbent, changed by the difference on the samples seen, and ``metrics`` are of those samples alone.
        beside: The scores on the other splits that weigh in ``signal``, by name.
    """

    value: float
    metrics: dict[str, float]
    outcomes: Outcomes
    seconds: float
    cached: bool
    images: int = 0
    signal: float = math.nan
    estimated: bool = False
    beside: Mapping[str, Score] = field(default_factory=dict)

    def weighed(self, beside: Mapping[str, Score], weights: Mapping[str, float]) -> Score:
        """The same with a signal that is a weighted mean over several splits.

        Args:
            beside: The scores on the others, by split.
            weights: What those weigh, together below 1; this one has the rest.
        """
        every = [self, *beside.values()]
        signal = (1 - sum(weights.values())) * self.signal
        signal += sum(weight * beside[name].signal for name, weight in weights.items())
        return replace(
            self,
            signal=signal,
            images=sum(each.images for each in every),
            seconds=sum(each.seconds for each in every),
            cached=all(each.cached for each in every),
            beside=beside,
        )
