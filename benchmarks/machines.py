"""A Dask cluster of this machine's processes, each worker in a network of its own where wanted.

A simulated machine is a network namespace, tied to a bridge by a virtual cable that `tc` slows down. The scheduler
and the run stay outside, beside each other, as on a laptop: what they tell each other passes no cable. To make one
needs root, and `ip` and `tc` (the package iproute2).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

BRIDGE, NETWORK = "mixopt-br", "10.87.0"
_SHAPE = ("burst", "128kb", "latency", "50ms")
CABLES = Path("/sys/class/net")


class Cluster:
    """A scheduler and workers, started by the commands that users start them with.

    Args:
        folder: For what they write.
        host: Where the scheduler listens.

    Attributes:
        address: The scheduler's.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        self._begin("scheduler", "--host", host, "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        while not file.exists():
            time.sleep(0.1)
        self.address: str = json.loads(file.read_text())["address"]
        self._workers: list[subprocess.Popen[bytes]] = []

    def add(self, *options: str, inside: str | None = None) -> None:
        """Start a worker with its nanny, in a simulated machine or beside this process."""
        options = ("--nthreads", "1", "--no-dashboard", "--local-directory", str(self._folder), *options)
        self._workers.append(self._begin("worker", self.address, *options, inside=inside))

    def kill_one(self) -> bool:
        """Kill (SIGKILL) a worker drawn at random, or every fourth time its nanny with it, which is started anew.

        Returns:
            Whether there was one.
        """
        chosen = random.choice(self._workers)
        with suppress(psutil.Error):
            nanny = psutil.Process(chosen.pid)
            workers = [each for each in nanny.children() if "spawn_main" in " ".join(each.cmdline())]
            if random.random() < 0.25:
                self._workers.remove(chosen)
                for each in (nanny, *workers):
                    each.kill()
                chosen.wait()
                self.add()
                return True
            if workers:
                workers[0].kill()
                return True
        return False

    def close(self) -> None:
        """End all of them."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _begin(self, what: str, *options: str, inside: str | None = None) -> subprocess.Popen[bytes]:
        prefix = [] if inside is None else ["ip", "netns", "exec", inside]
        command = [*prefix, sys.executable, "-m", "dask", what, *options]
        own = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, env=own, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._processes.append(process)
        return process


@contextmanager
def started(folder: Path, host: str = "127.0.0.1") -> Iterator[Cluster]:
    """A scheduler without workers, while the block is open."""
    cluster = Cluster(folder, host)
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def networks(count: int, rate: str) -> Iterator[tuple[str, ...]]:
    """So many network namespaces on one bridge, while the block is open; their names.

    Raises:
        CalledProcessError: They cannot be made here.
    """
    names = tuple(f"mixopt{number}" for number in range(count))
    try:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(names):
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", name, "master", BRIDGE, "up")
            inside = ("ip", "netns", "exec", name)
            _run(*inside, "ip", "addr", "add", f"{NETWORK}.{number + 2}/24", "dev", "eth0")
            _run(*inside, "ip", "link", "set", "eth0", "up")
            _run(*inside, "ip", "link", "set", "lo", "up")
            for slow in (("tc",), (*inside, "tc")):
                device = name if len(slow) == 1 else "eth0"
                shaped = (
                    "qdisc",
                    "add",
                    "dev",
                    device,
                    "root",
                    "tbf",
                    "rate",
                    rate,
                    "burst",
                    "128kb",
                    "latency",
                    "50ms",
                )
                _run(*slow, *shaped)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["ip", "link", "del", BRIDGE], stderr=subprocess.DEVNULL, check=False)


def passed(names: tuple[str, ...]) -> int:
    """Bytes that have passed the machines' cables, both ways."""
    counters = [CABLES / name / "statistics" / f"{way}_bytes" for name in names for way in ("rx", "tx")]
    return sum(int(path.read_text()) for path in counters)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
