"""Workers of this machine: the result of one process, also where workers and the run's own process are killed."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

import mixopt
from mixopt.listener import TrialEvent
from tests.listening import Recorder
from tests.workers.searches import ENDS, begun, check_same, options_of, workers_of


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
    assert [text for text in heard.infos if text.endswith("has joined anew")]
    assert not workers_of(psutil.Process())
    assert not list((tmp_path / "cache" / "workers").iterdir())


def stopped(pool: Path, folder: Path, stop: signal.Signals) -> tuple[int, bytes]:
    """Stop a search's process in the middle of its trials; its exit code, and what it said.

    Its workers must be gone then.
    """
    with begun(pool, folder, workers=2) as process:
        workers = workers_of(psutil.Process(process.pid))
        assert len(workers) == 2
        if stop == signal.SIGINT:  # as a terminal does: to all of them
            os.killpg(process.pid, stop)
        else:
            process.send_signal(stop)
        said, _ = process.communicate(timeout=ENDS)
        try:
            _, alive = psutil.wait_procs(workers, ENDS)
            assert not alive
        finally:
            for each in workers:
                with suppress(psutil.Error):
                    each.kill()
        return process.returncode, said


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
