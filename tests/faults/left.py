"""What a command left in its folder, as far as a run that was killed on the way must leave the same."""

from __future__ import annotations

import hashlib
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from tests.faults.commands import DATABASE

STALE = (".*.tmp", "*.rename", "*.lock", "*.holder", f"{DATABASE}-*")
LOCK = "run.lock"  # stays; the system knows who holds it
# What depends on the time, the place, or on how often the command was begun.
VOLATILE_FILES = {"run.log", "run.toml", "report.json", "report.html", "diagnosis.json", "study.journal", DATABASE}
VOLATILE_KEYS = {"wall_seconds", "time", "reused", "seconds", "computed", "peak_memory", "checksum"}


def left_in(folder: Path) -> dict[str, Any]:
    """File name to content of the run in a folder, and all that can be compared of its report and its trials."""
    run = folder / "run"
    left: dict[str, Any] = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.iterdir())
        if path.name not in VOLATILE_FILES and not _is_stale(path.name)
    }
    if (run / "run.toml").exists():
        left["run.toml"] = (run / "run.toml").read_text().replace(str(folder), "")
    for name in ("report.json", "diagnosis.json"):
        if (run / name).exists():
            left[name] = _lasting(json.loads((run / name).read_text()))
    if (run / "report.html").exists():  # seconds stand all over it
        left["report.html"] = re.findall(
            r"<h2>.*?</h2>|<figcaption>.*?</figcaption>", (run / "report.html").read_text()
        )
    if (run / "run.log").exists():
        left["warnings"] = sorted(set(re.findall("warning: .*", (run / "run.log").read_text())))
    left["cache"] = sorted(str(path.relative_to(folder)) for path in (folder / "cache").rglob("*.np?"))
    if (run / "study.journal").exists() or (folder / DATABASE).exists():
        left["trials"] = _trials_of(folder)
    return left


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Which parts are not the same."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def stale_in(folder: Path) -> list[str]:
    """What a killed process left behind that nobody needs, and whoever is locked out."""
    found = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if _is_stale(path.name)]
    if (folder / "run" / LOCK).exists():
        try:
            with filelock.FileLock(folder / "run" / LOCK).acquire(timeout=0):
                pass
        except filelock.Timeout:
            found.append(f"{LOCK} is held")
    return found


def _is_stale(name: str) -> bool:
    return name != LOCK and any(fnmatch(name, pattern) for pattern in STALE)


def _trials_of(folder: Path) -> list[tuple[Any, ...]]:
    """Every trial of every study, as Optuna by itself reads them."""
    if (folder / DATABASE).exists():
        storage: BaseStorage = RDBStorage(f"sqlite:///{folder / DATABASE}")
    else:
        storage = JournalStorage(JournalFileBackend(str(folder / "run" / "study.journal")))
    names = sorted(summary.study_name for summary in optuna.get_all_study_summaries(storage))
    found = [
        (name, trial.number, trial.state.name, trial.values, trial.params, _lasting(trial.user_attrs))
        for name in names
        for trial in optuna.load_study(study_name=name, storage=storage).trials
    ]
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()
    return found


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if key not in VOLATILE_KEYS}
    return [_lasting(item) for item in value] if isinstance(value, list) else value
