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
        reason: In words; empty where they have been said.
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

    def is_running(self, future: Future[Answer]) -> bool:
        """Whether a worker is at a job, which then does not wait for another one."""

    def loss(self, future: Future[Answer]) -> Loss | None:
        """Why a job has no result: what became of its worker; None where that is well and the job has failed."""

    def stop(self, future: Future[Answer]) -> None:
        """Kill the worker that hangs over a job; its future then has an error that is a loss."""

    def renew(self) -> str:
        """Begin with new workers, as none of them begins with what it was given, of which nothing comes.

        Returns:
            What was done, in words.
        """
