"""How much memory a piece of work takes at its highest, and how much is free."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from mixopt.memory import available_memory

_RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs: resets the peak resident set size
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Watch the peak memory of the block: of the device where it is a GPU, else of the process.

    What the process held before, the pool above all, counts too.

    Args:
        device: Where the work is done.

    Yields:
        A function that gives the peak so far, in bytes, or None where the system does not tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    _release()
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        yield lambda: None
        return
    yield _peak_resident


def free_memory(device: torch.device) -> int:
    """Bytes that can be had now: on a device that is a GPU, else in the process's container; 0 if nothing tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


def _release() -> None:
    """Give what earlier work freed back to the system, so that it does not count for what follows."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not the GNU C library
        ctypes.CDLL(None).malloc_trim(0)


def _peak_resident() -> int | None:
    for line in _STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
