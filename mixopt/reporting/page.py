"""A report as one page that stands alone: tables, and pictures as inline SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mixopt.reporting import plots, tables
from mixopt.reporting.rows import TrialPoint
from mixopt.reporting.schema import Report
from mixopt.values.metrics import metric_named
from mixopt.values.samples import VALIDATION

TEMPLATE = "page.html.j2"
KINDS = {"search": "search", "compare": "comparison"}


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading: a table, a list, or a drawing, and a caption.

    Attributes:
        title: The heading.
        header: Of the table.
        cells: Of the table, row by row.
        items: Of the list.
        drawing: An SVG element.
        caption: What to know of it.
    """

    title: str
    header: Sequence[str] = ()
    cells: Sequence[Sequence[str]] = ()
    items: Sequence[str] = ()
    drawing: str = ""
    caption: str = ""


def page(report: Report, title: str, trials: Sequence[TrialPoint]) -> str:
    """The page; every text in it is escaped.

    Args:
        report: The report.
        title: What the run is called.
        trials: Of `mixopt.study.read_trials`; without any, the picture of the search is left out.
    """
    # Here, as only a page needs it.
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("mixopt.reporting", "."), autoescape=True, trim_blocks=True)
    sections = [*_tables(report), *_pictures(report, trials)]
    template = environment.get_template(TEMPLATE)
    return template.render(title=title, summary=_summary(report), sections=sections, best=report.best) + "\n"


def _summary(report: Report) -> str:
    samples = report.splits[VALIDATION].samples
    held = f", of which {samples - report.tuning:,} steered nothing" if samples > report.tuning else ""
    better = "higher" if metric_named(report.metric).sign > 0 else "lower"
    parts = [
        f"{report.metric} ({better} is better) of a {KINDS[report.command]}; the best row is {report.best}.",
        f"Selection split: {samples:,} samples{held}.",
        "Test splits are only reported; nothing was chosen on them.",
    ]
    if not report.finished:
        parts.append("The search was stopped before all of its trials were complete.")
    return " ".join(parts)


def _tables(report: Report) -> Iterator[Section]:
    header, cells = tables.table(report, intervals=True, details=True)
    yield Section("Every row", header, cells, caption="± is half the width of the 95 % interval.")
    if report.failures:
        yield Section("Rows that failed", items=[f"{row.name}: {row.error}" for row in report.failures])
    header, cells = tables.comparisons(report)
    if len(header) > 1:
        caption = f"On the same samples: {tables.compared_by(report)}."
        yield Section("Paired tests", header, cells, caption=caption)
    if report.front:
        yield Section("Trials on the Pareto front", *tables.front(report.front))


def _pictures(report: Report, trials: Sequence[TrialPoint]) -> Iterator[Section]:
    if trials:
        caption = "Images are those of the trials, the ones seen of a trial that was given up early included."
        caption += "" if report.select else " Each other row stands at what it takes and scores by itself."
        yield Section("The search", drawing=_svg(plots.progress(report, trials)), caption=caption)
    if report.front:
        many = len(report.front.objectives) > 2
        caption = "The first two objectives of several; the front is that of all of them." if many else ""
        yield Section("The Pareto front", drawing=_svg(plots.front(report.front)), caption=caption)
    if report.tests:
        caption = "A point for each mix; the base alone is in the table."
        yield Section("Selection against test", drawing=_svg(plots.tests(report)), caption=caption)
    if drawn := plots.curves(report):
        yield Section("What the methods saw on the way", drawing=_svg(drawn), caption="Hollow: tried and not taken.")


def _svg(drawn: str) -> str:
    """Without what only a file of its own needs."""
    return drawn[drawn.index("<svg") :]
