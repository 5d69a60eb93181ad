"""The layout of a run folder: who may write to it, what lies where."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from mixopt.errors import RunError, names
from mixopt.files import remove_leftovers, write_text
from mixopt.imports import is_import_path
from mixopt.reporting.schema import Report
from mixopt.reporting.stored import report_from
from mixopt.spec import StudySpec
from mixopt.study import without_password
from mixopt.untrusted import refusing
from mixopt.untrusted.printed import printable
from mixopt.untrusted.texts import read_json, read_text, read_toml
from mixopt.weights import saving

LOCK = "run.lock"
# What a family may put beside a saved model, see `mixopt.families.Family.companions`.
COMPANIONS = ("open_clip_config.json",)
_LONGEST_HOLDER = 1000


class RunFolder:
    """One run's files.

    Args:
        path: The folder; made when it is first locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.holder = path / f"{LOCK}.holder"
        self.journal = path / "study.journal"
        self.spec = path / "run.toml"
        self.recipe = path / "recipe.json"
        self.model = path / "model.safetensors"
        self.report = path / "report.json"
        self.log = path / "run.log"
        self.card = path / "README.md"
        self.diagnosis = path / "diagnosis.json"
        self.page = path / "report.html"

    @property
    def outputs(self) -> tuple[Path, ...]:
        """What a run replaces or adds to."""
        others = (self.path / name for name in (saving.STATISTICS_FILE, *COMPANIONS))
        pages = (self.diagnosis, self.page)
        return (self.journal, self.spec, self.recipe, self.model, self.report, self.card, *pages, *others)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: one process at a time, released by the system when a process dies.

        Raises:
            RunError: Another process holds it, the folder holds something else, or it cannot be written.
        """
        lock = filelock.FileLock(self.path / LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_owner()
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
            remove_leftovers(self.path, *(path.name for path in self.outputs))
            self.holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            yield
        finally:
            self.holder.unlink(missing_ok=True)
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
        if not self.report.exists():
            return {}
        try:
            found = read_json(self.report, RunError)
        except RunError:
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
        return report_from(read_text(self.report, RunError), str(self.report))

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
        values.pop("force", None)  # meant for one session
        if spec.storage is not None:
            values["storage"] = without_password(spec.storage)  # this file is shared, and shown in report.html
        write_text(self.spec, tomli_w.dumps(values))

    def resolved(self, spec: StudySpec) -> StudySpec:
        """The options, with what this run chose before in place of ``auto``."""
        open_choices = [name for name in ("precision", "stack") if getattr(spec, name) == "auto"]
        if not open_choices or not self.spec.is_file():
            return spec
        anew = f"remove it, and give --{' and --'.join(open_choices)} as the run began"
        with refusing(RunError, str(self.spec), found="damaged", cure=anew):
            kept = read_toml(self.spec, RunError)
            # Runs from before there was a choice were in fp32.
            chosen = {name: kept.get(name, "fp32") for name in open_choices}
            return StudySpec.model_validate({**spec.model_dump(), **chosen})

    def models(self) -> Path | None:
        """The pool that the run used, or None where the folder does not say."""
        return self._named("models")

    def cache(self) -> Path | None:
        """The cache that the run used, or None where the folder does not say."""
        return self._named("cache")

    def _named(self, key: str) -> Path | None:
        try:
            found = read_toml(self.spec, RunError).get(key) if self.spec.exists() else None
        except RunError:
            return None
        return Path(found) if isinstance(found, str) else None

    def note(self, text: str) -> None:
        """Add a line with the time to the run's log."""
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(f"{stamp} {printable(text)}\n")

    def _check_owner(self) -> None:
        """Refuse what would have this process write somewhere else, or under somebody else's eyes."""
        written = filter(os.path.lexists, (self.path / LOCK, self.holder, self.journal, self.log))
        if links := [path for path in written if path.is_symlink() or path.stat().st_nlink > 1]:
            other = os.readlink(links[0]) if links[0].is_symlink() else "a file of another name"
            raise RunError(
                f"{links[0]}: a link to {other}; a run writes to no file outside its folder. Remove "
                "it, or choose another --out"
            )
        if hasattr(os, "geteuid") and (owner := self.path.stat().st_uid) != os.geteuid():
            raise RunError(
                f"{self.path}: belongs to another user ({owner}, this is {os.geteuid()}), who could replace what the "
                "run relies on; choose another --out"
            )

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
            return read_text(self.holder, RunError, most=_LONGEST_HOLDER)
        except RunError:
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
