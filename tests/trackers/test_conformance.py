"""The contract of a tracker, on every one; a new file in mixopt/trackers is tested by itself."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mixopt.cli.guide import page
from mixopt.errors import SpecError
from mixopt.listener import Listener
from mixopt.trackers import Place, tracker_named, tracker_names
from tests.listening import Recorder
from tests.trackers.records import record_in

TRACKERS = tracker_names()


def test_there_are_trackers() -> None:
    assert TRACKERS == ["mlflow", "tensorboard", "trackio", "wandb"]
    with pytest.raises(SpecError, match="did you mean 'mlflow'"):
        tracker_named("mlflw")
    with pytest.raises(SpecError, match="unknown tracker 'record'"):
        tracker_named("record")


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_is_documented_and_an_extra(name: str) -> None:
    tracker = tracker_named(name)
    assert tracker.OPTION in ("project", "logdir")
    assert inspect.getdoc(tracker)
    assert f"`{name}`" in page("trackers")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert name in project["optional-dependencies"]


def test_libraries_are_imported_by_writing_alone() -> None:
    modules = ", ".join(f"mixopt.trackers.{name}" for name in TRACKERS)
    code = f"import sys, {modules}; sys.exit(bool({{'torch', *{TRACKERS!r}}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_library_is_one_error_with_its_command(
    name: str, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SpecError, match=rf"--to {name} needs the library .*pip install 'mixopt\[{name}\]'"):
        tracker_named(name).write(record_in(tmp_path), Place(None, stores / "logs"), Listener())


@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_is_logged_once(name: str, stores: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    heard = Recorder()
    record, place = record_in(tmp_path), Place("mine", stores / "logs")
    first = tracker_named(name).write(record, place, heard.listener)
    assert first.tracker == name
    assert first.run
    assert first.place
    assert not first.was_there
    told = len(heard.told)
    again = tracker_named(name).write(record, place, heard.listener)
    assert again.was_there
    assert again.run == first.run
    assert len(heard.told) > told, "what became of it is told"
    other = tracker_named(name).write(record_in(tmp_path, "cd" * 32), place, heard.listener)
    assert not other.was_there
    assert other.run != first.run
    assert not capfd.readouterr().out, "stdout is for results"
