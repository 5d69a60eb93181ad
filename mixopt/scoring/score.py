"""What scoring a mix gives, and what all scoring took."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mixopt.scoring.evaluator import Outcomes


@dataclass(frozen=True, eq=False)
class Score:
    """What a mix scored on one split.

    Attributes:
        value: The driving metric.
        metrics: Every metric by name (fractions; nll in nats).
        outcomes: Per-sample predictions and losses, in the split's fixed order.
        seconds: What computing it took, now or when it was first computed.
        cached: Whether it came from the cache.
        images: Images that computing it ran through a model, those for BatchNorm statistics included.
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


@dataclass
class Tally:
    """What has been asked for on the selection split: distinct mixes, as if nothing had been cached.

    Attributes:
        asked: By content key, the images scored and the seconds that took when it was computed.
        learned: The same for gradients, and the share of the split that each saw.
        members: Keys of the models whose logits were needed for ensembles.
        own: By row, the seconds of a method's own work beside evaluations.
        computed: How many of both were computed rather than found in the cache.
        spent: Seconds that computing those took.
    """

    asked: dict[str, tuple[int, float]] = field(default_factory=dict)
    learned: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    members: set[str] = field(default_factory=set)
    own: dict[str, float] = field(default_factory=dict)
    computed: int = 0
    spent: float = 0.0

    @property
    def evaluations(self) -> int:
        """The number of distinct mixes; a pass over the split for gradients counts as one."""
        return len(self.asked) + math.ceil(sum(share for *_, share in self.learned.values()) - 1e-6)

    @property
    def images(self) -> int:
        """Images that went through a model for them."""
        return sum(images for images, _ in self.asked.values()) + self.gradient_images

    @property
    def gradient_images(self) -> int:
        """Those of them that a gradient was taken on."""
        return sum(images for images, *_ in self.learned.values())

    @property
    def seconds(self) -> float:
        """Seconds that this takes, from nothing."""
        scoring = sum(seconds for _, seconds in self.asked.values())
        return scoring + sum(seconds for _, seconds, _ in self.learned.values()) + sum(self.own.values())

    def merged(self, other: Tally) -> Tally:
        """Both together; a mix that both asked for counts once."""
        return Tally(
            {**self.asked, **other.asked},
            {**self.learned, **other.learned},
            self.members | other.members,
            {**self.own, **other.own},
            self.computed + other.computed,
            self.spent + other.spent,
        )
