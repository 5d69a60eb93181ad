"""A listener that writes down what it is told."""

from __future__ import annotations

from mixopt import Listener
from mixopt.listener import TrialEvent


class Recorder:
    """What was told, in order.

    Attributes:
        infos: Notices.
        warnings: Warnings.
        told: Both.
        progress: ``(what, done, total)``.
        trials: Trials.
        listener: What to hand on.
    """

    def __init__(self) -> None:
        self.infos: list[str] = []
        self.warnings: list[str] = []
        self.told: list[str] = []
        self.progress: list[tuple[str, int, int]] = []
        self.trials: list[TrialEvent] = []
        self.listener = Listener(
            info=self._info,
            warn=self._warn,
            progress=lambda *step: self.progress.append(step),
            trial=self.trials.append,
        )

    def _info(self, text: str) -> None:
        self.infos.append(text)
        self.told.append(text)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.told.append(text)
