"""What a user is told of workers."""

from __future__ import annotations

import time

from mixopt.listener import Listener
from mixopt.scoring.jobs import Answer

# Seconds between two tellings of what each worker has done.
_EVERY = 10.0


class Told:
    """Tells of workers that join or are lost; with ``verbose``, now and then, what each has done."""

    def __init__(self, listener: Listener, verbose: bool) -> None:
        self._listener = listener
        self._verbose = verbose
        self._said: set[str] = set()
        self._processes: dict[str, int] = {}
        # Worker to parts, samples, seconds.
        self._work: dict[str, tuple[int, int, float]] = {}
        self._last = time.monotonic()

    def answer(self, answer: Answer, samples: int) -> None:
        """A part came back."""
        before = self._processes.get(answer.worker)
        if before != answer.process:
            self._processes[answer.worker] = answer.process
            self._listener.info(f"{answer.worker} has joined" + ("" if before is None else " anew"))
        parts, every, seconds = self._work.get(answer.worker, (0, 0, 0.0))
        self._work[answer.worker] = (parts + 1, every + samples, seconds + answer.seconds)
        for text in answer.warned:
            if text not in self._said:
                self._said.add(text)
                self._listener.warn(f"{answer.worker}: {text}")
        if self._verbose and time.monotonic() - self._last > _EVERY:
            self._tell()

    def lost(self, text: str) -> None:
        """A worker is gone."""
        self._listener.warn(text)

    def _tell(self) -> None:
        now = time.monotonic()
        for worker, (parts, samples, seconds) in sorted(self._work.items()):
            rate = samples / seconds if seconds else 0.0
            self._listener.info(f"{worker}: {parts:,} parts, {samples:,} images, {rate:,.0f} images/s")
        every = sum(samples for _, samples, _ in self._work.values())
        self._listener.info(
            f"all workers: {every / (now - self._last):,.0f} images/s in the last {now - self._last:.0f} s"
        )
        self._work = dict.fromkeys(self._work, (0, 0, 0.0))
        self._last = now
