"""Where a study is kept: a run folder's journal, written whole whatever interrupts, or any storage of Optuna."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import SQLAlchemyError

from mixopt.errors import RunError
from mixopt.scoring.stopwatch import Stopwatch


def open_storage(journal: Path, url: str | None, stopwatch: Stopwatch | None = None) -> optuna.storages.BaseStorage:
    """The run's storage; the caller holds the run folder's lock.

    A process killed while writing leaves a torn last line, which would make every later read fail, and a lock
    file that others would wait for; both are removed here.

    Args:
        journal: The journal file, used where no URL is given.
        url: An Optuna storage URL.
        stopwatch: Told the time that writing the journal takes.

    Raises:
        RunError: The storage cannot be opened.
    """
    try:
        if url is not None:
            return optuna.storages.get_storage(url)
        _mend(journal)
        return _Journal(journal, stopwatch or Stopwatch())
    except (OSError, ValueError, ImportError, KeyError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        where = f"--storage {url}" if url else str(journal)
        raise RunError(f"{where}: the study's storage cannot be opened ({error})") from error


def write_together(study: optuna.Study) -> AbstractContextManager[None]:
    """What the block writes to the study is one write, where the study is kept in a run folder's journal."""
    storage = study._storage  # a study does not name its storage otherwise; a test counts the writes
    return storage.together() if isinstance(storage, _Journal) else nullcontext()


class _Lock(JournalFileSymlinkLock):
    """Optuna's lock of a journal; with ``held``, it is kept over several writes, which take it at no cost."""

    held = False

    def acquire(self) -> bool:
        return self.held or super().acquire()

    def release(self) -> None:
        if not self.held:
            super().release()


class _WholeWrites(JournalFileBackend):
    """A journal whose writes are timed, and not disturbed by Ctrl-C or SIGTERM.

    Optuna's lock, interrupted while it is taken or released, fails with an error of its own instead.
    """

    def __init__(self, path: str, stopwatch: Stopwatch) -> None:
        self._mutex = _Lock(path)
        super().__init__(path, self._mutex)
        self._stopwatch = stopwatch
        self._written = 0  # logs in the file, as far as known
        self._pending: list[dict[str, Any]] | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write what the block logs as one: Optuna by itself writes and syncs the file for every parameter.

        Until then the file stays as it was and only this process sees the logs; nobody else may write, so that the
        numbers of trials stay theirs. A block left by an exception, Ctrl-C included, is written as far as it came; a
        killed process loses it.
        """
        try:
            with _signals_wait():
                self._mutex.acquire()
                self._mutex.held, self._pending = True, []
            self._read_on()
            yield
        finally:
            if self._pending is not None:
                self._flush()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        if self._pending is None or log_number_from < self._written:
            yield from super().read_logs(log_number_from)
        if self._pending is not None:
            yield from self._pending[max(0, log_number_from - self._written) :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._pending is not None:
            self._pending += json.loads(json.dumps(logs))  # as the file will give them back
            return
        with self._stopwatch("storage"), _signals_wait():
            super().append_logs(logs)

    def _read_on(self) -> None:
        """Count the file's new logs; Optuna, which has not seen where a log begins, would read the file again."""
        self._written += sum(1 for _ in super().read_logs(self._written))

    def _flush(self) -> None:
        with self._stopwatch("storage"), _signals_wait():
            pending, self._pending = self._pending, None
            try:
                if pending:
                    super().append_logs(pending)
                    self._read_on()
            finally:
                self._mutex.held = False
                self._mutex.release()


class _Journal(JournalStorage):
    """Optuna's journal storage of a run folder, which can write many changes as one."""

    def __init__(self, journal: Path, stopwatch: Stopwatch) -> None:
        self._file = _WholeWrites(str(journal), stopwatch)
        self.together = self._file.together
        super().__init__(self._file)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block is done; signals reach the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda got, _: caught.append(got))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def _mend(journal: Path) -> None:
    """Cut a torn last line off a journal, and remove the lock of a process that is gone."""
    # Optuna renames its lock before it removes it.
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink(missing_ok=True)
    if not journal.exists():
        return
    with journal.open("rb+") as stream:
        content = stream.read()
        if content and not content.endswith(b"\n"):
            stream.truncate(content.rfind(b"\n") + 1)
