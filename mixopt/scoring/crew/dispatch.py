"""Dispatch: pieces in their turn to whoever is free; what a lost worker had is given out again."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from itertools import count

from mixopt.errors import ScoreError, names
from mixopt.scoring.crew.hands import Hands
from mixopt.scoring.crew.pieces import Piece
from mixopt.scoring.crew.told import Told
from mixopt.scoring.jobs import Answer
from mixopt.values.mix import Mix

# A mix over which so many workers died one after another is given up.
DEATHS = 3
# A worker that takes so many times as long as the slowest part so far, and so many seconds, hangs.
SLOWER = 10
PATIENCE = 60.0
# The same before any part came back, when workers are still opening the pool.
OPENING = 1800.0
# Seconds between two looks at who hangs.
_TICK = 0.5
# What is done first: what is waited for, what will be, and what may be.
NOW, SOON, PERHAPS = range(3)


class Dispatch:
    """Gives pieces to workers, and takes what comes back.

    Args:
        hands: The workers.
        told: Told of them.
        patience: Seconds that a piece may take, however fast the others were.
    """

    def __init__(self, hands: Hands, told: Told, patience: float = PATIENCE) -> None:
        self._hands = hands
        self._told = told
        self._patience = patience
        self._ready: list[tuple[tuple[int, ...], int, Piece]] = []
        self._given: dict[Future[Answer], Piece] = {}
        self._deaths: dict[Mix, int] = {}
        self._numbers = count()
        self._slowest = 0.0
        self._heard = time.monotonic()

    def queue(self, pieces: Iterable[Piece], turn: tuple[int, ...]) -> None:
        """Have pieces done in their turn; one that waits already keeps the earlier one."""
        for piece in pieces:
            if not piece.given and not piece.is_over:
                heapq.heappush(self._ready, (turn, next(self._numbers), piece))

    def give(self) -> None:
        """Give out what can be worked on now, and a little more, so that none waits for this process."""
        most = self._hands.count + max(1, self._hands.count // 4)
        while self._ready and len(self._given) < most:
            _, _, piece = heapq.heappop(self._ready)
            if not (piece.left or piece.given or piece.is_over):
                piece.given, piece.since = True, None
                self._given[self._hands.submit(piece.job)] = piece

    def wait_for(self, pieces: Sequence[Piece]) -> Iterable[Piece]:
        """Go on until all of these have come back; gives every piece that comes back meanwhile, whichever it is.

        Raises:
            ScoreError: Workers die over a mix.
            MixoptError: A worker tells what is wrong with its input.
        """
        while not all(piece.is_over for piece in pieces):
            self.give()
            yield from self._hear()
        self.give()
        for piece in pieces:
            if piece.error is not None:
                raise piece.error

    def _hear(self) -> list[Piece]:
        """What has come back; waits for something where nothing has."""
        done, _ = wait(self._given, _TICK, FIRST_COMPLETED)
        if not done:
            self._look_who_hangs()
            return []
        self._heard = time.monotonic()
        came = [(future, self._given.pop(future)) for future in done]
        for future, piece in came:
            self._take(future, piece)
        return [piece for _, piece in came if piece.answer is not None]

    def _take(self, future: Future[Answer], piece: Piece) -> None:
        error = CancelledError() if future.cancelled() else future.exception()
        if error is None:
            piece.answer = answer = future.result()
            self._deaths.pop(piece.mix, None)
            self._slowest = max(self._slowest, answer.seconds)
            self._told.answer(answer, piece.job.count)
            return
        loss = self._hands.loss(future)
        if loss is None:
            piece.error = error
            return
        piece.given = False
        if loss.reason:
            self._told.lost(loss.reason + ("" if piece.left else "; what it worked on is given out again"))
        if loss.blames:
            piece.deaths += 1
            self._deaths[piece.mix] = self._deaths.get(piece.mix, 0) + 1
        if max(piece.deaths, self._deaths.get(piece.mix, 0)) >= DEATHS:
            piece.error = ScoreError(
                f"mix of {names(piece.mix.support())}: {DEATHS} workers were lost over it; the last time {loss.reason}"
            )
            self._deaths.pop(piece.mix, None)
            return
        self.queue([piece], (NOW, -1))

    def _look_who_hangs(self) -> None:
        now = time.monotonic()
        limit = max(self._patience, SLOWER * self._slowest) if self._slowest else OPENING
        running = [(future, piece) for future, piece in self._given.items() if self._hands.is_running(future)]
        for future, piece in running:
            piece.since = piece.since or now
            if now - piece.since > limit:
                self._told.lost(f"a worker takes more than {limit:.0f} s for one part, and is killed")
                piece.since = now
                self._hands.stop(future)
        if self._given and not running and now - self._heard > limit:
            waiting, self._given = list(self._given.values()), {}
            self._told.lost(f"no worker has taken a part for {limit:.0f} s; {self._hands.renew()}")
            self._heard = now
            for piece in waiting:
                piece.given = False
            self.queue(waiting, (NOW, -1))
