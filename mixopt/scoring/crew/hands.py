"""Hands: who does the jobs of a crew. Processes of this machine, or of others, stand behind this."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from mixopt.scoring.jobs import Answer, Job
from mixopt.scoring.work import AnyEvaluator


@dataclass(frozen=True)
class Loss:
    """Why a worker is gone.

    Attributes:
        reason: In words.
        blames: Whether what it worked on may be the cause.
    """

    reason: str
    blames: bool = True


class Hands(Protocol):
    """Workers, each with an engine of its own; one that is gone is replaced."""

    @property
    def count(self) -> int:
        """How many there are now, at least 1."""

    def share(self, token: str, evaluator: AnyEvaluator) -> None:
        """Let the workers know a split, before any job names it.

        Args:
            token: What jobs call it.
            evaluator: This process's own.
        """

    def submit(self, job: Job) -> Future[Answer]:
        """Give a job to the next that is free."""

    def loss(self, error: BaseException) -> Loss | None:
        """What a job's error says of its worker; None where the worker is well and the job has failed."""

    def stop(self, future: Future[Answer]) -> None:
        """Kill the worker that hangs over a job; its future then has an error that is a loss."""

    def renew(self) -> None:
        """Kill them all, and begin with new ones; nothing comes of what they were given."""
