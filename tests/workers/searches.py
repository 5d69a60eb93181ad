"""Searches that must find the same whoever scores, and what of them must be the same."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from tests.stages.default import options_of as default_options
from tests.study.killing import facts_of, model_hash

TRIALS = 100
SOME_TRIALS = 40_000  # bytes of journal
ENDS = 15.0  # seconds within which processes that were told to must be gone


def options_of(pool: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return default_options(pool, folder, trials=TRIALS, sampler="cmaes", batch_size=10, page="off", **more)


def cached(folder: Path) -> dict[str, str]:
    """Of every entry of a cache, a hash of all but the times."""
    found = {}
    for path in sorted((folder / "cache").glob("*/*/*.npz")):
        digest = hashlib.sha256()
        with np.load(path) as entry:
            for name in sorted(entry.files):
                if name not in ("_seconds", "_checksum"):
                    digest.update(name.encode() + entry[name].tobytes())
        found[path.name] = digest.hexdigest()
    return found


def check_same(folder: Path, other: Path) -> None:
    assert facts_of(folder / "run") == facts_of(other / "run")
    assert model_hash(folder / "run") == model_hash(other / "run")
    assert cached(folder) == cached(other)


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Spawned processes that score, without what multiprocessing keeps beside them."""
    found = []
    for child in process.children():
        with suppress(psutil.Error):
            if any("spawn_main" in word for word in child.cmdline()):
                found.append(child)
    return found


@contextmanager
def begun(pool: Path, folder: Path, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A search's process, in the middle of its trials; killed at the end of the block, with its group."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options_of(pool, folder, **more).items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "mixopt", "search", *flags, "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        journal = folder / "run" / "study.journal"
        before = journal.stat().st_size if journal.exists() else 0
        wait_until(
            lambda: process.poll() is not None or (journal.exists() and journal.stat().st_size > before + SOME_TRIALS)
        )
        assert process.poll() is None, process.communicate()[0].decode()
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(there: Callable[[], bool]) -> None:
    while not there():
        time.sleep(0.01)
