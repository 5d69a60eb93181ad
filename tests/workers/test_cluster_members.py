"""Who is a member of a cluster: workers that come, cannot join, are lost, hang or leave; the client is scripted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import KilledWorker

from mixopt import RunError, SpecError, load_spec
from mixopt.scoring.crew.hands import Loss
from mixopt.workers import cluster, remote
from mixopt.workers.cluster import Cluster, Terms
from mixopt.workers.conditions import Facts, facts_of, unfit, unlike
from mixopt.workers.remote import Ticket
from tests.listening import Recorder

HERE = Facts({"torch": "2", "mixopt": "1"}, "a chip")
ADDRESS = "tcp://there:8786"


class Executor:
    """Gives futures that tests decide about; those of workers that join are done at once with what the worker has."""

    def __init__(self, facts: Facts | BaseException | None) -> None:
        self._facts = facts
        self.shut = False

    def submit(self, function: Callable[..., Any], *_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if function is remote.join and isinstance(self._facts, Facts):
            future.set_result(self._facts)
        elif function is remote.join and isinstance(self._facts, BaseException):
            future.set_exception(self._facts)
        return future

    def shutdown(self, wait: bool) -> None:
        assert not wait
        self.shut = True


class Client:
    """Stands in for Dask's: the workers are what a test says.

    Attributes:
        status: As Dask has it.
        restarted: Addresses of workers that were started anew.
    """

    def __init__(self) -> None:
        self.status = "running"
        self.restarted: list[str] = []
        self.left: list[str] = []
        self.nannies = True
        self._workers: dict[str, dict[str, Any]] = {}
        self._facts: dict[str, Facts | BaseException | None] = {}
        self._heard: Callable[[tuple[float, Any]], None] | None = None
        self.scheduler = self
        self.address = ADDRESS

    def come(
        self, address: str, facts: Facts | BaseException | None = HERE, threads: int = 1, limit: int = 0, name: str = ""
    ) -> None:
        self._workers[address] = {"name": name or address, "nthreads": threads, "memory_limit": limit}
        self._facts[address] = facts
        self.tell({"action": "add-worker", "worker": address})

    def go(self, address: str, expected: bool = False) -> None:
        del self._workers[address]
        self.tell({"action": "remove-worker", "worker": address, "expected": expected})

    def tell(self, event: Any) -> None:
        if self._heard:
            self._heard((0.0, event))

    def subscribe_topic(self, topic: str, heard: Callable[[tuple[float, Any]], None]) -> None:
        assert topic == "all"
        self._heard = heard

    def unsubscribe_topic(self, topic: str) -> None:
        self._heard = None

    def scheduler_info(self, n_workers: int) -> Mapping[str, Any]:
        assert n_workers == -1, "all of them"
        return {"workers": dict(self._workers)}

    def get_executor(self, pure: bool, workers: list[str]) -> Executor:
        assert not pure
        return Executor(self._facts[workers[0]])

    def restart_workers(self, workers: list[str], timeout: int, raise_for_error: bool) -> None:
        if not self.nannies:
            raise ValueError("requires a nanny")
        self.restarted += workers

    def run(self, function: Any, folder: str, workers: list[str], wait: bool) -> None:
        assert (function, wait) == (remote.leave, False)
        self.left += workers


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(cluster, "_TICK", 0.0)
    return Recorder()


def made(client: Any, heard: Recorder, *, mixed: bool = False) -> Cluster:
    return Cluster(client, Terms(Path("shared"), "cpu", HERE, 1_000_000_000, mixed), heard.listener)


def gathered(client: Client, heard: Recorder, *, mixed: bool = False) -> Cluster:
    found = made(client, heard, mixed=mixed)
    found.gather()
    return found


JOB: Any = object()


def test_jobs_go_to_who_has_least_to_do(client: Client, heard: Recorder) -> None:
    client.come("a")
    client.come("b")
    hands = gathered(client, heard)
    assert hands.count == 2
    futures = [hands.submit(JOB) for _ in range(4)]
    assert [hands.is_running(future) for future in futures] == [True, True, False, False]
    futures[0].set_result("done")  # type: ignore[arg-type]
    assert [hands.is_running(future) for future in futures] == [False, True, True, False]


def test_of_what_a_lost_worker_had_only_the_first_is_blamed(client: Client, heard: Recorder) -> None:
    client.come("a", name="left")
    hands = gathered(client, heard)
    first, second = hands.submit(JOB), hands.submit(JOB)
    client.go("a")
    client.come("b")
    assert hands.count == 1
    assert first.cancelled()
    assert second.cancelled()
    assert hands.loss(first) == Loss("worker left (a) died", blames=True)
    assert hands.loss(second) == Loss("", blames=False), "said already"
    assert hands.is_running(hands.submit(JOB)), "by the one that came"


def test_a_worker_that_leaves_is_not_blamed(client: Client, heard: Recorder) -> None:
    client.come("a")
    client.come("b")
    hands = gathered(client, heard)
    lost = hands.submit(JOB)
    client.go("a", expected=True)
    client.go("b", expected=True)
    client.come("c")
    assert hands.count == 1
    assert hands.loss(lost) == Loss("worker a has left", blames=False)
    assert "worker b has left" in heard.warnings, "which had nothing to do"


def test_what_a_future_says_itself(client: Client, heard: Recorder) -> None:
    client.come("a")
    hands = gathered(client, heard)
    killed, failed, cancelled = (hands.submit(JOB) for _ in range(3))
    killed.set_exception(KilledWorker("do", "a", 4))
    failed.set_exception(ValueError("x"))
    cancelled.cancel()
    assert hands.loss(killed) == Loss("a worker died")
    assert hands.loss(failed) is None
    assert hands.loss(cancelled) == Loss("the cluster gave a part up", blames=False)


UNFIT = [
    (HERE, 2, 0, r"it has 2 threads.*--nthreads 1"),
    (HERE, 1, 500_000_000, r"it may use 0\.5 GB, and needs about 1\.0 GB.*--memory-limit"),
    (Facts({"torch": "3", "mixopt": "1"}, "a chip"), 1, 0, "it has torch 3, where the run has 2"),
    (Facts({"torch": "2", "mixopt": "0"}, "a chip"), 1, 0, "it has mixopt 0, where the run has 1"),
    (Facts(HERE.versions, "another"), 1, 0, "it computes on another, where the run has a chip.*--mixed-devices"),
    (RunError("x.bin: a worker cannot read it"), 1, 0, "x.bin: a worker cannot read it"),
    (
        ModuleNotFoundError("No module named 'mixopt'"),
        1,
        0,
        "it cannot open.*No module named 'mixopt'.*in the env",
    ),
]


@pytest.mark.parametrize(("facts", "threads", "limit", "expected"), UNFIT)
def test_a_worker_that_cannot_is_refused_when_a_run_begins_and_left_out_later(
    facts: Any, threads: int, limit: int, expected: str, client: Client, heard: Recorder
) -> None:
    client.come("a")
    client.come("bad", facts, threads, limit)
    with pytest.raises(RunError, match=f"--scheduler {ADDRESS}: worker bad: {expected}"):
        gathered(client, heard)
    client.go("bad")
    hands = gathered(client, heard)
    client.come("bad", facts, threads, limit)
    client.come("good")
    assert hands.count == 2
    assert hands.count == 2
    (said,) = heard.warnings
    assert said.startswith("worker bad is left out: it" if threads + limit > 1 else "worker bad is left out: ")


def test_kinds_are_those_of_the_beginning(client: Client, heard: Recorder) -> None:
    client.come("a", Facts(HERE.versions, "another"))
    hands = gathered(client, heard, mixed=True)
    assert hands.kinds == {"a chip", "another"}
    client.come("b", Facts(HERE.versions, "a third"))
    client.come("c", Facts(HERE.versions, "another"))
    assert hands.count == 2
    assert "worker b is left out: it computes on a third" in heard.warnings[0]


def test_a_run_waits_for_the_first_worker_and_for_another_where_none_is_left(
    client: Client, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_PATIENT", -1.0)
    coming = iter(["a", "b"])
    monkeypatch.setattr(time, "sleep", lambda _: client.come(next(coming)))
    hands = gathered(client, heard)
    assert heard.infos == [f"waiting for workers to open the pool ({ADDRESS})"]
    client.go("a")
    assert hands.is_running(hands.submit(JOB))
    assert heard.infos[1:] == [f"waiting for a worker to join ({ADDRESS})"]


def test_workers_that_die_while_they_open_the_pool(
    client: Client, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.come("a0", None)
    dying = iter(range(20))

    def die(_: float) -> None:
        number = next(dying)
        client.go(f"a{number}")
        client.come(f"a{number + 1}", None)

    monkeypatch.setattr(time, "sleep", die)
    with pytest.raises(RunError, match="10 workers died while they opened the pool, the last one worker a9"):
        gathered(client, heard)
    assert heard.warnings == [f"worker a{number} is gone before it had opened the pool" for number in range(9)]


def test_workers_may_die_as_often_as_others_join(client: Client, heard: Recorder) -> None:
    client.come("first")
    hands = gathered(client, heard)
    for number in range(3 * cluster._DEATHS):
        client.come(f"dies {number}", None)
        assert hands.count == 1
        client.go("first" if number == 0 else f"joins {number - 1}")
        client.go(f"dies {number}")
        client.come(f"joins {number}")
        assert hands.count == 1
    assert sum("is gone before it had opened" in text for text in heard.warnings) == 3 * cluster._DEATHS


def test_a_worker_that_never_opens_the_pool(client: Client, heard: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "OPENING", -1.0)
    client.come("slow", None)
    with pytest.raises(RunError, match="worker slow: has not opened the pool"):
        gathered(client, heard)


@pytest.mark.parametrize("nannies", [True, False])
def test_a_worker_that_hangs_is_started_anew_where_it_can_be(nannies: bool, client: Client, heard: Recorder) -> None:
    client.nannies = nannies
    client.come("a")
    hands = gathered(client, heard)
    hanging = hands.submit(JOB)
    hands.stop(hanging)
    assert hands.loss(hanging) == Loss("worker a was killed, which hung")
    assert client.restarted == (["a"] if nannies else [])
    assert (
        "worker a is left out: it hangs, and cannot be started anew from here (requires a nanny)" in heard.warnings
    ) == (not nannies)


def test_workers_that_begin_nothing_are_asked_again(client: Client, heard: Recorder) -> None:
    client.come("a")
    hands = gathered(client, heard)
    lost = hands.submit(JOB)
    assert hands.renew() == "those of the cluster are asked to join again"
    assert lost.cancelled()
    assert hands.count == 1
    assert hands.is_running(hands.submit(JOB))


def test_a_scheduler_that_is_gone(client: Client, heard: Recorder) -> None:
    client.come("a")
    hands = gathered(client, heard)
    future = hands.submit(JOB)
    client.status = "connecting"
    future.cancel()
    for ask in (lambda: hands.count, lambda: hands.submit(JOB), lambda: hands.loss(future)):
        with pytest.raises(RunError, match=f"--scheduler {ADDRESS}: the scheduler is gone"):
            ask()
    hands.close()
    assert not client.left


def test_a_cluster_is_left_to_others(client: Client, heard: Recorder) -> None:
    client.come("a")
    hands = gathered(client, heard)
    client.tell("what others log")
    hands.close()
    assert client.left == ["a"]


def test_facts_are_those_of_what_a_run_uses() -> None:
    here = facts_of(torch.device("cpu"))
    assert {"python", "mixopt", "torch", "numpy"} <= here.versions.keys()
    assert torch.backends.cpu.get_cpu_capability() in here.kind
    assert unlike(here, here, {here.kind}) is None
    more = Facts({**here.versions, "another": "1"}, "else")
    assert unlike(more, here, None) is None, "what only the worker has imported"
    assert unlike(here, more, None) is None, "what only the run has"
    assert unfit(1, 0, 10**12) is None
    assert unfit(1, 10**12, 10**12) is None


def test_a_worker_opens_a_run_once_and_another_one_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    class Opened:
        def __init__(self, folder: Path, *_: str) -> None:
            opened.append(folder)

        def do(self, job: str) -> str:
            return job

    monkeypatch.setattr(remote, "Worker", Opened)
    monkeypatch.setattr(remote, "_opened", {})
    first, second = (Ticket(folder, "cpu", "x", ()) for folder in ("one", "two"))
    for ticket in (first, first, second):
        assert remote.do(ticket, JOB) is JOB
    assert opened == [Path("one"), Path("two")]
    with pytest.raises(StopIteration):
        remote.leave("two").send(None)
    assert not remote._opened


@pytest.mark.parametrize("value", ["", "nowhere", "tcp://", "tcp://x", "x:port", "tcp://x:1 y", "http//x:1"])
def test_addresses_that_are_none(value: str, clip_pool_template: Path) -> None:
    with pytest.raises(SpecError, match=r"scheduler.*expected tcp://HOST:PORT, as `dask scheduler` prints it"):
        load_spec({"models": clip_pool_template, "scheduler": value})


@pytest.mark.parametrize(
    ("value", "expected"), [("x:1", "tcp://x:1"), ("tls://x.y:22", "tls://x.y:22"), ("tcp://[::1]:8786",) * 2]
)
def test_addresses(value: str, expected: str, clip_pool_template: Path) -> None:
    assert load_spec({"models": clip_pool_template, "scheduler": value}).scheduler == expected


def test_options_that_exclude_each_other(clip_pool_template: Path) -> None:
    with pytest.raises(SpecError, match="a cluster has the workers that were started there; leave out this or workers"):
        load_spec({"models": clip_pool_template, "scheduler": "x:1", "workers": 2})
    with pytest.raises(SpecError, match="about the workers of a scheduler, and there is none"):
        load_spec({"models": clip_pool_template, "mixed_devices": True})


def test_the_library_is_an_extra(clip_pool_template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import mixopt

    monkeypatch.setitem(sys.modules, "mixopt.workers.scheduler", None)
    with pytest.raises(SpecError, match=r"--scheduler tcp://x:1 needs Dask .*pip install 'mixopt\[dask\]'"):
        mixopt.search(clip_pool_template, scheduler="x:1")
