"""What a command does to the file system, counted in its own process; at one of these events the process is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import filelock
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from sqlalchemy.engine.default import DefaultDialect

BEFORE, AFTER, TORN = "before", "after", "torn"
APPEND, ANY = "append", "any"


@dataclass(frozen=True)
class Strike:
    """A kill.

    Attributes:
        event: A kind of event, or `ANY`.
        number: Which one of them, from 1.
        moment: `BEFORE` or `AFTER` it, or `TORN`: with half of its bytes written.
    """

    event: str
    number: int
    moment: str


def moments_of(event: str) -> tuple[str, ...]:
    """When a process can be killed at an event of this kind."""
    return (BEFORE, AFTER, TORN) if event == APPEND else (BEFORE, AFTER)


class Watch:
    """Counts events, and kills the process at one.

    Args:
        folder: Where they count; what happens to other files does not.
        strike: When to kill; never without.
    """

    def __init__(self, folder: Path, strike: Strike | None) -> None:
        self.counts: Counter[str] = Counter()
        self._folder = str(folder)
        self._strike = strike

    def install(self) -> None:
        """Put a watch on every function that makes an event."""
        self._watch(os, "fsync", "fsync", lambda *_: True)
        self._watch(os, "replace", "rename", self._is)
        self._watch(os, "rename", "rename", self._is)
        self._watch(os, "unlink", "unlink", self._is)
        self._watch(os, "symlink", "symlink", lambda _, link: not self._is(link))
        self._watch(os, "mkdir", "mkdir", self._is_not)
        self._watch(os, "open", "temporary", lambda path, *_: str(path).endswith(".tmp") and self._is_not(path))
        self._watch(Path, "write_text", "holder", lambda path, *_: path.name.endswith(".holder"))
        self._watch(filelock.FileLock, "acquire", "lock", lambda lock: not lock.is_locked)
        self._watch(filelock.FileLock, "release", "unlock", lambda lock: lock.is_locked)
        self._watch(DefaultDialect, "do_commit", "commit", lambda *_: True)
        self._watch(JournalFileBackend, "append_logs", APPEND, lambda *_: True, _append_half)

    def _watch(
        self,
        owner: Any,
        name: str,
        event: str,
        counts: Callable[..., bool],
        torn: Callable[..., None] | None = None,
    ) -> None:
        real = getattr(owner, name)

        @wraps(real)
        def watched(*arguments: Any, **options: Any) -> Any:
            moment = self._happens(event) if counts(*arguments) else None
            if moment == TORN and torn is not None:
                torn(*arguments)
            if moment in (BEFORE, TORN):
                _die()
            result = real(*arguments, **options)
            if moment == AFTER:
                _die()
            return result

        setattr(owner, name, watched)

    def _happens(self, event: str) -> str | None:
        """Count an event; the moment to die at it, if it is the one."""
        self.counts.update((event, ANY))
        strike = self._strike
        if strike is None or strike.event not in (event, ANY) or strike.number != self.counts[strike.event]:
            return None
        return strike.moment

    def _is(self, path: Any, *_: Any, **__: Any) -> bool:
        return self._is_here(path) and os.path.lexists(path)

    def _is_not(self, path: Any, *_: Any, **__: Any) -> bool:
        """Whether a call can make it; `Path.mkdir` tries without its parents first."""
        made = self._is_here(path) and not os.path.lexists(path)
        return made and os.path.isdir(os.path.dirname(os.path.abspath(path)))

    def _is_here(self, path: Any) -> bool:
        return isinstance(path, str | Path) and os.path.abspath(path).startswith(self._folder)


def _append_half(backend: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
    """Write half of the bytes, and keep the lock."""
    content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
    with get_lock_file(backend._lock), open(backend._file_path, "ab") as stream:
        stream.write(content[: len(content) // 2])
        stream.flush()
        _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # where the signal goes to another thread first
