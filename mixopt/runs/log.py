"""Log: a finished run into a tracker of experiments, from what its folder holds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from mixopt.errors import RunError, SpecError
from mixopt.listener import Listener
from mixopt.reporting.rows import TrialPoint
from mixopt.reporting.schema import Report
from mixopt.runs.folder import RunFolder
from mixopt.runs.report import report as make_report
from mixopt.study import read_trials
from mixopt.trackers import Logged, Place, tracker_named
from mixopt.trackers.record import RunRecord, curve_of, params_of, rows_of

LOGDIR = "tensorboard"


def log(
    folder: str | Path,
    *,
    to: str,
    project: str | None = None,
    logdir: str | Path | None = None,
    with_model: bool = False,
    listener: Listener | None = None,
) -> Logged:
    """Log a finished run to wandb, mlflow, tensorboard or trackio, once; nothing is scored.

    Args:
        folder: The run folder.
        to: The tracker, see `mixopt.trackers`.
        project: Its project or experiment; by default what its environment variable says, or ``mixopt``.
        logdir: The folder of TensorBoard's; by default ``tensorboard`` in the run folder.
        with_model: Hand over the saved model too.
        listener: Told about notices.

    Returns:
        Where the run was logged.

    Raises:
        SpecError: No such tracker, an option that it does not take, or a library that is not installed.
        RunError: Not a run folder, a run without a report, without the model that was asked for, or with links to files
            elsewhere; or the tracker could not write.
    """
    run, heard = RunFolder(Path(folder)), listener or Listener()
    tracker = tracker_named(to)
    for option, given in (("project", project), ("logdir", logdir)):
        if given is not None and option != tracker.OPTION:
            raise SpecError(f"--{option}: --to {to} has none; it takes --{tracker.OPTION}")
    found = run.finished_report()
    if not found.finished:
        heard.warn(f"{run.path}: the search was stopped before all its trials were complete")
    with _files(run, with_model, heard) as files:
        content = run.report.read_bytes()
        rows = rows_of(found)
        record = RunRecord(
            name=run.path.resolve().name,
            digest=sha256(content).hexdigest(),
            made=run.report.stat().st_mtime,
            seconds=found.wall_seconds,
            params=params_of(found),
            best=next(row for row in rows if row.name == found.best),
            rows=rows,
            curve=curve_of(found, _trials(run, found, heard)),
            files=files,
        )
        return tracker.write(record, Place(project, Path(logdir or run.path / LOGDIR)), heard)


@contextmanager
def _files(run: RunFolder, with_model: bool, listener: Listener) -> Iterator[Mapping[str, Path]]:
    """The files to hand over, by name; a page that is not there is made for as long as the block."""
    found = [path for path in (run.page, run.report, run.recipe) if path.exists()]
    if with_model:
        found += _model_of(run)
    for path in found:
        # A link in a stranger's folder would send away any file of this machine.
        if path.resolve().parent != run.path.resolve() or not path.is_file():
            raise RunError(f"{path}: a link to somewhere else, or no file; put the file itself there, or remove it")
    if run.recipe not in found:
        listener.warn(f"{run.path}: has no {run.recipe.name}, which is left out")
    files = {path.name: path for path in found}
    if run.page.name in files:
        yield files
        return
    with tempfile.TemporaryDirectory(prefix="mixopt-") as made:
        page = Path(made) / run.page.name
        make_report(run.path, html=page)
        yield {page.name: page, **files}


def _model_of(run: RunFolder) -> list[Path]:
    """The saved model: a file, or its parts with their index."""
    index = run.path / f"{run.model.name}.index.json"
    found = [run.model, index, *sorted(run.path.glob(f"{run.model.stem}-*-of-*{run.model.suffix}"))]
    found = [path for path in found if path.exists()]
    if not found:
        raise RunError(f"--with-model: {run.path} holds no {run.model.name}; leave the option out")
    return found


def _trials(run: RunFolder, report: Report, listener: Listener) -> list[TrialPoint]:
    """The trials of a search; where they are not to be had, none, and the reason is told."""
    if report.command != "search":
        return []
    left_out = "the curve of the search is left out: "
    if not run.journal.is_file():
        listener.warn(f"{left_out}{run.path} holds no journal; the study is in the run's --storage")
        return []
    try:
        trials = read_trials(run.journal)
    except RunError as error:
        listener.warn(f"{left_out}{error}")
        return []
    if not trials:
        listener.warn(f"{left_out}its trials have several values each")
    return trials
