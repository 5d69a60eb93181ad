"""The page of a run: what it needs beyond the report, scored and kept; and a run as its page reads it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from mixopt.assemble import Assembly
from mixopt.diagnosis import Budget, Outcome, diagnose_run, known_of
from mixopt.errors import MixoptError, RunError
from mixopt.files import write_text
from mixopt.listener import Listener
from mixopt.reporting.diagnosis import diagnosis_from
from mixopt.reporting.page import PageRun, page
from mixopt.runs.folder import RunFolder
from mixopt.scoring.tally import Tally
from mixopt.spec import StudySpec
from mixopt.study import read_importances, read_trials
from mixopt.untrusted.texts import read_text, read_toml

Found = TypeVar("Found")

# Of the images that a run asked for, what its page may add.
SHARE = 0.25


def write_page(
    spec: StudySpec, assembly: Assembly, folder: RunFolder, outcome: Outcome, tally: Tally, listener: Listener
) -> None:
    """Score what the page shows beyond the report, and write diagnosis.json and report.html.

    The report is written by then, so that nothing is lost where this is stopped.

    Args:
        spec: The run's options; ``page`` says how much may be scored.
        assembly: The run's.
        folder: Where to.
        outcome: How the run ended.
        tally: What the run asked for.
        listener: Told about progress.
    """
    if spec.page == "off":
        for left in (folder.diagnosis, folder.page):
            left.unlink(missing_ok=True)  # of an earlier end of the same run
        return
    budget = Budget(None if spec.page == "full" else int(SHARE * tally.images))
    objective = assembly.objective
    text_of = assembly.family.encoding.text_of
    found = diagnose_run(objective, outcome, known_of(objective, spec.models), text_of, budget, listener)
    write_text(folder.diagnosis, found.to_json())
    write_text(folder.page, page([page_run(folder, listener)]))
    listener.info(f"wrote {folder.page}")


def page_run(folder: RunFolder, listener: Listener) -> PageRun:
    """A run as its page reads it; what is not to be had is told, and stands on the page as missing.

    Raises:
        RunError: No run folder, no report yet, or one that is damaged or of another version.
    """
    report = folder.finished_report()
    missing: dict[str, str] = {}
    diagnosis = None
    if folder.diagnosis.is_file():
        try:
            diagnosis = diagnosis_from(read_text(folder.diagnosis, RunError), str(folder.diagnosis))
        except RunError as error:
            missing["diagnosis"] = str(error)
            listener.warn(f"the page has no diagnosis: {error}")
    else:
        missing["diagnosis"] = "the run was made without --page, which keeps diagnosis.json for mixes and checkpoints"
    trials = importances = None
    if report.command == "search":
        trials = _read(folder, read_trials, "search", missing)
        importances = _read(folder, read_importances, "importances", missing)
        if "search" in missing:
            listener.warn(f"the picture of the search is left out: {missing['search']}")
        elif not trials:
            missing["search"] = "its trials have several values each; the Pareto front shows them"
            listener.warn(f"the picture of the search is left out: {missing['search']}")
        elif not importances:
            missing["importances"] = "too few trials, or too much alike, to tell what mattered"
    return PageRun(
        name=folder.path.resolve().name,
        report=report,
        diagnosis=diagnosis,
        trials=trials or (),
        importances=importances or {},
        command=_command(folder, report.command),
        options=_options(folder),
        missing=missing,
    )


def _read(folder: RunFolder, read: Callable[[Path], Found], part: str, missing: dict[str, str]) -> Found | None:
    if not folder.journal.is_file():
        missing[part] = f"{folder.path} holds no journal; the study is in the run's --storage"
        return None
    try:
        return read(folder.journal)
    except RunError as error:
        missing[part] = str(error)
        return None


def _options(folder: RunFolder) -> str:
    try:
        return read_text(folder.spec, RunError) if folder.spec.is_file() else ""
    except MixoptError:
        return ""


def _command(folder: RunFolder, command: str) -> str:
    """The shortest command that makes the run again, from the options that it kept."""
    try:
        values: Mapping[str, object] = read_toml(folder.spec, RunError) if folder.spec.is_file() else {}
    except MixoptError:
        return ""
    if "models" not in values:
        return ""
    return shlex.join(["mixopt", command, "--study", str(folder.spec.resolve()), "--out", "NEW_FOLDER"])
