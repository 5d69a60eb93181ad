"""Report: what a run found, from what its folder holds."""

from __future__ import annotations

from pathlib import Path

from mixopt.errors import RunError
from mixopt.files import write_text
from mixopt.listener import Listener
from mixopt.reporting import page as pages
from mixopt.reporting.rows import TrialPoint
from mixopt.reporting.schema import Report
from mixopt.runs.folder import RunFolder
from mixopt.runs.replacing import check_replaceable
from mixopt.study import read_trials


def report(
    folder: str | Path, *, html: str | Path | None = None, force: bool = False, listener: Listener | None = None
) -> Report:
    """What a run found, from what its folder holds.

    Args:
        folder: The run folder.
        html: Write a page of its tables and pictures, which stands alone, to this file.
        force: Replace that file also where mixopt did not write it.
        listener: Told about notices.

    Returns:
        What report.json holds.

    Raises:
        RunError: Not a run folder, a run without a report yet, a report that is damaged or of another version, or a
            page that would replace something else.
    """
    run, heard = RunFolder(Path(folder)), listener or Listener()
    found = run.finished_report()
    if not found.finished:
        heard.warn(f"{run.path}: the search was stopped before all its trials were complete")
    if html is not None:
        if not force:
            check_replaceable(Path(html), ".html", [], "--html")
        trials = _trials_of(run, heard) if found.command == "search" else []
        write_text(Path(html), pages.page(found, run.path.resolve().name, trials))
        heard.info(f"wrote {html}")
    return found


def _trials_of(run: RunFolder, listener: Listener) -> list[TrialPoint]:
    """The trials in a run's journal; where they are not to be had, none, and the reason is told."""
    left_out = "the picture of the search is left out: "
    if not run.journal.is_file():
        listener.warn(f"{left_out}{run.path} holds no journal; the study is in the run's --storage")
        return []
    try:
        trials = read_trials(run.journal)
    except RunError as error:
        listener.warn(f"{left_out}{error}")
        return []
    if not trials:
        listener.warn(f"{left_out}its trials have several values each; the Pareto front shows them")
    return trials
