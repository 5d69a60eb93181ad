"""Report: what runs found, from what their folders hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mixopt.errors import RunError
from mixopt.files import write_content, write_text
from mixopt.listener import Listener
from mixopt.reporting import page as pages
from mixopt.reporting.page import PageRun
from mixopt.reporting.plots import pdf_of
from mixopt.reporting.schema import Report
from mixopt.runs.folder import RunFolder
from mixopt.runs.page import page_run
from mixopt.runs.replacing import check_replaceable


def report(
    folder: str | Path,
    *beside: str | Path,
    html: str | Path | None = None,
    png: str | Path | None = None,
    pdf: str | Path | None = None,
    force: bool = False,
    listener: Listener | None = None,
) -> Report:
    """What a run found, from what its folder holds; several make one page.

    Args:
        folder: The run folder.
        *beside: Other run folders, for one page of all of them.
        html: Write a page that stands alone, with tables and pictures, to this file.
        png: Write every picture as a PNG file into this folder.
        pdf: Write every picture as a page of this file.
        force: Replace these files also where mixopt did not write them.
        listener: Told about notices.

    Returns:
        What report.json of the first folder holds.

    Raises:
        RunError: Not a run folder, a run without a report yet, a report that is damaged or of another version, or a
            page that would replace something else.
    """
    heard = listener or Listener()
    folders = [RunFolder(Path(each)) for each in (folder, *beside)]
    found = [each.finished_report() for each in folders]
    for run, each in zip(folders, found, strict=True):
        if not each.finished:
            heard.warn(f"{run.path}: the search was stopped before all its trials were complete")
    if html is None and png is None and pdf is None:
        return found[0]
    if not force:
        _check_outputs(html, png, pdf)
    runs = _named([page_run(each, heard) for each in folders])
    if html is not None:
        write_text(Path(html), pages.page(runs))
        heard.info(f"wrote {html}")
    if png is not None:
        _write_pictures(runs, Path(png), force, heard)
    if pdf is not None:
        write_content(Path(pdf), pdf_of(pages.drawings(runs)))
        heard.info(f"wrote {pdf}")
    return found[0]


def _check_outputs(html: str | Path | None, png: str | Path | None, pdf: str | Path | None) -> None:
    """Refuse to write over what mixopt did not write."""
    if html is not None:
        check_replaceable(Path(html), ".html", [], "--html")
    if pdf is not None:
        check_replaceable(Path(pdf), ".pdf", [], "--pdf")
    if png is not None and Path(png).exists() and not Path(png).is_dir():
        raise RunError(f"--png {png}: expected a folder, found a file; name another one")


def _named(runs: Sequence[PageRun]) -> list[PageRun]:
    """The runs with names that differ: the folders' own, with as much of the path as that takes."""
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else replace(run, name=f"{run.name} ({number})")
        for number, run in enumerate(runs, start=1)
    ]


def _write_pictures(runs: Sequence[PageRun], folder: Path, force: bool, listener: Listener) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {folder / f"{drawing.file_name}.png": drawing for drawing in pages.drawings(runs)}
    if not force:
        for path in drawn:
            check_replaceable(path, ".png", [], "--png")
    for path, drawing in drawn.items():
        write_content(path, drawing.png())
    listener.info(f"wrote {len(drawn)} pictures to {folder}")
