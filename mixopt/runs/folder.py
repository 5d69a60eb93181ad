"""The layout of a run folder: who may write to it, what lies where."""

from __future__ import annotations

import json
import os
import socket
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from mixopt.errors import RunError, names
from mixopt.files import write_text
from mixopt.imports import is_import_path
from mixopt.reporting.schema import Report
from mixopt.spec import StudySpec

LOCK = "run.lock"


class RunFolder:
    """One run's files.

    Args:
        path: The folder; made when it is first locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "study.journal"
        self.spec = path / "run.toml"
        self.recipe = path / "recipe.json"
        self.model = path / "model.safetensors"
        self.report = path / "report.json"
        self.log = path / "run.log"
        self.card = path / "README.md"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: one process at a time, released by the system when a process dies.

        Raises:
            RunError: Another process holds it, the folder holds something else, or it cannot be written.
        """
        lock = filelock.FileLock(self.path / LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_contents()
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RunError(
                f"{self.path}: another process is using this run folder ({self._holder()}); wait for it, or choose "
                "another --out"
            ) from error
        except OSError as error:
            raise RunError(f"{self.path}: cannot write to the run folder: {error.strerror}; choose --out") from error
        try:
            (self.path / f"{LOCK}.holder").write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield
        finally:
            (self.path / f"{LOCK}.holder").unlink(missing_ok=True)
            lock.release()
            self._remove_if_unused()

    def holds(self) -> str | None:
        """The command whose result lies here: ``search``, ``compare``, or None."""
        found = self.content()
        if self.journal.exists():
            return "search"
        # Reports of searches did not always name their command.
        return str(found.get("command", "search")) if found else None

    def content(self) -> dict[str, Any]:
        """What report.json holds; nothing where there is none."""
        try:
            found = json.loads(self.report.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def finished_report(self) -> Report:
        """What report.json holds.

        Raises:
            RunError: Not a run folder, a run that has not got so far, or a report of another version.
        """
        if not self.report.is_file():
            if self.journal.exists() or self.spec.exists():
                raise RunError(f"{self.path}: the run has no report yet; the same command that began it continues")
            raise RunError(f"{self.path}: not a run folder; expected the --out of a search or a comparison")
        return Report.from_json(self.report.read_text(), str(self.report))

    def check_free_for(self, command: str) -> None:
        """Refuse to write one command's result over the other's.

        Args:
            command: ``search`` or ``compare``.

        Raises:
            RunError: The folder holds a result of the other.
        """
        if self.holds() not in (None, command):
            other = {"search": "comparison", "compare": "search"}[command]
            raise RunError(
                f"{self.path}: holds a {other}, whose model and report would be replaced; choose another folder, such "
                f"as --out {self.path}-{command}"
            )

    def write_spec(self, spec: StudySpec) -> None:
        """Keep the resolved options."""
        values = _plain(spec.model_dump(exclude_none=True, by_alias=True))
        values["out"] = str(self.path.resolve())
        if "@" in str(values.get("storage", "")):
            del values["storage"]  # it holds a password
        write_text(self.spec, tomli_w.dumps(values))

    def resolved(self, spec: StudySpec) -> StudySpec:
        """The options, with what this run chose before in place of ``auto``."""
        open_choices = [name for name in ("precision", "stack") if getattr(spec, name) == "auto"]
        if not open_choices or not self.spec.is_file():
            return spec
        try:
            kept = tomllib.loads(self.spec.read_text())
            # Runs from before there was a choice were in fp32.
            chosen = {name: kept.get(name, "fp32") for name in open_choices}
            return StudySpec.model_validate({**spec.model_dump(), **chosen})
        except (OSError, ValueError):
            return spec

    def models(self) -> Path | None:
        """The pool that the run used, or None where the folder does not say."""
        try:
            return Path(tomllib.loads(self.spec.read_text())["models"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note(self, text: str) -> None:
        """Add a line with the time to the run's log."""
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(f"{stamp} {text}\n")

    def _check_contents(self) -> None:
        known = {LOCK, self.spec.name, self.journal.name}
        found = [entry.name for entry in self.path.iterdir()]
        if found and not known & set(found):
            raise RunError(
                f"{self.path}: not a run folder, but not empty either (it holds {names(sorted(found))}); "
                "choose a new folder with --out"
            )

    def _remove_if_unused(self) -> None:
        """Leave no folder behind where bad input ended the run before it wrote anything but its log."""
        entries = list(self.path.iterdir())
        if {entry.name for entry in entries} <= {LOCK, self.log.name}:
            for entry in entries:
                entry.unlink()
            self.path.rmdir()

    def _holder(self) -> str:
        try:
            return (self.path / f"{LOCK}.holder").read_text()
        except OSError:
            return "it did not leave its name"


def _plain(value: Any) -> Any:
    """Paths as absolute text, tuples as lists: what TOML can hold."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value) if is_import_path(str(value)) else str(value.resolve())
    return value
