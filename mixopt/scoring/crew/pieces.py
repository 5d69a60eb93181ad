"""What is on its way: parts of passes, the stretches from look to look that they make up, and races of stretches."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mixopt.scoring.cache import outcomes_from
from mixopt.scoring.jobs import Answer, Job
from mixopt.scoring.outcomes import NO_OUTCOMES, Outcomes
from mixopt.scoring.work import Wanted
from mixopt.values.mix import Mix


@dataclass(eq=False)
class Piece:
    """A job on its way.

    Attributes:
        job: What is to be done.
        mix: What it is about, for errors.
        answer: What came back.
        error: Why nothing will.
        left: Nobody wants it any more.
        given: Whether a worker has it.
        deaths: Workers that died over it.
        since: When it was first seen running.
    """

    job: Job
    mix: Mix
    answer: Answer | None = None
    error: BaseException | None = None
    left: bool = False
    given: bool = False
    deaths: int = 0
    since: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be waited for."""
        return self.answer is not None or self.error is not None


@dataclass(eq=False)
class Stretch:
    """The samples from one look to the next.

    Attributes:
        start: The first.
        stop: One past the last.
        pieces: Its parts.
        in_order: Places in the pass of its samples in their own order; None where they are in it.
    """

    start: int
    stop: int
    pieces: list[Piece]
    in_order: NDArray[np.int64] | None

    @property
    def is_over(self) -> bool:
        """Whether all has come back."""
        return all(piece.answer is not None for piece in self.pieces)

    @property
    def outcomes(self) -> Outcomes:
        """Of its samples, in their own order."""
        found = NO_OUTCOMES
        for piece in self.pieces:
            found = found.then(outcomes_from(answer_of(piece).value))
        return found if self.in_order is None else found.at(self.in_order)

    @property
    def seconds(self) -> float:
        """What computing it took, in all workers together."""
        return sum(answer_of(piece).seconds for piece in self.pieces)


@dataclass(eq=False)
class Race:
    """A mix on its way, look by look.

    Attributes:
        wanted: What is asked for.
        stretches: Those that are not known yet.
        known: Of the samples whose look has been decided.
    """

    wanted: Wanted
    stretches: list[Stretch]
    known: Outcomes = field(init=False)
    _decided: int = 0

    def __post_init__(self) -> None:
        self.known = self.wanted.known

    def decide(self) -> None:
        """Leave what comes after a look that is enough."""
        looks = self.wanted.looks
        while self._decided < len(self.stretches) - 1 and self.stretches[self._decided].is_over:
            stretch = self.stretches[self._decided]
            self.known = self.known.then(stretch.outcomes)
            self._decided += 1
            if stretch.stop in looks.stops and looks.enough(self.known):
                self.leave(self._decided)
                self._decided = len(self.stretches)

    def leave(self, first: int = 0) -> None:
        """Nobody wants the stretches from a place on any more."""
        for stretch in self.stretches[first:]:
            for piece in stretch.pieces:
                piece.left = True


def answer_of(piece: Piece) -> Answer:
    """What came back of it."""
    if piece.answer is None:
        raise ValueError("asked for a part that has not come back")
    return piece.answer
