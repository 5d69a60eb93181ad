"""A Dask cluster of processes of this machine, started as its users start it: by commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distributed import Client

START = 60.0  # seconds
_ROOT = Path(__file__).parents[2]  # workers import what tests ask them


class There:
    """A scheduler, and the workers that are started.

    Args:
        folder: For what they write.

    Attributes:
        address: The scheduler's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        self._begin("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        until(file.exists)
        self.address: str = json.loads(file.read_text())["address"]
        self._client = Client(self.address, set_as_default=False)

    def add(self, name: str, *options: str, **variables: str) -> None:
        """Start a worker, and wait until the scheduler knows it."""
        fixed = ("--name", name, "--no-dashboard", "--local-directory", str(self._folder), "--host", "127.0.0.1")
        self._begin("worker", self.address, *fixed, *options, **variables)
        until(lambda: name in self.names())

    def names(self) -> dict[str, str]:
        """Name to address, of the workers that are there."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        return {each["name"]: address for address, each in workers.items()}

    def kill(self, name: str) -> None:
        """Kill a worker's process, whose nanny starts another one."""
        (pid,) = self._client.run(os.getpid, workers=[self.names()[name]]).values()
        os.kill(pid, signal.SIGKILL)

    def opened(self) -> list[int]:
        """How many pools each worker has open."""
        return list(self._client.run(_opened).values())

    def kill_scheduler(self) -> None:
        """Kill it, and so the cluster."""
        self._processes[0].kill()

    def close(self) -> None:
        """End all of them."""
        with suppress(Exception):
            self._client.close(timeout=1)
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _begin(self, what: str, *options: str, **variables: str) -> None:
        own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT), **variables}
        with (self._folder / f"{what}-{len(self._processes)}.log").open("wb") as log:
            command = [sys.executable, "-m", "dask", what, *options]
            self._processes.append(
                subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True, cwd=self._folder)
            )


@contextmanager
def there(folder: Path) -> Iterator[There]:
    """A scheduler without workers, while the block is open; the folder is made if absent."""
    folder.mkdir(exist_ok=True)
    cluster = There(folder)
    try:
        yield cluster
    finally:
        cluster.close()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + START
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def _opened() -> int:
    from mixopt.workers import remote

    return len(remote._opened)
