"""What has been asked for, as events by key: adding the same twice changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple


class Asked(NamedTuple):
    """A mix or an ensemble that was scored.

    Attributes:
        images: Samples that went through a model for it.
        seconds: What that took, when it was computed.
    """

    images: int
    seconds: float


class Learned(NamedTuple):
    """A gradient that was taken.

    Attributes:
        images: Samples that it was taken on.
        seconds: What that took, when it was computed.
        share: Those samples as a share of the ones that a score is of.
    """

    images: int
    seconds: float
    share: float


@dataclass
class Tally:
    """Distinct mixes asked for on the validation split, as if nothing had been cached; and what really ran.

    Attributes:
        asked: What was scored, by content key.
        learned: Gradients, by content key.
        members: Keys of the models whose logits were needed for ensembles.
        own: By row, the seconds of a method's own work beside evaluations.
        runs: What was computed rather than found in the cache, on any split: by content key and the first sample
            computed, the seconds that it took.
    """

    asked: dict[str, Asked] = field(default_factory=dict)
    learned: dict[str, Learned] = field(default_factory=dict)
    members: set[str] = field(default_factory=set)
    own: dict[str, float] = field(default_factory=dict)
    runs: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def evaluations(self) -> int:
        """The number of distinct mixes; a pass over the split for gradients counts as one."""
        return len(self.asked) + _passes(self.learned.values())

    def computed(self, ran: Set[str]) -> int:
        """How many of the evaluations were computed, at least in part.

        Args:
            ran: Content keys of what was not found in the cache, whoever asked first.
        """
        return len(ran & self.asked.keys()) + _passes(self.learned[key] for key in ran & self.learned.keys())

    @property
    def spent(self) -> float:
        """Seconds that computing took, on any split."""
        return sum(self.runs.values())

    @property
    def images(self) -> int:
        """Samples that went through a model."""
        return sum(each.images for each in self.asked.values()) + self.gradient_images

    @property
    def gradient_images(self) -> int:
        """Those of them that a gradient was taken on."""
        return sum(each.images for each in self.learned.values())

    @property
    def seconds(self) -> float:
        """Seconds that all of it takes, from nothing."""
        scoring = sum(each.seconds for each in self.asked.values())
        return scoring + sum(each.seconds for each in self.learned.values()) + sum(self.own.values())

    def ask(self, key: str, images: int, seconds: float) -> None:
        """Add a score; of one that was asked for before, the one of more samples counts."""
        self.asked[key] = max(self.asked.get(key, Asked(0, 0.0)), Asked(images, seconds))

    def ran(self, key: str, runs: Mapping[int, float]) -> None:
        """Add what was computed: by the first sample, the seconds that it took."""
        self.runs.update({(key, first): seconds for first, seconds in runs.items()})

    def merged(self, other: Tally) -> Tally:
        """Both together; what both asked for counts once."""
        both = Tally(
            dict(self.asked),
            {**self.learned, **other.learned},
            self.members | other.members,
            {**self.own, **other.own},
            {**self.runs, **other.runs},
        )
        for key, asked in other.asked.items():
            both.ask(key, *asked)
        return both


def _passes(learned: Iterable[Learned]) -> int:
    """Passes over the split that gradients make together, the last one begun counted as one."""
    return math.ceil(sum(each.share for each in learned) - 1e-6)
