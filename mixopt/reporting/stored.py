"""A report from what report.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixopt.errors import RunError, short
from mixopt.reporting.schema import REPORT_FORMAT, Report
from mixopt.untrusted import refusing
from mixopt.untrusted.texts import CHECKSUM, check_checksum, json_of
from mixopt.untrusted.values import validated
from mixopt.values.samples import VALIDATION

ANEW = "the run's own command writes it anew, with scores from the cache"


def report_from(text: str, source: str) -> Report:
    """Read what `mixopt.reporting.schema.Report.to_json` wrote.

    Args:
        text: The content.
        source: The file, for messages.

    Raises:
        RunError: Not a report, one of another format, or one that was damaged or edited.
    """
    values = of_format(text, source, "report", REPORT_FORMAT)
    with refusing(RunError, source, found="not a whole report", cure=ANEW):
        if CHECKSUM in values:  # reports from before there was one have none
            check_checksum(values)
            del values[CHECKSUM]
        report = validated(Report, values)
        _check_rows(report)
    return report


def of_format(text: str, source: str, what: str, expected: int) -> dict[str, Any]:
    """The values of a JSON text that names its format.

    Args:
        text: The content.
        source: The file, for messages.
        what: What it should be.
        expected: The format that is read.

    Raises:
        RunError: No JSON values by name, or of another format.
    """
    values = json_of(text, source, RunError, cure=ANEW)
    found = values.get("format", "an older one") if isinstance(values, Mapping) else f"a {type(values).__name__}"
    if found != expected:
        raise RunError(
            f"{source}: written by another version of mixopt ({what} format {short(str(found))}, expected "
            f"{expected}); {ANEW}"
        )
    return dict(values)


def _check_rows(report: Report) -> None:
    """Whether every row that is named is there, and every row has been scored on every split.

    Raises:
        ValueError: Not so.
    """
    made = {row.name: row for row in report.made}
    if report.best not in made:
        raise ValueError(f"the best row, {short(report.best)}, is none of those that were made")
    if VALIDATION not in report.splits or not 0 <= report.tuning <= report.splits[VALIDATION].samples:
        raise ValueError(f"tuning does not fit the samples of the {VALIDATION} split")
    for name, row in made.items():
        if row.metrics.keys() != report.splits.keys() or row.test.keys() != made[report.best].test.keys():
            raise ValueError(f"row {short(name)} has scores on other splits than the run")
        if any(row.metrics[split].keys() != measured.keys() for split, measured in made[report.best].metrics.items()):
            raise ValueError(f"row {short(name)} has other metrics than {short(report.best)}")
