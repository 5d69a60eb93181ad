"""Trackio: one run, its rows as a table.

Trackio has W&B's words and a dashboard that draws every number against steps, without runs in runs: the search's curve
is the history, and a last step has every row's numbers as ``ROW/score/SPLIT``, the table, and the page. The files are
an artifact.

The run's name ends with the digest of its report, as Trackio knows runs by their names. Where it writes is its own
choice: ``TRACKIO_DIR``, a Space of ``TRACKIO_SPACE_ID``, or a server of ``TRACKIO_SERVER_URL``.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from typing import Any

from mixopt.listener import Listener
from mixopt.trackers import Logged, Place, library, without_password, writing
from mixopt.trackers.record import RunRecord

OPTION = "project"
_CURE = "check TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL, and that what they name can be written"
# What it finds out by itself is of the machine that the command runs on, not of the run.
_QUIET = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}


def write(record: RunRecord, place: Place, listener: Listener) -> Logged:
    """Write a run, or only its files where one of the same name is in the project."""
    with library("trackio"), redirect_stdout(io.StringIO()):
        import trackio
    project, name = place.project_or("TRACKIO_PROJECT"), f"{record.name}-{record.digest[:8]}"
    # It says on stdout what it does, which is for results.
    with writing("trackio", f"project {project}", _CURE, (ValueError, RuntimeError)), redirect_stdout(io.StringIO()):
        options = {"project": project, "name": name, **_QUIET}
        try:
            trackio.init(**options, resume="must")
            was_there = True
        except ValueError:  # there is no such run
            trackio.init(**options, resume="never", config=dict(record.params))
            was_there = False
        try:
            if not was_there:
                _write_numbers(trackio, record)
            artifact = trackio.Artifact(f"mixopt-{record.digest[:16]}", type="mixopt-run")
            for file_name, path in record.files.items():
                artifact.add_file(str(path), name=file_name)
            trackio.log_artifact(artifact)
        finally:
            trackio.finish()
    if was_there:
        listener.info(
            f"the same report is run {name} there: its numbers are left as they are, its files were put again; delete "
            "that run in Trackio to log it anew"
        )
    store = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL") or "this machine"
    return Logged("trackio", f"project {project} of {without_password(store.partition('?')[0])}", name, was_there)


def _write_numbers(trackio: Any, record: RunRecord) -> None:
    """The curve, trial by trial, then every row."""
    for step, point in enumerate(record.curve):
        values = {"search/images": point.images, "search/trial": point.trial, "search/best": point.best}
        trackio.log(values, step=step)
    cells = [[row.name, *(row.numbers.get(name) for name in record.columns), row.error] for row in record.rows]
    shown: dict[str, Any] = {
        **{f"{row.name}/{name}": value for row in record.rows for name, value in row.numbers.items()},
        **record.best.numbers,
        "rows": trackio.Table(columns=["row", *record.columns, "failed"], data=cells),
    }
    if page := record.files.get("report.html"):
        shown["report"] = trackio.Html(page, inject=False)
    trackio.log(shown, step=len(record.curve))
