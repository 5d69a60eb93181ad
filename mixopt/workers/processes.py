"""Workers of this machine: spawned processes, one for each GPU or core.

Pebble keeps them: it replaces a process that dies while the others go on, where ``ProcessPoolExecutor`` and loky give
up all of them, and it kills one whose job is cancelled.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from pebble import ProcessExpired, ProcessPool

from mixopt.scoring.crew.hands import Loss
from mixopt.scoring.jobs import Answer, Job
from mixopt.scoring.work import AnyEvaluator
from mixopt.workers.shared import share_split

if TYPE_CHECKING:
    from mixopt.workers.worker import Worker

# Seconds for processes that were told to end.
_LAST = 5.0


class Processes:
    """Spawned processes; see `mixopt.scoring.crew.hands.Hands`.

    Args:
        folder: What the run shares.
        devices: That of each worker.
    """

    def __init__(self, folder: Path, devices: Sequence[str]) -> None:
        self._folder = folder
        self._devices = tuple(devices)
        self._pool = self._begun()

    @property
    def count(self) -> int:
        """See `Hands`."""
        return len(self._devices)

    def share(self, token: str, evaluator: AnyEvaluator) -> None:
        """See `Hands`."""
        share_split(self._folder, token, evaluator)

    def submit(self, job: Job) -> Future[Answer]:
        """See `Hands`."""
        if not self._pool.active:
            self.renew()
        found: Future[Answer] = self._pool.schedule(_do, args=(job,))
        return found

    def is_running(self, future: Future[Answer]) -> bool:
        """See `Hands`."""
        return future.running()

    def loss(self, future: Future[Answer]) -> Loss | None:
        """See `Hands`."""
        if future.cancelled():
            return Loss("a worker was killed, which hung")
        error = future.exception()
        if isinstance(error, ProcessExpired):
            return Loss(f"a worker died ({_why(error.exitcode)})")
        if isinstance(error, BrokenProcessPool):
            return Loss("workers died while they had nothing to do", blames=False)
        return None

    def stop(self, future: Future[Answer]) -> None:
        """See `Hands`."""
        future.cancel()

    def renew(self) -> str:
        """See `Hands`."""
        self.close()
        self._pool = self._begun()
        return "all of them are replaced"

    def close(self) -> None:
        """Kill them all."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join(_LAST)

    def _begun(self) -> ProcessPool:
        return ProcessPool(
            max_workers=len(self._devices),
            initializer=_begin,
            initargs=(str(self._folder), self._devices),
            context=multiprocessing.get_context("spawn"),
        )


@dataclass
class _Place:
    """Which of the workers this process is.

    Attributes:
        folder: What the run shares.
        number: From 0 on.
        device: Where it runs models.
        lock: Held while this process lives.
        worker: Once it has opened the folder.
    """

    folder: Path
    number: int
    device: str
    lock: FileLock
    worker: Worker | None = None


_place: list[_Place] = []


def _begin(folder: str, devices: tuple[str, ...]) -> None:
    """In a new process: find out which worker it is, end with the run's own process, and at once when told to."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    for number, device in enumerate(devices):
        lock = FileLock(Path(folder) / f"worker-{number}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue  # another process is that one
        _place.append(_Place(Path(folder), number, device, lock))
        return
    raise RuntimeError(f"more than {len(devices)} workers")


def _end_with(parent: multiprocessing.process.BaseProcess | None) -> None:
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(job: Job) -> Answer:
    """In a worker: do a job, the first one after opening the pool."""
    (place,) = _place
    if place.worker is None:
        from mixopt.workers.worker import Worker, use_one_thread  # torch, in the worker alone

        use_one_thread()
        place.worker = Worker(place.folder, place.device, f"worker {place.number + 1} ({place.device})")
    return place.worker.do(job)


def _why(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"{name}; the system kills a process where memory runs out" if name == "SIGKILL" else name
