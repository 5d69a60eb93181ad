"""MLflow's own store, read back by its own client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixopt.errors import RunError
from mixopt.listener import Listener
from mixopt.trackers import Place, mlflow, without_password
from tests.listening import Recorder
from tests.trackers.records import record_in

PLACE = Place(None, Path("unused"))


def client(stores: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{stores}/mlflow.db")


def runs_of(stores: Path, project: str = "mixopt") -> list[Any]:
    experiment = client(stores).get_experiment_by_name(project)
    return list(client(stores).search_runs([experiment.experiment_id]))


def test_a_run_holds_a_run_for_every_row(stores: Path, tmp_path: Path) -> None:
    record = record_in(tmp_path)
    done = mlflow.write(record, PLACE, Listener())
    assert done.place == f"experiment mixopt of sqlite:///{stores}/mlflow.db"
    runs = {run.info.run_name: run for run in runs_of(stores)}
    assert set(runs) == {"pool", *(row.name for row in record.rows)}
    parent = runs.pop("pool")
    assert parent.info.run_id == done.run
    assert parent.info.end_time - parent.info.start_time == 60_000
    assert parent.data.params == {name: str(value) for name, value in record.params.items()}
    assert parent.data.metrics["score/validation"] == 0.7
    for row in record.rows:
        found = runs[row.name]
        assert found.data.tags["mlflow.parentRunId"] == done.run
        assert found.data.metrics == {name.replace(",", "_"): value for name, value in row.numbers.items()}
        assert found.info.status == ("FAILED" if row.error else "FINISHED")
        assert found.data.tags.get("mixopt.error", "") == row.error


def test_the_curve_has_trials_and_images_for_steps(stores: Path, tmp_path: Path) -> None:
    done = mlflow.write(record_in(tmp_path), PLACE, Listener())
    for name, steps in (("search/best_by_trial", [0, 1, 2]), ("search/best_by_images", [100, 150, 250])):
        history = client(stores).get_metric_history(done.run, name)
        assert [(each.step, each.value) for each in history] == list(zip(steps, [0.25, 0.25, 0.5], strict=True))


def test_files_are_artifacts_and_put_again(stores: Path, tmp_path: Path) -> None:
    record = record_in(tmp_path)
    done = mlflow.write(record, PLACE, Listener())
    record.files["report.html"].write_text("new", encoding="utf-8")
    assert mlflow.write(record, PLACE, Listener()).was_there
    assert {each.path for each in client(stores).list_artifacts(done.run)} == set(record.files)
    page = client(stores).download_artifacts(done.run, "report.html", str(tmp_path))
    assert Path(page).read_text() == "new"
    assert len(runs_of(stores)) == 5
    assert len(client(stores).get_metric_history(done.run, "search/best_by_trial")) == 3


def test_what_was_deleted_or_cut_short_is_logged_anew(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_in(tmp_path)
    with monkeypatch.context() as patched:

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(mlflow, "_put_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mlflow.write(record, PLACE, Listener())
    (parent,) = [run for run in runs_of(stores) if run.info.run_name == "pool"]
    assert parent.info.status == "FAILED"
    done = mlflow.write(record, PLACE, Listener())
    assert not done.was_there
    client(stores).delete_run(done.run)
    assert not mlflow.write(record, PLACE, Listener()).was_there


def test_names_that_it_does_not_take_are_changed_and_told(stores: Path, tmp_path: Path) -> None:
    heard = Recorder()
    mlflow.write(record_in(tmp_path), PLACE, heard.listener)
    assert "MLflow takes no 'score/test, blurred' for a name; it is 'score/test_ blurred' there" in heard.infos
    names = mlflow._Names(heard.listener)
    assert [names.of(name) for name in ("a,b", "a;b", "a,b", "a_b")] == ["a_b", "a_b_2", "a_b", "a_b_3"]


def test_the_experiment_is_that_of_its_variable(stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    mlflow.write(record_in(tmp_path), PLACE, Listener())
    mlflow.write(record_in(tmp_path), Place("mine", Path("unused")), Listener())
    assert len(runs_of(stores, "theirs")) == len(runs_of(stores, "mine")) == 5


def test_a_server_that_is_not_there_is_one_error(stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(
        RunError, match=r"--to mlflow: could not write to http://127.0.0.1:9 .*MLFLOW_TRACKING_URI"
    ) as told:
        mlflow.write(record_in(tmp_path), PLACE, Listener())
    assert "secret" not in str(told.value)


def test_passwords_are_left_out() -> None:
    assert (
        without_password("to postgresql://me:se@cret@host/db or file:///a@b")
        == "to postgresql://host/db or file:///a@b"
    )
