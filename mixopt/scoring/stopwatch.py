"""Where time goes: seconds by kind of work, each second counted once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by name. Work inside other work counts for the inner name alone, so that all names add up.

    Attributes:
        seconds: Name to seconds so far, in the order in which names were first heard.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block for a name."""
        self._turn()
        self._running.append(name)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def _turn(self) -> None:
        """Give what passed since the last turn to the innermost name."""
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def shares(self, wall: float) -> dict[str, float]:
        """Seconds by name, rounded, and what is left of ``wall`` seconds under ``other``."""
        found = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        return {**found, "other": round(max(0.0, wall - sum(self.seconds.values())), 3)}
