"""A run folder into a tracker: what is read of it, what is refused, what is told."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mixopt
from mixopt.cli import app
from mixopt.errors import MixoptError, RunError, SpecError
from mixopt.listener import Listener
from mixopt.study import read_trials
from mixopt.trackers import Logged, Place, tensorboard
from mixopt.trackers.record import RunRecord, curve_of, rows_of
from tests.listening import Recorder


@pytest.fixture(scope="module")
def searched(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a short search."""
    folder = tmp_path_factory.mktemp("searched")
    return mixopt.search(clip_pool_template, trials=4, out=folder / "run", cache=folder / "cache", device="cpu").folder


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(searched, tmp_path / "run"))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunRecord, Place, dict[str, bytes]]]:
    """What TensorBoard's tracker is given: the record, the place, and what the files hold."""
    seen: list[tuple[RunRecord, Place, dict[str, bytes]]] = []

    def write(record: RunRecord, place: Place, listener: Listener) -> Logged:
        seen.append((record, place, {name: path.read_bytes() for name, path in record.files.items()}))
        return Logged("tensorboard", "there", "run", False)

    monkeypatch.setattr(tensorboard, "write", write)
    return seen


def test_the_record_is_what_the_folder_holds(run: Path, given: list[Any]) -> None:
    report = mixopt.report(run)
    assert mixopt.log(run, to="tensorboard") == Logged("tensorboard", "there", "run", False)
    ((record, place, files),) = given
    assert place == Place(None, run / "tensorboard")
    assert record.name == "run"
    assert record.params["metric"] == report.metric == "accuracy"
    assert record.params["best"] == record.best.name == report.best
    assert record.params["samples/test"] == report.splits["test"].samples
    assert [row.name for row in record.rows] == [row.name for row in report.methods]
    for found, row in zip(record.rows, report.made, strict=True):
        assert found.numbers["score/validation"] == row.search
        assert (found.numbers["low/shift"], found.numbers["high/shift"]) == row.interval["shift"]
        assert found.numbers["score/shift"] == row.test["shift"]
        assert found.numbers["cost/images"] == row.images
        assert found.numbers["cost/seconds"] == row.seconds
    trials = read_trials(run / "study.journal")
    assert len(record.curve) == len(trials) >= 2
    assert record.curve[-1].images == sum(trial.images for trial in trials)
    assert record.curve[-1].best == max(trial.value for trial in trials if not trial.estimated)
    assert set(files) == {"report.html", "report.json", "recipe.json"}
    assert files["report.json"] == (run / "report.json").read_bytes()
    assert b"</html>" in files["report.html"]


def test_the_page_of_the_folder_is_taken_as_it_is_and_none_is_left(run: Path, given: list[Any]) -> None:
    (run / "report.html").unlink(missing_ok=True)
    before = set(run.iterdir())
    mixopt.log(run, to="tensorboard")
    assert set(run.iterdir()) == before
    assert not given[0][0].files["report.html"].exists(), "made for this, and gone"
    (run / "report.html").write_text("mine", encoding="utf-8")
    mixopt.log(run, to="tensorboard")
    assert given[1][2]["report.html"] == b"mine"
    assert given[0][0].digest == given[1][0].digest


def test_the_model_goes_along_only_where_it_is_asked_for(run: Path, given: list[Any]) -> None:
    mixopt.log(run, to="tensorboard", with_model=True)
    assert given[0][2]["model.safetensors"] == (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"--with-model: .* holds no model.safetensors"):
        mixopt.log(run, to="tensorboard", with_model=True)
    names = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        (run / name).write_text(name, encoding="utf-8")
    mixopt.log(run, to="tensorboard", with_model=True)
    assert set(names) < set(given[1][2])


@pytest.mark.parametrize("name", ["report.html", "recipe.json", "model.safetensors"])
def test_links_to_files_elsewhere_are_refused(run: Path, tmp_path: Path, name: str, given: list[Any]) -> None:
    (tmp_path / "secret").write_text("mine", encoding="utf-8")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "secret")
    with pytest.raises(RunError, match=f"{name}: a link to somewhere else"):
        mixopt.log(run, to="tensorboard", with_model=True)
    assert not given


def test_what_is_left_out_is_told(run: Path, given: list[Any]) -> None:
    heard = Recorder()
    lines = (run / "study.journal").read_text().splitlines()
    (run / "study.journal").write_text("\n".join([*lines[:3], *lines[4:]]) + "\n", encoding="utf-8")
    (run / "recipe.json").unlink()
    mixopt.log(run, to="tensorboard", listener=heard.listener)
    (run / "study.journal").unlink()
    mixopt.log(run, to="tensorboard", listener=heard.listener)
    recipe = f"{run}: has no recipe.json, which is left out"
    assert heard.warnings[0] == heard.warnings[2] == recipe
    assert "the curve of the search is left out: " in heard.warnings[1]
    assert heard.warnings[3].endswith("holds no journal; the study is in the run's --storage")
    assert [record.curve for record, _, _ in given] == [(), ()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "tensorbord"}, "--to: unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        ({"to": "tensorboard", "project": "mine"}, "--project: --to tensorboard has none; it takes --logdir"),
        ({"to": "wandb", "logdir": "here"}, "--logdir: --to wandb has none; it takes --project"),
    ],
)
def test_options_that_do_not_fit_are_one_error(run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as told:
        mixopt.log(run, **options)
    assert message in str(told.value)


def test_a_run_without_a_report_is_an_error(run: Path, tmp_path: Path) -> None:
    (run / "report.json").unlink()
    with pytest.raises(MixoptError, match="the run has no report yet"):
        mixopt.log(run, to="tensorboard")
    with pytest.raises(MixoptError, match="not a run folder"):
        mixopt.log(tmp_path / "nothing", to="tensorboard")


def test_lower_is_better_where_the_metric_says_so(run: Path) -> None:
    report = mixopt.report(run)
    trials = read_trials(run / "study.journal")
    losses = report.model_copy(update={"metric": "nll"})
    assert curve_of(losses, trials)[-1].best == min(trial.value for trial in trials if not trial.estimated)
    assert len(rows_of(report)) == len(report.methods)


def test_the_command_says_where_and_leaves_the_run_as_it_was(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    done = CliRunner().invoke(app, ["log", str(run), "--to", "tensorboard"])
    assert done.exit_code == 0, done.output
    name = next((run / "tensorboard").iterdir()).name
    assert done.stdout == f"logged to tensorboard: {name}, {run / 'tensorboard'}\n"
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    again = CliRunner().invoke(app, ["log", str(run), "--to", "tensorboard", "--json"])
    expected = Logged("tensorboard", str(run / "tensorboard"), name, True)
    assert json.loads(again.stdout) == asdict(expected)
    assert "was there" in again.stderr
    # The run's own command and report go on beside it.
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
