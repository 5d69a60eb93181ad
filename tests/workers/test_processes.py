"""Workers of this machine: the result of one process, also where workers and the run's own process are killed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

import mixopt
from mixopt.listener import TrialEvent
from tests.listening import Recorder
from tests.stages.default import options_of as default_options
from tests.study.killing import facts_of, model_hash

TRIALS = 150
SOME_TRIALS = 60_000  # bytes of journal
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


@pytest.fixture(scope="module")
def undisturbed(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search by one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    mixopt.search(**options_of(clip_pool_template, folder))
    return folder


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


def test_a_search_by_two_workers_one_of_which_is_killed_twice(
    undisturbed: Path, clip_pool_template: Path, tmp_path: Path
) -> None:
    heard, killed = Recorder(), list[int]()

    def trial(event: TrialEvent) -> None:
        heard.listener.trial(event)
        if event.number % 20 == 3 and len(killed) < 2 and (workers := workers_of(psutil.Process())):
            killed.append(workers[0].pid)
            workers[0].kill()

    listener = replace(heard.listener, trial=trial)
    mixopt.search(**options_of(clip_pool_template, tmp_path, workers=2), listener=listener)
    check_same(tmp_path, undisturbed)
    assert len(set(killed)) == 2, "the one that was replaced, or the other"
    assert "workers: 2 on this machine, cpu, one thread each" in heard.infos
    assert {f"worker {number} (cpu) has joined" for number in (1, 2)} <= set(heard.infos)
    assert not workers_of(psutil.Process())
    assert not list((tmp_path / "cache" / "workers").iterdir())


def command_of(pool: Path, folder: Path) -> list[str]:
    options = options_of(pool, folder, workers=2)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "mixopt", "search", *flags, "--quiet"]


def stopped(pool: Path, folder: Path, stop: signal.Signals) -> tuple[int, bytes]:
    """Stop a search's process in the middle of its trials; its exit code, and what it said.

    Its workers must be gone then.
    """
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command_of(pool, folder), env=own, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    workers: list[psutil.Process] = []
    try:
        journal = folder / "run" / "study.journal"
        begun = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and (not journal.exists() or journal.stat().st_size < begun + SOME_TRIALS):
            time.sleep(0.01)
        workers = workers_of(psutil.Process(process.pid))
        assert len(workers) == 2, process.communicate()[0].decode()
        if stop == signal.SIGINT:  # as a terminal does: to all of them
            os.killpg(process.pid, stop)
        else:
            process.send_signal(stop)
        said, _ = process.communicate(timeout=ENDS)
        _, alive = psutil.wait_procs(workers, ENDS)
        assert not alive
        return process.returncode, said
    finally:
        for each in workers:
            with suppress(psutil.Error):
                each.kill()
        process.kill()
        process.wait()


@pytest.mark.usefixtures("interruptible")
def test_a_run_that_is_stopped_takes_its_workers_with_it_and_goes_on(
    undisturbed: Path, clip_pool_template: Path, tmp_path: Path
) -> None:
    code, said = stopped(clip_pool_template, tmp_path, signal.SIGINT)
    assert (code, b"Traceback" in said) == (130, False), said.decode()
    assert not list((tmp_path / "cache" / "workers").iterdir())
    code, _ = stopped(clip_pool_template, tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL
    mixopt.search(**options_of(clip_pool_template, tmp_path, workers=2))
    check_same(tmp_path, undisturbed)
    assert not list((tmp_path / "cache" / "workers").iterdir())
