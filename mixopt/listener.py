"""Listener: how the library tells a caller what happens, without printing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class TrialEvent:
    """A trial that was told.

    Attributes:
        number: Its number; that of a second round's trial goes on counting from the first's.
        complete: Complete trials so far, the start included.
        total: Complete trials wanted.
        value: The driving metric; None for a failed trial.
        best: That of the best trial so far, by what the sampler was told; of several values by their weighted mean.
        images_per_second: Of its evaluation; None where it came from the cache.
    """

    number: int
    complete: int
    total: int
    value: float | None
    best: float
    images_per_second: float | None


def _ignore(*_: Any) -> None:
    """Hear nothing."""


@dataclass(frozen=True)
class Listener:
    """Callbacks, each silent by default.

    Attributes:
        info: What a user should know.
        warn: What a user should look into.
        progress: ``(what, done, total)``: how far a piece of work is.
        trial: A trial was told.
    """

    info: Callable[[str], None] = _ignore
    warn: Callable[[str], None] = _ignore
    progress: Callable[[str, int, int], None] = _ignore
    trial: Callable[[TrialEvent], None] = _ignore

    def once(self) -> Listener:
        """The same, told every text of ``info`` once, however often it is said."""
        said: set[str] = set()

        def info(text: str) -> None:
            if text not in said:
                said.add(text)
                self.info(text)

        return replace(self, info=info)
