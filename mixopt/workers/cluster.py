"""Workers of other machines: the processes of a Dask cluster that has been started beside the run.

A worker joins when it has opened what the run shares, and would find the bits that the run would. Each job is given to
one worker: Dask, left to choose, would give it to one that joined the cluster a moment ago and knows nothing yet, and
would not say which worker was lost over it. Only the run's own thread changes what is known of the workers; what the
cluster tells meanwhile waits in a queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from distributed import Client, KilledWorker

from mixopt.errors import MixoptError, RunError
from mixopt.listener import Listener
from mixopt.scoring.crew.hands import Loss
from mixopt.scoring.jobs import Answer, Job
from mixopt.scoring.work import AnyEvaluator
from mixopt.untrusted import reason_of
from mixopt.workers.conditions import Facts, unfit, unlike
from mixopt.workers.remote import Ticket, do, join, leave
from mixopt.workers.shared import share_split

# Seconds that workers may take to open the pool, those that are there when a run begins.
OPENING = 1800.0
# Seconds between two looks at who has joined, while nobody is there.
_TICK = 0.2
# Seconds after which a user is told of what is waited for.
_PATIENT = 10.0
# So many workers that die one after another while they open the pool, and none that has opened it, end the run.
_DEATHS = 10
# Seconds for a worker that hangs to be replaced.
_RESTARTING = 10


@dataclass(frozen=True)
class Terms:
    """What is asked of a worker.

    Attributes:
        folder: What the run shares.
        device: Where it runs models, as for ``--device``.
        here: Facts of the run's own process.
        needed: Bytes that it will use.
        mixed: Whether devices of other kinds may compute.
    """

    folder: Path
    device: str
    here: Facts
    needed: int
    mixed: bool


@dataclass(eq=False)
class _Member:
    """A worker that has joined, or is joining.

    Attributes:
        address: Where it is.
        ticket: What it is given with every job.
        executor: Gives it jobs, and nobody else.
        joining: Done when it has opened the pool.
        given: What it has to do, in order.
    """

    address: str
    ticket: Ticket
    executor: Any
    joining: Future[Facts]
    given: list[Future[Answer]] = field(default_factory=list)

    @property
    def waiting(self) -> list[Future[Answer]]:
        """What has not come back; the first of them is what it works on."""
        self.given = [future for future in self.given if not future.done()]
        return self.given


class Cluster:
    """The workers of a Dask scheduler; see `mixopt.scoring.crew.hands.Hands`.

    Args:
        client: Of the scheduler.
        terms: What is asked of a worker.
        listener: Told of who is waited for, or left out.

    Attributes:
        kinds: The kinds of device that compute.
    """

    def __init__(self, client: Client, terms: Terms, listener: Listener) -> None:
        self._client = client
        self._address: str = client.scheduler.address
        self._terms = terms
        self._listener = listener
        self._events: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
        self._members: dict[str, _Member] = {}
        self._joining: dict[str, _Member] = {}
        self._left_out: set[str] = set()
        self._losses: dict[Future[Answer], Loss] = {}
        self._deaths = 0
        self.kinds = {terms.here.kind}
        self._splits: list[str] = []
        self._begun = False
        client.subscribe_topic("all", self._hear)

    def gather(self) -> None:
        """Wait for the workers that are there to join; for the first one, where there are none yet.

        Raises:
            RunError: One of them does not see what the run does, or would find other bits; or none opens the pool.
        """
        self._meet()
        self._wait_for("workers to open the pool", lambda: not self._joining and bool(self._members))
        self._begun = True

    @property
    def count(self) -> int:
        """See `Hands`."""
        self._look()
        return max(1, len(self._members))

    def share(self, token: str, evaluator: AnyEvaluator) -> None:
        """See `Hands`."""
        share_split(self._terms.folder, token, evaluator, sealed=True)
        self._splits.append(token)

    def submit(self, job: Job) -> Future[Answer]:
        """See `Hands`; waits where no worker is there."""
        self._look()
        if not self._members:
            self._wait_for("a worker to join", lambda: bool(self._members))
        member = min(self._members.values(), key=lambda each: len(each.waiting))
        future: Future[Answer] = member.executor.submit(do, member.ticket, job)
        member.given.append(future)
        return future

    def is_running(self, future: Future[Answer]) -> bool:
        """See `Hands`: a worker does what it was given in order."""
        return any(member.waiting[:1] == [future] for member in self._members.values())

    def loss(self, future: Future[Answer]) -> Loss | None:
        """See `Hands`."""
        self._look()
        if (loss := self._losses.pop(future, None)) is not None:
            return loss
        if future.cancelled():
            return Loss("the cluster gave a part up", blames=False)
        return Loss("a worker died") if isinstance(future.exception(), KilledWorker) else None

    def stop(self, future: Future[Answer]) -> None:
        """See `Hands`; a worker without a nanny, who would start it anew, is left out instead."""
        for member in list(self._members.values()):
            if future in member.waiting:
                self._lose(member, f"{member.ticket.name} was killed, which hung", blames=True)
                try:
                    self._client.restart_workers([member.address], timeout=_RESTARTING, raise_for_error=False)
                except (ValueError, OSError) as error:
                    reason = f"it hangs, and cannot be started anew from here ({reason_of(error)})"
                    self._leave_out(member.address, member.ticket.name, reason)

    def renew(self) -> str:
        """See `Hands`."""
        for member in list(self._members.values()):
            self._lose(member, f"{member.ticket.name} did not begin", blames=False)
        self._losses.clear()
        self._meet()
        return "those of the cluster are asked to join again"

    def close(self) -> None:
        """Leave the cluster to others: what is not begun is taken back, and memory given back."""
        if self._client.status == "running" and self._members:
            self._client.unsubscribe_topic("all")
            self._client.run(leave, str(self._terms.folder), workers=list(self._members), wait=False)
        for member in self._members.values():
            member.executor.shutdown(wait=False)

    def _hear(self, event: tuple[float, Any]) -> None:
        """In the client's thread: what the scheduler tells."""
        if isinstance(event[1], Mapping):
            self._events.put(event[1])

    def _look(self) -> None:
        """Take in what was heard: who has come, joined or gone.

        Raises:
            RunError: The scheduler is gone; or at the beginning of a run, a worker cannot join.
        """
        if self._client.status != "running":
            raise RunError(
                f"--scheduler {self._address}: the scheduler is gone; start it and its workers again, and give the "
                "same command, which goes on from here"
            )
        came = False
        while not self._events.empty():
            event = self._events.get()
            came |= event.get("action") == "add-worker"
            if event.get("action") == "remove-worker":
                self._go(str(event["worker"]), bool(event.get("expected")))
        if came:
            self._meet()
        for member in [each for each in self._joining.values() if each.joining.done()]:
            del self._joining[member.address]
            self._admit(member)

    def _meet(self) -> None:
        """Ask all workers to join who are not known yet."""
        known = {*self._members, *self._joining, *self._left_out}
        for address, told in self._client.scheduler_info(n_workers=-1)["workers"].items():
            if address not in known:
                name = f"worker {told['name']}" + ("" if told["name"] == address else f" ({address})")
                ticket = Ticket(str(self._terms.folder), self._terms.device, name, tuple(self._splits))
                if reason := unfit(told["nthreads"], told["memory_limit"], self._terms.needed):
                    self._leave_out(address, name, reason)
                else:
                    executor = self._client.get_executor(pure=False, workers=[address])
                    self._joining[address] = _Member(address, ticket, executor, executor.submit(join, ticket))

    def _admit(self, member: _Member) -> None:
        """Take a worker on that has opened the pool, or say why not."""
        if reason := self._why_not(member.joining):
            self._leave_out(member.address, member.ticket.name, reason)
        else:
            self._deaths = 0
            self.kinds.add(member.joining.result().kind)
            self._members[member.address] = member

    def _why_not(self, joining: Future[Facts]) -> str | None:
        if joining.cancelled():
            return "the cluster did not let it open the pool"
        error = joining.exception()
        if error is None:
            # Kinds are part of what scores are cached by: one that comes later must be of those that are known.
            kinds = None if self._terms.mixed and not self._begun else self.kinds
            return unlike(joining.result(), self._terms.here, kinds)
        if isinstance(error, MixoptError):
            return str(error)
        return (
            f"it cannot open the pool ({type(error).__name__}: {reason_of(error)}); start the scheduler and all "
            "workers in the environment that the run is started in"
        )

    def _leave_out(self, address: str, name: str, reason: str) -> None:
        if not self._begun:
            raise RunError(f"--scheduler {self._address}: {name}: {reason}")
        self._left_out.add(address)
        self._listener.warn(f"{name} is left out: {reason}")

    def _go(self, address: str, expected: bool) -> None:
        """A worker has left the cluster."""
        self._left_out.discard(address)
        if (member := self._joining.pop(address, None)) is not None:
            self._deaths += 1
            if self._deaths >= _DEATHS and not self._members:
                raise RunError(
                    f"--scheduler {self._address}: {self._deaths} workers died while they opened the pool, the last "
                    f"one {member.ticket.name}; see what the workers print"
                )
            self._listener.warn(f"{member.ticket.name} is gone before it had opened the pool")
        elif (member := self._members.get(address)) is not None:
            self._lose(member, f"{member.ticket.name} " + ("has left" if expected else "died"), blames=not expected)

    def _lose(self, member: _Member, reason: str, *, blames: bool) -> None:
        """What a worker had to do comes to nothing; what it worked on may be the cause, and nothing else."""
        del self._members[member.address]
        waiting = list(member.waiting)
        if not waiting:
            self._listener.warn(reason)
        for place, future in enumerate(waiting):
            self._losses[future] = Loss("" if place else reason, blames=blames and place == 0)
            future.cancel()

    def _wait_for(self, what: str, there: Callable[[], bool]) -> None:
        """Wait until something is there.

        Raises:
            RunError: It takes too long.
        """
        began, told = time.monotonic(), False
        while True:
            self._look()
            if there():
                return
            waited = time.monotonic() - began
            if waited > OPENING and self._joining:
                names = ", ".join(member.ticket.name for member in self._joining.values())
                raise RunError(f"--scheduler {self._address}: {names}: has not opened the pool within {OPENING:.0f} s")
            if waited > _PATIENT and not told:
                self._listener.info(f"waiting for {what} ({self._address})")
                told = True
            time.sleep(_TICK)
