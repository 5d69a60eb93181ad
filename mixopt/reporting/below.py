"""Why a search's own row is not the highest on the samples that it was chosen by."""

from __future__ import annotations

from mixopt.reporting.schema import MadeRow, Report
from mixopt.values.metrics import metric_named
from mixopt.values.samples import VALIDATION


def why_below(report: Report) -> str | None:
    """One line where a search's own row, the last, is below another single model on the validation split.

    The reason is the first that holds: other splits steered too; its last step was one for shifts; the search is ahead
    by what choices are made by, the metric less the loss; it is its start, no step from which was supported; the 95 %
    intervals overlap. Where none holds, the line says that the other row may be the better model.
    """
    if report.command != "search" or not report.made:
        return None
    *others, ours = report.made
    sign = metric_named(report.metric).sign
    above = [row for row in others if row.models == 1 and sign * (row.search - ours.search) > 0]
    if not above:
        return None
    highest = max(above, key=lambda row: sign * row.search)
    more = f" ({len(above)} rows do better)" if above[1:] else ""
    return (
        f"{ours.name} scores {ours.search:.4f} on selection and {highest.name} {highest.search:.4f}{more}: "
        f"{_reason(report, ours, highest)}"
    )


def _reason(report: Report, ours: MadeRow, highest: MadeRow) -> str:
    """Why the search is below one row, as far as the report can tell."""
    if report.steering:
        return f"{', '.join(report.steering)} steered too"
    step = ours.notes.get("robust") or {}
    if step.get("share"):
        return (
            f"its last step, for shifted samples, goes {step['share']:.0%} of the way to {step['towards']}, which "
            "held-out samples cannot tell from none (--robust off leaves it out)"
        )
    sign, loss, theirs = metric_named(report.metric).sign, _loss(ours), _loss(highest)
    if report.signal == f"{report.metric} with nll" and loss is not None and theirs is not None:
        ahead = sign * (ours.search - highest.search) - (loss - theirs)
        if ahead > 0:
            return f"what chooses weighs the loss too ({report.signal}), and that is {loss:.4f} against {theirs:.4f}"
    stayed = ours.notes.get("share") == 0 and not ours.notes.get("refit")
    if stayed and any(row.search == ours.search for row in report.made[:-1]):
        return "it is its start, and samples that did not choose a step from it support none"
    (low, high), (other_low, other_high) = (row.interval.get(VALIDATION, (row.search,) * 2) for row in (ours, highest))
    if low <= other_high and other_low <= high:
        return (
            f"too close to tell apart, the 95 % intervals ({low:.4f} to {high:.4f}, {other_low:.4f} to "
            f"{other_high:.4f}) overlap"
        )
    return f"the 95 % intervals do not overlap, that may be the better model: mixopt compare --methods {highest.name}"


def _loss(row: MadeRow) -> float | None:
    return row.metrics[VALIDATION].get("nll")
