"""A search killed at a write of its journal, and what must come out the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import Engine, event


def trials_of(out: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(out / "study.journal")))
    return optuna.load_study(study_name=None, storage=storage).trials


def facts_of(out: Path) -> list[tuple[Any, ...]]:
    """All of a study that a resumed run must repeat: everything but the times."""
    return facts_of_trials(trials_of(out))


def facts_of_trials(trials: list[optuna.trial.FrozenTrial]) -> list[tuple[Any, ...]]:
    return [
        (trial.number, trial.state, trial.value, trial.params, trial.user_attrs.get("coefficients")) for trial in trials
    ]


def model_hash(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


class Killed(BaseException):
    """Stands in for a kill: nothing in the package may catch it."""


def kill_after(monkeypatch: pytest.MonkeyPatch, writes: int, torn: bool) -> None:
    """Stop the process at its n-th journal write: before it, or with ``torn`` in the middle of a line half-way."""
    real = JournalFileBackend.append_logs
    left = writes

    def append(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            if torn:
                if half := logs[: len(logs) // 2]:
                    real(self, half)
                with open(self._file_path, "ab") as stream:
                    stream.write(b'{"op_code": 4, "worker')
            raise Killed
        real(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", append)


@contextmanager
def kill_at_statement(number: int) -> Iterator[None]:
    """Stop the process before its n-th statement that changes a database; what was not committed is lost with it."""
    left = number

    def before(*given: Any) -> None:
        nonlocal left
        left -= given[2].startswith(("INSERT", "UPDATE", "DELETE"))
        if left == 0:
            left = -1
            raise Killed

    event.listen(Engine, "before_cursor_execute", before)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", before)
