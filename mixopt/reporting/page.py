"""A report as one page that stands alone: tables, and pictures as inline SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from mixopt.reporting import plots, tables
from mixopt.values.metrics import METRICS

STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 70em; margin: 2em auto; padding: 0 1em }
div { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
td, th { padding: 3px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
tr.best { font-weight: bold }
svg { max-width: 100%; height: auto }
p.caption { color: #555; font-size: 13px }
"""


def page(report: Mapping[str, Any], title: str, trials: Sequence[Mapping[str, Any]]) -> str:
    """The page.

    Args:
        report: The content of report.json.
        title: What the run is called.
        trials: Of `mixopt.study.read_trials`; without any, the picture of the search is left out.
    """
    name = escape(title)
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style></head><body>',
            f"<h1>{name}</h1>",
            f"<p>{escape(_summary(report))}</p>",
            *_tables(report),
            *_pictures(report, trials),
            "</body></html>\n",
        ]
    )


def _summary(report: Mapping[str, Any]) -> str:
    samples = report["splits"]["validation"]["samples"]
    held = f", of which {samples - report['steering']:,} steered nothing" if samples > report["steering"] else ""
    better = "higher" if METRICS[report["metric"]].sign > 0 else "lower"
    kind = {"search": "search", "compare": "comparison"}[report["command"]]
    parts = [
        f"{report['metric']} ({better} is better) of a {kind}; the best row is {report['best']}.",
        f"Selection split: {samples:,} samples{held}.",
        "Test splits are only reported; nothing was chosen on them.",
    ]
    if not report.get("finished", True):
        parts.append("The search was stopped before all of its trials were complete.")
    return " ".join(parts)


def _tables(report: Mapping[str, Any]) -> Iterator[str]:
    yield from _section("Every row", _table(*tables.table(report, intervals=True, details=True), report["best"]))
    yield _caption("± is half the width of the 95 % interval.")
    failed = [f"<li>{escape(row['name'])}: {escape(row['error'])}</li>" for row in report["methods"] if "error" in row]
    if failed:
        yield from _section("Rows that failed", f"<ul>{''.join(failed)}</ul>")
    header, cells = tables.comparisons(report)
    if len(header) > 1:
        yield from _section("Paired tests", _table(header, cells, report["best"]))
        yield _caption("Difference in accuracy on the same samples, and p of the exact McNemar test.")
    if "front" in report:
        yield from _section("Trials on the Pareto front", _table(*tables.front(report)))


def _pictures(report: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if trials:
        yield from _section("The search", _svg(plots.progress(report, trials)))
        yield _caption(
            "Images are those of the trials, the ones seen of a trial that was given up early included."
            + ("" if report.get("select") else " Each other row stands at what it takes and scores by itself.")
        )
    if "front" in report:
        yield from _section("The Pareto front", _svg(plots.front(report)))
        if len(report["front"]["objectives"]) > 2:
            yield _caption("The first two objectives of several; the front is that of all of them.")
    if tables.tests_of(report):
        yield from _section("Selection against test", _svg(plots.tests(report)))
        yield _caption("A point for each mix; the base alone is in the table.")
    if drawn := plots.curves(report):
        yield from _section("What the methods saw on the way", _svg(drawn))
        yield _caption("Hollow: tried and not taken.")


def _section(title: str, content: str) -> list[str]:
    return [f"<h2>{escape(title)}</h2>", f"<div>{content}</div>"]


def _caption(text: str) -> str:
    return f'<p class="caption">{escape(text)}</p>'


def _table(header: Sequence[str], cells: Sequence[Sequence[str]], best: str = "") -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    rows = [
        f"<tr{' class=best' if row[0] == best else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row in cells
    ]
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _svg(drawn: str) -> str:
    """Without what only a file of its own needs."""
    return drawn[drawn.index("<svg") :]
