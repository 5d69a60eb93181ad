"""A run as one page that stands alone, and several runs side by side.

A jinja2 template, which escapes every text; pictures by matplotlib as inline SVG, whose text is text and which needs
nothing from a network; and a few lines of script that sort tables. Nothing is drawn by the reader's browser.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mixopt.reporting.answer import answer
from mixopt.reporting.below import why_below
from mixopt.reporting.diagnosis import Diagnosis
from mixopt.reporting.page import sections, together
from mixopt.reporting.page.parts import Figures, Fold, Part, Section
from mixopt.reporting.page.run import PageRun as PageRun
from mixopt.reporting.page.table import checkpoint_table, every_row
from mixopt.reporting.plots import Drawing
from mixopt.reporting.schema import Report
from mixopt.values.metrics import metric_named
from mixopt.values.samples import VALIDATION

TEMPLATE = "page.html.j2"
KINDS = {"search": "search", "compare": "comparison"}


def page(runs: Sequence[PageRun]) -> str:
    """The page of one run, or of several side by side; every text in it is escaped.

    Args:
        runs: One or more.
    """
    return _rendered(_content(runs))


def pool_page(diagnosis: Diagnosis, name: str) -> str:
    """The page of a pool without a run: its checkpoints one by one, and what lies half-way between them.

    Args:
        diagnosis: Of the pool.
        name: What it is called.
    """
    parts = [checkpoint_table(diagnosis), *sections.checkpoints(diagnosis)]
    between = diagnosis.midpoints
    content = {
        "title": name,
        "answer": sections.basins(between) if between else "Nothing is known of what lies between the checkpoints.",
        "notes": [f"{diagnosis.metric} of {len(diagnosis.checkpoints)} checkpoints; base: {diagnosis.base or 'none'}."],
        "sections": [Section("Checkpoints", parts, list(diagnosis.missing.values()))],
    }
    return _rendered(content)


def _rendered(content: Mapping[str, object]) -> str:
    # Here, as only a page needs it.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("mixopt.reporting", "page")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    return environment.get_template(TEMPLATE).render(**content) + "\n"


def drawings(runs: Sequence[PageRun]) -> list[Drawing]:
    """Every picture of the page, in its order, for files."""
    found = [drawing for section in _sections(runs) for part in section.parts for drawing in _drawings(part)]
    return list({drawing.name: drawing for drawing in found}.values())


def _drawings(part: Part) -> Iterator[Drawing]:
    if isinstance(part, Figures):
        yield from part.drawings
    if isinstance(part, Fold):
        for inner in part.parts:
            yield from _drawings(inner)


def _content(runs: Sequence[PageRun]) -> dict[str, object]:
    first = runs[0]
    if len(runs) == 1:
        return {
            "title": first.name,
            "answer": answer(first.report),
            "notes": _notes(first.report),
            "sections": _sections(runs),
        }
    return {
        "title": ", ".join(run.name for run in runs),
        "answer": together.answer_of(runs),
        "notes": [f"{run.name}: {answer(run.report)}" for run in runs],
        "sections": _sections(runs),
    }


def _sections(runs: Sequence[PageRun]) -> list[Section]:
    if len(runs) > 1:
        return list(together.sections_of(runs))
    (run,) = runs
    found = [
        every_row(run),
        sections.shifts(run),
        sections.mix(run),
        sections.why(run),
        sections.search(run),
        sections.changes(run),
        sections.again(run),
    ]
    return [each for each in found if each is not None]


def _notes(report: Report) -> list[str]:
    """What to know before the table is read."""
    samples = report.splits[VALIDATION].samples
    held = f", of which {samples - report.tuning:,} steered nothing" if samples > report.tuning else ""
    better = "higher" if metric_named(report.metric).sign > 0 else "lower"
    lines = [
        f"{report.metric} ({better} is better) of a {KINDS[report.command]}. Selection split: {samples:,} samples"
        f"{held}. Test splits are only reported; nothing was chosen on them."
    ]
    if why := why_below(report):
        lines.append(f"{why}.")
    saved = "search" if report.command == "search" else report.best
    if report.best == saved:
        lines.append(
            "It is saved as model.safetensors (or shards of it) in the run folder, and scored again from there."
        )
    else:
        lines.append(
            f"The saved model is that of row search; for that of {report.best}: mixopt compare --methods {report.best}."
        )
    if not report.finished:
        lines.append("The search was stopped before all of its trials were complete.")
    return lines
