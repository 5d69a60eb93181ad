"""Workers without processes: each job is done when it is given out, or what a script says happens instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from mixopt import Objective, load_spec
from mixopt.assemble import assemble
from mixopt.listener import Listener
from mixopt.scoring.crew.hands import Loss
from mixopt.scoring.jobs import Answer, Job
from mixopt.scoring.work import AnyEvaluator
from mixopt.workers import scored_by, shared_folder
from mixopt.workers.shared import share_split
from mixopt.workers.worker import Worker


class DiedError(Exception):
    """A worker is gone."""


class IdleError(Exception):
    """A worker is gone that had nothing to do."""


class Scripted:
    """A `Hands` whose jobs are done at once.

    Args:
        folder: Shared.
        count: Workers.
        script: The number of a job, in the order in which they are given out, to its error, or None: it hangs.

    Attributes:
        given: The jobs.
        stopped: How many were stopped because they hung.
        renewed: How often all workers were replaced.
    """

    def __init__(self, folder: Path, count: int, script: Mapping[int, BaseException | None]) -> None:
        self._folder = folder
        self._script = dict(script)
        self.count = count
        self.given: list[Any] = []
        self.stopped = 0
        self.renewed = 0

    @cached_property
    def _worker(self) -> Worker:
        return Worker(self._folder, "cpu", "worker 1 (cpu)")

    def share(self, token: str, evaluator: AnyEvaluator) -> None:
        """See `Hands`."""
        share_split(self._folder, token, evaluator)

    def submit(self, job: Job) -> Future[Answer]:
        """See `Hands`."""
        future: Future[Answer] = Future()
        number = len(self.given)
        self.given.append(job)
        if number in self._script:
            error = self._script[number]
            if error is None:
                future.set_running_or_notify_cancel()
            else:
                future.set_exception(error)
            return future
        try:
            future.set_result(self._worker.do(job))
        except BaseException as error:
            future.set_exception(error)
        return future

    def is_running(self, future: Future[Answer]) -> bool:
        """See `Hands`."""
        return future.running()

    def loss(self, future: Future[Answer]) -> Loss | None:
        """See `Hands`."""
        error = future.exception()
        if isinstance(error, DiedError):
            return Loss("a worker died")
        return Loss("a worker died in its sleep", blames=False) if isinstance(error, IdleError) else None

    def stop(self, future: Future[Answer]) -> None:
        """See `Hands`."""
        self.stopped += 1
        future.set_exception(DiedError())

    def renew(self) -> str:
        """See `Hands`."""
        self.renewed += 1
        return "all of them are replaced"


@contextmanager
def crewed(
    pool: Path,
    cache: Path,
    script: Mapping[int, BaseException | None] | None = None,
    *,
    count: int = 2,
    listener: Listener | None = None,
    **options: Any,
) -> Iterator[tuple[Objective, Scripted]]:
    """An objective scored by scripted workers, and those."""
    given = {"models": pool, "cache": cache, "device": "cpu", "precision": "fp32", "batch_size": 10, **options}
    spec, heard = load_spec(given), listener or Listener()
    assembly = assemble(spec, heard)
    with shared_folder(spec, assembly) as folder:
        hands = Scripted(folder, count, script or {})
        yield scored_by(hands, assembly.objective, heard, verbose=spec.verbose), hands
