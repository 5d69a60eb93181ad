"""Where a study is kept: a run folder's journal, checked and written whole, or any storage of Optuna."""

from __future__ import annotations

import json
import os
import signal
import threading
from array import array
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from mixopt.errors import RunError
from mixopt.scoring.stopwatch import Stopwatch
from mixopt.study.boundary import ANEW, RESTORE, storage_errors
from mixopt.study.database import open_database
from mixopt.study.logs import Lines
from mixopt.untrusted import refusing


def open_storage(journal: Path, url: str | None, stopwatch: Stopwatch | None = None) -> optuna.storages.BaseStorage:
    """The run's storage; the caller holds the run folder's lock.

    A process killed while writing leaves a torn last line, which would make every later read fail, and a lock
    file that others would wait for; both are removed here.

    Args:
        journal: The journal file, used where no URL is given.
        url: An Optuna storage URL.
        stopwatch: Told the time that writing the journal takes.

    Raises:
        RunError: The storage cannot be opened, or the journal is damaged.
    """
    with storage_errors(journal, url, "be opened"):
        if url is not None:
            return open_database(url)
        with refusing(RunError, str(journal), found="not a journal", cure=RESTORE):
            _mend(journal)
        return _Journal(journal, stopwatch or Stopwatch())


def open_reading(journal: Path) -> optuna.storages.BaseStorage:
    """A journal that is only read; a torn last line is passed over.

    Raises:
        RunError: There is none, or it is damaged.
    """
    if not journal.is_file():
        raise RunError(f"{journal}: no such file; {RESTORE}")
    with storage_errors(journal, None):
        return JournalStorage(_CheckedReads(str(journal)))


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


class _CheckedReads(JournalFileBackend):
    """A journal whose every line is checked before Optuna follows it."""

    def __init__(self, path: str, lock: JournalFileSymlinkLock | None = None) -> None:
        super().__init__(path, lock)
        self._lines = Lines(Path(path))
        self._begins = array("q", [0])  # where each line read so far begins, and where the next one will

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        known = self._lines.number
        if log_number_from < known:
            yield from self._read_again(log_number_from, known)
        yield from islice(self._read_new(), max(0, log_number_from - known), None)

    def _read_again(self, first: int, last: int) -> Iterator[dict[str, Any]]:
        with self._opened(first) as stream:
            yield from map(json.loads, islice(stream, last - first))

    def _read_new(self) -> Iterator[dict[str, Any]]:
        with self._opened(self._lines.number) as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    return  # torn, or still being written
                log = self._lines.read(line)
                self._begins.append(self._begins[-1] + len(line))
                yield log

    @contextmanager
    def _opened(self, number: int) -> Iterator[BinaryIO]:
        """The file, at the beginning of a line."""
        with ExitStack() as opened:
            with refusing(RunError, self._file_path, found="not a journal", cure=RESTORE):
                stream = opened.enter_context(Path(self._file_path).open("rb"))
            if os.fstat(stream.fileno()).st_size < self._begins[-1]:
                raise RunError(f"{self._file_path}: lines that were read are no longer there; {RESTORE}")
            stream.seek(self._begins[number])
            yield stream


class _WholeWrites(_CheckedReads):
    """A journal whose writes are timed, chained by sums, and not disturbed by Ctrl-C or SIGTERM.

    Optuna's lock, interrupted while it is taken or released, fails with an error of its own instead.
    """

    def __init__(self, path: str, stopwatch: Stopwatch) -> None:
        self._mutex = _Lock(path)
        super().__init__(path, self._mutex)
        self._stopwatch = stopwatch
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
        known = self._lines.number
        if self._pending is None or log_number_from < known:
            yield from super().read_logs(log_number_from)
        if self._pending is not None:
            yield from self._pending[max(0, log_number_from - known) :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._pending is not None:
            self._pending += json.loads(json.dumps(logs))  # as the file will give them back
            return
        with self._stopwatch("storage"), _signals_wait():
            self._mutex.acquire()
            self._mutex.held = True
            self._append(logs)

    def _flush(self) -> None:
        with self._stopwatch("storage"), _signals_wait():
            pending, self._pending = self._pending, None
            self._append(pending or [])

    def _append(self, logs: list[dict[str, Any]]) -> None:
        """Write logs after whatever is there, and give the lock back."""
        try:
            if logs:
                self._read_on()  # the sums go on from the last line, whoever wrote it
                super().append_logs(self._lines.sealed(logs))
                self._read_on()
        finally:
            self._mutex.held = False
            self._mutex.release()

    def _read_on(self) -> None:
        for _ in self._read_new():
            pass


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
    if not journal.is_file():
        raise RunError(f"{journal}: a folder, pipe or device, where the study's journal is expected; {ANEW}")
    with journal.open("rb+") as stream:
        content = stream.read()
        if content and not content.endswith(b"\n"):
            stream.truncate(content.rfind(b"\n") + 1)
