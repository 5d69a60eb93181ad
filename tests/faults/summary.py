"""How many commands were killed, and how many of them went on to the same end: a table after the tests, and a file."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FOLDER = "MIXOPT_CAMPAIGN"  # the environment variable that names a folder for the counts
FILE = "campaign-kills.json"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts where commands were killed."""
    cases = [
        (report.nodeid, value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for key, value in report.user_properties
        if key == "killed"
    ]
    if not cases:
        return
    counts = counts_of(cases)
    terminalreporter.section("killed commands")
    for command, found in counts["commands"].items():
        terminalreporter.line(f"{command:15} " + ", ".join(f"{count} {what}" for what, count in found.items()))
    if folder := os.environ.get(FOLDER):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / FILE).write_text(json.dumps(counts, indent=2) + "\n")


def counts_of(cases: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Counts by command and by kind of event, and what was wrong, by test."""
    commands: dict[str, Counter[str]] = {}
    for _, case in cases:
        for name in (case["command"], "all"):
            found = commands.setdefault(name, Counter(cases=0, kills=0, survived=0, differing=0))
            found.update(cases=1, kills=case["kills"], survived=not case["wrong"], differing=bool(case["wrong"]))
    order = sorted(commands, key=lambda name: (name == "all", name))
    return {
        "commands": {name: dict(commands[name]) for name in order},
        "events": dict(sorted(Counter(case["event"] for _, case in cases).items())),
        "wrong": {test: case["wrong"] for test, case in sorted(cases) if case["wrong"]},
    }
