"""A run as its page reads it: all that its folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mixopt.reporting.diagnosis import Diagnosis
from mixopt.reporting.rows import TrialPoint
from mixopt.reporting.schema import Report


@dataclass(frozen=True)
class PageRun:
    """What a page is made from.

    Attributes:
        name: What the run is called.
        report: The content of report.json.
        diagnosis: The content of diagnosis.json; None where there is none.
        trials: Of `mixopt.study.read_trials`; none where they are not to be had.
        importances: Dimension of the search's space to its share of what the value varies by.
        command: That makes the run again.
        options: The content of run.toml.
        missing: Part of the page to why it is not there.
    """

    name: str
    report: Report
    diagnosis: Diagnosis | None = None
    trials: Sequence[TrialPoint] = ()
    importances: Mapping[str, float] = field(default_factory=dict)
    command: str = ""
    options: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, str]:
        """Why parts of the page are not there, from wherever that is known."""
        return {**self.missing, **(self.diagnosis.missing if self.diagnosis else {})}
