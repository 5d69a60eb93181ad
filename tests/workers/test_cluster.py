"""Workers of a Dask cluster: the result of one process, also where workers, the run and the scheduler are killed."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mixopt
from mixopt import RunError, SpecError
from mixopt.listener import TrialEvent
from tests.listening import Recorder
from tests.workers.searches import ENDS, begun, cached, check_same, options_of
from tests.workers.there import There, there, until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[There]:
    """Two workers with a nanny each."""
    with there(tmp_path_factory.mktemp("there")) as found:
        found.add("left", "--nthreads", "1")
        found.add("right", "--nthreads", "1")
        yield found


def test_a_search_by_a_cluster_one_of_whose_workers_is_killed(
    cluster: There, undisturbed: Path, clip_pool_template: Path, tmp_path: Path
) -> None:
    heard, killed = Recorder(), list[str]()

    def trial(event: TrialEvent) -> None:
        heard.listener.trial(event)
        if event.number == 3:
            killed.append(cluster.names()["left"])
            cluster.kill("left")

    options = options_of(clip_pool_template, tmp_path, scheduler=cluster.address)
    mixopt.search(**options, listener=replace(heard.listener, trial=trial))
    check_same(tmp_path, undisturbed)
    assert [text for text in heard.infos if text.startswith(f"workers: 2 of {cluster.address}, ")]
    assert any(f"worker left ({killed[0]}) died" in text for text in heard.warnings), heard.told
    assert any("worker right" in text and "has joined" in text for text in heard.infos)
    assert not list((tmp_path / "cache" / "workers").iterdir())
    until(lambda: "left" in cluster.names() and cluster.opened() == [0, 0])


@pytest.mark.usefixtures("interruptible")
def test_a_run_that_is_stopped_leaves_the_cluster_to_others_and_goes_on(
    cluster: There, undisturbed: Path, clip_pool_template: Path, tmp_path: Path
) -> None:
    with begun(clip_pool_template, tmp_path, scheduler=cluster.address) as process:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=ENDS)
        assert (process.returncode, b"Traceback" in said) == (130, False), said.decode()
    with begun(clip_pool_template, tmp_path, scheduler=cluster.address) as process:
        os.kill(process.pid, signal.SIGKILL)
    mixopt.search(**options_of(clip_pool_template, tmp_path, scheduler=cluster.address))
    check_same(tmp_path, undisturbed)
    assert set(cluster.names()) == {"left", "right"}


def test_a_scheduler_that_goes_is_told_and_what_was_found_is_kept(
    undisturbed: Path, clip_pool_template: Path, tmp_path: Path
) -> None:
    with there(tmp_path / "there") as gone:
        gone.add("alone", "--nthreads", "1")
        seen: list[int] = []

        def trial(event: TrialEvent) -> None:
            seen.append(event.number)
            if len(seen) == 3:
                gone.kill_scheduler()

        listener = replace(Recorder().listener, trial=trial)
        with pytest.raises(RunError, match=r"--scheduler tcp://\S+: the scheduler is gone; .*the same command"):
            mixopt.search(**options_of(clip_pool_template, tmp_path, scheduler=gone.address), listener=listener)
    assert len(cached(tmp_path)) >= 3
    mixopt.search(**options_of(clip_pool_template, tmp_path))
    check_same(tmp_path, undisturbed)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this processor has one kind only")
def test_devices_of_another_kind_are_refused_unless_they_are_wanted(clip_pool_template: Path, tmp_path: Path) -> None:
    with there(tmp_path / "there") as other:
        other.add("old", "--nthreads", "1", "--no-nanny", ATEN_CPU_CAPABILITY="default")
        options = {
            **options_of(clip_pool_template, tmp_path, scheduler=other.address),
            "methods": ["uniform"],
        }
        del options["trials"], options["sampler"]
        with pytest.raises(RunError, match=r"worker old \(tcp\S+\): it computes on .*DEFAULT.*--mixed-devices"):
            mixopt.compare(**options)
        assert set(cached(tmp_path)) <= {"labels.npz"}, "of a split"
        heard = Recorder()
        mixopt.compare(**options, mixed_devices=True, listener=heard.listener)
    assert any(text.startswith("workers: 1 of") and "DEFAULT" in text for text in heard.infos)
    mixed = set(cached(tmp_path)) - {"labels.npz"}
    del options["scheduler"]
    mixopt.compare(**options)
    alone = set(cached(tmp_path)) - mixed - {"labels.npz"}
    assert len(alone) == len(mixed), "cached apart"


@pytest.mark.parametrize("options", [("--nthreads", "2"), ("--nthreads", "1", "--memory-limit", "300MB")])
def test_workers_that_cannot_do_it_are_refused_by_name(
    options: tuple[str, ...], clip_pool_template: Path, tmp_path: Path
) -> None:
    expected = "threads.*--nthreads 1" if "2" in options else r"0\.3 GB.*--memory-limit"
    with there(tmp_path / "there") as other:
        other.add("small", *options)
        with pytest.raises(RunError, match=rf"worker small \(tcp\S+\): it .*{expected}"):
            mixopt.search(**options_of(clip_pool_template, tmp_path, scheduler=other.address))
    assert not list((tmp_path / "cache" / "workers").iterdir())


@pytest.mark.parametrize("speaks", [True, False])
def test_a_scheduler_that_does_not_answer(speaks: bool, clip_pool_template: Path, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if speaks:
            silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(SpecError, match=rf"--scheduler {address}: no Dask scheduler answers there within 5 s"):
            mixopt.search(**options_of(clip_pool_template, tmp_path, scheduler=address))
    assert time.monotonic() - started < 30
