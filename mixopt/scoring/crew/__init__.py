"""Crew: what is asked for, cut into parts and given out to workers; here alone it is decided what is done next.

Parts of several mixes are given out in turn, the first samples of all of them before the next ones of any, so that
races are decided early and no worker waits for another. They are put together in the order of the samples, whoever
computed them, so that what comes out are the bits of one worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt.listener import Listener
from mixopt.scoring.crew.dispatch import NOW, PATIENCE, PERHAPS, SOON, Dispatch
from mixopt.scoring.crew.hands import Hands
from mixopt.scoring.crew.pieces import Piece, Race, Stretch, answer_of
from mixopt.scoring.crew.told import Told
from mixopt.scoring.engine import Engine, added, gradient_parts
from mixopt.scoring.jobs import Part, Rows, SlopePart
from mixopt.scoring.outcomes import Outcomes
from mixopt.scoring.racing import LOOKS
from mixopt.scoring.work import AnyEvaluator, Compute, OnBatch, Slope, Wanted
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION


class Crew:
    """Gives work out to workers, in the place of an engine.

    Args:
        hands: The workers.
        engine: This process's own; its splits are those of the workers.
        listener: Told of workers that join or are lost, and with ``verbose`` what each has done.
        verbose: Whether to tell that.
        patience: Seconds that a part may take, however fast the others were.
    """

    def __init__(
        self,
        hands: Hands,
        engine: Engine,
        listener: Listener | None = None,
        *,
        verbose: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        self._engine = engine
        self._hands = hands
        self._tokens: dict[str, str] = {}
        self._dispatch = Dispatch(hands, Told(listener or Listener(), verbose), patience)
        self._races: dict[tuple[Mix, str], Race] = {}

    @property
    def ahead(self) -> int:
        """See `Work`: as many as give every worker a part, and another one to go on with."""
        return 3 if self._hands.count > LOOKS else 2

    def expect(self, wanted: Iterable[Wanted], *, unsure: bool = False) -> None:
        """See `Work`."""
        for number, each in enumerate(wanted):
            key = (each.mix, each.split)
            race = self._races.get(key)
            if race is not None and not _same(race.wanted, each):
                race.leave()
                race = None
            if race is None:
                self._races[key] = race = self._race(each)
            for place, stretch in enumerate(race.stretches):
                self._dispatch.queue(stretch.pieces, (PERHAPS, number, place) if unsure else (SOON, place, number))
        self._dispatch.give()

    def forget(self) -> None:
        """See `Work`."""
        for race in self._races.values():
            race.leave()
        self._races.clear()

    def beside(self, name: str, evaluator: AnyEvaluator) -> Crew:
        """See `Work`; both share the workers, who know the split by its content as well as its name."""
        other = copy(self)
        other._engine = self._engine.beside(name, evaluator)
        other._races = {}
        other._tokens = {**self._tokens, name: f"{name} {evaluator.split.fingerprint}"}
        self._hands.share(other._tokens[name], evaluator)
        return other

    @contextmanager
    def scoring(self, wanted: Wanted, on_batch: OnBatch | None) -> Iterator[Compute]:
        """See `Work`; looks that come later are worked on while one is waited for."""
        race = self._races.pop((wanted.mix, wanted.split), None)
        if race is not None and not _same(race.wanted, wanted):
            race.leave()
            race = None
        race = race or self._race(wanted)
        for place, stretch in enumerate(race.stretches):
            self._dispatch.queue(stretch.pieces, (NOW, place))

        def compute(start: int, stop: int) -> tuple[Outcomes, float]:
            (stretch,) = [each for each in race.stretches if each.start <= start and stop <= each.stop]
            if any(piece.left for piece in stretch.pieces):  # by a race against an earlier incumbent
                for piece in stretch.pieces:
                    piece.left = False
                self._dispatch.queue(stretch.pieces, (NOW, 0))
            self._wait_for(stretch.pieces)
            if on_batch:
                on_batch(stop - start)
            found, share = stretch.outcomes, (stop - start) / (stretch.stop - stretch.start)
            if share < 1:
                found = found.first(stop - stretch.start).rest(start - stretch.start)
            return found, stretch.seconds * share

        try:
            yield compute
        finally:
            race.leave()

    def logits(self, mix: Mix, split: str, stop: int, on_batch: OnBatch | None) -> Tensor:
        """See `Work`."""
        rows = Rows.of(mix, self._engine.pool)
        places, parts = self._parts(mix, split, 0, stop)
        pieces = [Piece(Part(rows, self._token(split), 0, stop, *part, logits=True), mix) for part in parts]
        self._work_through(pieces, on_batch)
        found = torch.cat([torch.from_numpy(answer_of(piece).value) for piece in pieces])
        return found if places is None else found[torch.from_numpy(places)]

    def slope(self, mix: Mix, samples: NDArray[np.int64], scale: float, tuning: int, on_batch: OnBatch | None) -> Slope:
        """See `Work`; a gradient of one part is taken in this process, with all the cores that it may use."""
        parts = gradient_parts(samples, self._engine.evaluators[VALIDATION])
        if len(parts) == 1:
            return self._engine.slope(mix, samples, scale, tuning, on_batch)
        rows = Rows.of(mix, self._engine.pool)
        pieces = [Piece(SlopePart(rows, part, scale, tuning), mix) for part in parts]
        self._work_through(pieces, on_batch)
        return added([(piece.job.count, answer_of(piece).value) for piece in pieces])

    def _race(self, wanted: Wanted) -> Race:
        """A mix's looks that are still to do, each cut into parts."""
        mix, split = wanted.mix, wanted.split
        rows, known = Rows.of(mix, self._engine.pool), len(wanted.known)
        stops = [stop for stop in wanted.looks.stops if stop > known]
        # Statistics that are set anew cost more than samples: they are set once, for all looks together.
        cuts = [known, *(stops[-1:] if self._engine.recomputes(mix) else stops)]
        stretches = []
        for start, stop in pairwise(cuts):
            places, parts = self._parts(mix, split, start, stop)
            pieces = [Piece(Part(rows, self._token(split), start, stop, *part), mix) for part in parts]
            stretches.append(Stretch(start, stop, pieces, places))
        return Race(wanted, stretches)

    def _parts(
        self, mix: Mix, split: str, start: int, stop: int
    ) -> tuple[NDArray[np.int64] | None, list[tuple[int, int]]]:
        """How a pass is given out: places in it of its samples in their own order, if that is another; and the cuts."""
        evaluator = self._engine.evaluators[split]
        through = evaluator.batching.between(start, stop)
        # As many as looks of a race, or as workers: batches are the same, however many make a part.
        parts = 1 if self._engine.recomputes(mix) else max(LOOKS, self._hands.count)
        step = max(1, -(-len(evaluator.split) // parts))
        return through.in_order(), through.parts(evaluator.batch_size, step)

    def _token(self, split: str) -> str:
        """What workers call a split."""
        return self._tokens.get(split, split)

    def _work_through(self, pieces: Sequence[Piece], on_batch: OnBatch | None) -> None:
        """Have pieces done before all others."""
        self._dispatch.queue(pieces, (NOW,))
        try:
            self._wait_for(pieces)
        finally:
            for piece in pieces:
                piece.left = True
        if on_batch:
            on_batch(sum(piece.job.count for piece in pieces))

    def _wait_for(self, pieces: Sequence[Piece]) -> None:
        with self._engine.stopwatch("workers"):
            for piece in self._dispatch.wait_for(pieces):
                # Races that are expected are decided as soon as they can be, whatever is waited for.
                for race in self._races.values():
                    if race.wanted.mix is piece.mix:
                        race.decide()


def _same(first: Wanted, second: Wanted) -> bool:
    """Whether both are of the same looks from the same sample on."""
    return len(first.known) == len(second.known) and list(first.looks.stops) == list(second.looks.stops)
