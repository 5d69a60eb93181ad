"""How much memory this process can still have, whatever bounds it: the machine, its container, or its own limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_MEMORY = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
# A control group's limit, what it uses, and what of that is file content which goes where memory is wanted:
# version 2, then 1.
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
# What libraries say that have no class of error for it, Python says of threads, and the system of libraries.
_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Cannot allocate memory",
    "cannot allocate memory",
    "can't start new thread",
    "failed to map segment",
)


def available_memory() -> int:
    """Bytes that can be had now; 0 where nothing tells."""
    return max(0, min([*_of_machine(), *_of_groups(), *_of_process()], default=0))


def gigabytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, as Python, NumPy, torch or safetensors say it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    return isinstance(error, Exception) and any(text in str(error) for text in _TEXTS)


def _of_machine() -> Iterator[int]:
    with suppress(OSError, ValueError, IndexError):
        for line in _MEMORY.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def _of_groups() -> Iterator[int]:
    """Of every control group that this process is in, and of those around them."""
    with suppress(OSError, ValueError):
        for line in _OWN_GROUPS.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers in ("", "memory"):
                root, files = (_GROUPS / "memory", _VERSION_1) if controllers else (_GROUPS, _VERSION_2)
                inside = PurePosixPath(own.removeprefix("/"))
                for part in (inside, *inside.parents):
                    yield from _of_group(root / part, *files)


def _of_group(folder: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    with suppress(OSError, ValueError, IndexError):  # no limit: no file, or "max"
        most, used = (int((folder / name).read_text(encoding="ascii")) for name in (limit, usage))
        kept = [line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()]
        yield most - used + sum(int(value) for name, value in kept if name == reclaimable)


def _of_process() -> Iterator[int]:
    """What ``ulimit -v`` leaves."""
    with suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            sizes = [line.split() for line in _STATUS.read_text(encoding="utf-8", errors="replace").splitlines()]
            yield most - next(int(words[1]) * 1024 for words in sizes if words[0] == "VmSize:")
