"""What a Dask worker does: opens what a run shares when it joins, and then one job after another.

Dask finds these functions by their names, on workers and on the scheduler, which takes tasks apart.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

from mixopt.scoring.device import resolve_device
from mixopt.scoring.jobs import Answer, Job
from mixopt.workers.conditions import Facts, facts_of
from mixopt.workers.worker import Worker, use_one_thread


@dataclass(frozen=True)
class Ticket:
    """What tells a worker of a run.

    Attributes:
        folder: What the run shares.
        device: Where models run there, as for ``--device``.
        name: What the worker is called.
        splits: What there is to score on when it joins.
    """

    folder: str
    device: str
    name: str
    splits: tuple[str, ...]


# Dask has glibc give freed memory back at once (MALLOC_TRIM_THRESHOLD_), so that a forward pass asks the system for the
# pages of every activation anew: on a CPU it then takes twice as long. While a run is open they are kept, up to what
# glibc goes to by itself where nobody sets anything; then as it is before it has seen any allocation.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT, _FREED = 2**25, 2**17

# Of one run at a time: another one's memory is given back.
_opened: dict[str, Worker] = {}


def join(ticket: Ticket) -> Facts:
    """Open what the run shares.

    Raises:
        RunError: It cannot be seen from here, or is something else here.
        MixoptError: The model cannot be made here.
    """
    worker = _worker(ticket)
    for split in ticket.splits:
        worker.engine.evaluators[split]
    return facts_of(resolve_device(ticket.device))


def do(ticket: Ticket, job: Job) -> Answer:
    """Do a job."""
    return _worker(ticket).do(job)


async def leave(folder: str) -> None:
    """Give back what was opened of a run; in the worker's event loop, whatever it works on."""
    if _opened.pop(folder, None) is not None:
        _keep_freed(_FREED)


def _keep_freed(largest: int) -> None:
    """Say up to which size in bytes glibc keeps what was freed, and twice as much in all; nothing without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, largest)
        mallopt(_TRIM_THRESHOLD, 2 * largest)


def _worker(ticket: Ticket) -> Worker:
    use_one_thread()
    if ticket.folder not in _opened:
        _opened.clear()
        _keep_freed(_KEPT)
        _opened[ticket.folder] = Worker(Path(ticket.folder), ticket.device, ticket.name)
    return _opened[ticket.folder]
