"""The report as a file: what is read back is what was written, and nothing else is taken for a report."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mixopt.errors import RunError
from mixopt.reporting.rows import Failure, LabelledOutcomes, Row
from mixopt.reporting.schema import Front, Race, Report, SpaceInfo, SweepPoint, Verification
from mixopt.reporting.stored import report_from
from tests.reports import report_of

REFUSED = "the run's own command writes it anew, with scores from the cache"


def report(**fields: Any) -> Report:
    labels = np.zeros(20, dtype=np.int64)
    samples = LabelledOutcomes(labels, np.arange(20, dtype=np.int64) % 3, np.full(20, 0.1))
    metrics = {split: {"accuracy": 0.1 + 0.2, "nll": 1 / 3} for split in ("validation", "test")}
    row = Row("uniform", metrics, dict.fromkeys(metrics, samples), 1, 1, 20, 0, 0.1234567, 3)
    return report_of([row, Failure("model_stock", "no base")], **fields)


def searched() -> Report:
    front = Front.model_validate(
        {
            "objectives": [{"name": name, "weight": 0.5} for name in ("validation", "synthetic")],
            "signal": "accuracy",
            "direction": "maximize",
            "points": [{"trial": 0, "values": [2 / 3, 0.1], "on_front": True}],
            "picked": 0,
        }
    )
    return report(
        sampler="cmaes",
        trials={"complete": 1},
        race=Race(given_up=0, images=20, unraced_images=20),
        space=SpaceInfo(kind="simplex", dims=2, labels=("a", "b")),
        front=front,
    )


def test_what_is_read_is_what_was_written_bit_for_bit() -> None:
    for made in (report(), searched()):
        again = report_from(made.to_json(), "here")
        assert again == made
        assert again.to_json() == made.to_json()
        assert again.row("uniform").search == 0.1 + 0.2 != 0.3
        assert made.as_dict() == json.loads(made.to_json())


def test_what_there_is_nothing_to_say_of_has_no_key() -> None:
    values = report().as_dict()
    assert not {"front", "select", "shifts", "space", "race", "sampler", "compared"} & values.keys()
    made, failed = values["methods"]
    assert not {"select", "notes", "curves", "sweep"} & made.keys()
    assert made["peak_memory"] is None, "not measured, which is something to say"
    assert failed == {"name": "model_stock", "search": None, "test": {}, "error": "no base"}
    assert {"front", "space", "race", "sampler"} <= searched().as_dict().keys()


def test_a_value_that_is_not_finite_is_kept() -> None:
    verification = Verification(
        trial_score=math.inf, file_score=math.nan, difference=math.nan, predictions_differing=0, samples=1
    )
    again = report_from(report(verification=verification).to_json(), "here").verification
    assert again.trial_score == math.inf
    assert math.isnan(again.file_score)


def test_a_report_is_frozen_and_holds_nothing_undeclared() -> None:
    made = report()
    with pytest.raises(ValidationError, match="frozen"):
        made.best = "other"
    with pytest.raises(ValidationError, match="extra"):
        SweepPoint.model_validate({"x": 0.5, "search": None, "test": {}, "more": 1})


def changed(**fields: Any) -> str:
    whole = {name: value for name, value in report().as_dict().items() if name != "checksum"}
    return json.dumps({**whole, **fields})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "report format a list, expected 2"),
        ('{"metric": "accuracy", "methods": []}', "report format an older one, expected 2"),
        (changed(format=3), "report format 3, expected 2"),
        (changed(methods=[{"name": "x"}]), r"not a whole report \(methods\.0"),
        (changed(tuning="many"), r"not a whole report \(tuning: "),
        (changed(steering=5), r"not a whole report \(steering: "),
    ],
)
def test_anything_else_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(RunError, match=rf"^run/report.json: .*{message}.*{REFUSED}$") as raised:
        report_from(text, "run/report.json")
    assert "\n" not in str(raised.value)
