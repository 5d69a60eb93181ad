"""What Trackio is asked for, as version 0.43 takes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mixopt.errors import RunError
from mixopt.listener import Listener
from mixopt.trackers import Place, trackio
from tests.trackers.records import record_in


def runs(project: str = "mixopt") -> dict[str, Any]:
    return dict(sys.modules["trackio"].projects[project])


def test_a_run_holds_the_curve_then_every_row(stores: Path, tmp_path: Path) -> None:
    record = record_in(tmp_path)
    done = trackio.write(record, Place(None, stores), Listener())
    assert done.place == "project mixopt of this machine"
    run = runs()[done.run]
    assert run.config == record.params
    *curve, (step, shown) = run.history
    assert [(at, each["search/images"], each["search/best"]) for at, each in curve] == [
        (0, 100, 0.25),
        (1, 150, 0.25),
        (2, 250, 0.5),
    ]
    assert step == 3
    assert shown["score/validation"] == shown["search/score/validation"] == 0.7
    assert shown["wise_ft:a|b/high/validation"] == pytest.approx(0.9)
    assert [each["failed"] for each in shown["rows"].rows] == ["", "", "needs a base", ""]
    assert shown["rows"].rows[0]["score/validation"] == 0.5
    assert shown["report"].text == "<p>report.html"
    assert run.artifacts[0].files == {name: f"<p>{name}" for name in record.files}


def test_logged_again_its_numbers_stay(stores: Path, tmp_path: Path) -> None:
    record = record_in(tmp_path)
    done = trackio.write(record, Place("mine", stores), Listener())
    trackio.write(record, Place("mine", stores), Listener())
    assert list(runs("mine")) == [done.run]
    assert len(runs("mine")[done.run].history) == 4
    assert len(runs("mine")[done.run].artifacts) == 2


def test_a_server_is_named_without_its_token(stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_SERVER_URL", "https://host:7860/?write_token=secret")
    assert trackio.write(record_in(tmp_path), Place(None, stores), Listener()).place.endswith("https://host:7860/")


def test_what_it_raises_is_one_error(stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise ValueError("no such server")

    monkeypatch.setattr(sys.modules["trackio"], "init", refused)
    with pytest.raises(RunError, match=r"--to trackio: could not write to project mixopt \(no such server\)"):
        trackio.write(record_in(tmp_path), Place(None, stores), Listener())
