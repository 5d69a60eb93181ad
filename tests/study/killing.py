"""A search killed at a write of its journal, and what must come out the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


def trials_of(out: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(out / "study.journal")))
    return optuna.load_study(study_name=None, storage=storage).trials


def facts_of(out: Path) -> list[tuple[Any, ...]]:
    """All of a study that a resumed run must repeat: everything but the times."""
    return [
        (trial.number, trial.state, trial.value, trial.params, trial.user_attrs.get("coefficients"))
        for trial in trials_of(out)
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
