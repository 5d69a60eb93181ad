"""What a study and its trials say: wrong or missing, it is one error that names the storage and the trial."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mixopt import RunError
from mixopt import study as search
from mixopt.study.boundary import RESTORE
from mixopt.study.records import BATCH
from tests.study.near import POPULATION, SPACE, TRIALS, Near, facts_of, run_at

KINDS = ("journal", "sqlite")
Logs = list[dict[str, Any]]
GONE = object()


def url_of(folder: Path, kind: str) -> str | None:
    return None if kind == "journal" else f"sqlite:///{folder / 'study.db'}"


def place_of(folder: Path, kind: str) -> str:
    return str(folder / "study.journal") if kind == "journal" else f"--storage {url_of(folder, kind)}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study of some trials, the second of which failed, in each kind of storage."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in made.items():
        run_at(folder, "random", Near(lambda call: call == 2), 1 + POPULATION, url_of(folder, kind))
    return made


def attribute(kind: str, folder: Path, trial: int | None, name: str, value: Any) -> None:
    """Change an attribute of a trial, or of the study, behind Optuna's back."""
    if kind == "sqlite":
        with sqlite3.connect(folder / "study.db") as database:
            table, own = ("trial", f" and trial_id = {(trial or 0) + 1}") if trial is not None else ("study", "")
            where = f"from {table}_user_attributes where key = '{name}'{own}"
            if value is GONE:
                database.execute(f"delete {where}")
            else:
                changed = where.replace("from ", "update ", 1).replace(" where", " set value_json = ? where")
                database.execute(changed, (json.dumps(value),))
        database.close()
        return
    journal = folder / "study.journal"
    logs: Logs = []
    for line in journal.read_text().splitlines():
        log = json.loads(line)
        del log["sum"]
        of_this = log.get("trial_id") == trial if trial else log["op_code"] == (2 if trial is None else 4)
        attributes = log.get("user_attr", log.get("user_attrs", {}))
        if of_this and name in attributes and (trial != 0 or "state" in log):
            attributes[name] = value
            if value is GONE:
                del attributes[name]
        if log.get("user_attr") != {}:
            logs.append(log)
    journal.write_text("".join(json.dumps(log) + "\n" for log in logs))


def refused(kind: str, folder: Path, *, by_report: bool = True) -> str:
    """What is said of a damaged study by a search, and by a report where there is one and it looks there."""
    with pytest.raises(RunError) as caught:
        run_at(folder, "random", url=url_of(folder, kind))
    told = str(caught.value)
    if kind == "journal" and by_report:
        with pytest.raises(RunError) as caught:
            search.read_trials(folder / "study.journal")
        assert str(caught.value) == told
    assert told.startswith(f"{place_of(folder, kind)}: ")
    assert told.endswith(f"; {RESTORE}")
    assert "\n" not in told
    return told.removeprefix(f"{place_of(folder, kind)}: ")


ROW = [0.25] * 4
NAN, INF = float("nan"), float("inf")
ATTRIBUTES: list[tuple[str, list[Any]]] = [
    (
        "coefficients",
        [
            GONE,
            None,
            5,
            "x",
            [],
            [ROW],
            [ROW, ROW, ROW],
            [ROW, ROW[:3]],
            [ROW, [0.5, 0.25, 0.25, 0.25]],
            [ROW, [NAN, 0.25, 0.25, 0.25]],
            [ROW, [INF, 0.25, 0.25, 0.25]],
            [ROW, ["0.25", 0.25, 0.25, 0.25]],
            [ROW, [True, 0, 0, 0]],
            {"a": ROW},
        ],
    ),
    ("metrics", [GONE, None, 5, [], {}, {"other": 0.5}, {"accuracy": "0.5"}, {"accuracy": NAN}, {"accuracy": None}]),
    ("images", [GONE, None, -1, 0.5, "3", True, 10**30]),
    ("seconds", [GONE, None, -1.0, "3", NAN, [1]]),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "values"), ATTRIBUTES, ids=[name for name, _ in ATTRIBUTES])
@pytest.mark.parametrize("trial", [0, 3])
def test_what_a_complete_trial_says_has_a_form(
    kind: str, name: str, values: list[Any], trial: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    for number, value in enumerate(values):
        folder = tmp_path / str(number)
        shutil.copytree(folders[kind], folder)
        attribute(kind, folder, trial, name, value)
        # A report shows the trials' values, and does not look for a metric by name.
        told = refused(kind, folder, by_report=value not in ({}, {"other": 0.5}))
        assert told.startswith(f"trial {trial} does not say what mixopt writes ("), value


def add(folder: Path, kind: str, trial: int, name: str, value: Any) -> None:
    """Have a trial say one thing more, in place of another."""
    attribute(kind, folder, trial, "metrics", {"accuracy": 0.5})
    if kind == "sqlite":
        with sqlite3.connect(folder / "study.db") as database:
            database.execute(
                "insert into trial_user_attributes (trial_id, key, value_json) values (?, ?, ?)",
                (trial + 1, name, json.dumps(value)),
            )
        database.close()
        return
    journal = folder / "study.journal"
    lines = journal.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if json.loads(line).get("trial_id") == trial)
    log = {"op_code": 8, "worker_id": "a", "trial_id": trial, "user_attr": {name: value}}
    journal.write_text("\n".join([*lines[:place], json.dumps(log), *lines[place:]]) + "\n")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("estimated", "yes"),
        ("estimated", 1),
        ("signals", 5),
        ("signals", {"validation": "0.5"}),
        ("signals", {"validation": 0.5}),  # which the others do not have
        ("weighted", "0.5"),
        ("weighted", INF),
        ("beside", {"extra": 5}),
        ("beside", {"extra": {"accuracy": None}}),
        ("error", 5),
    ],
)
def test_what_a_trial_may_say_has_a_form_too(
    kind: str, name: str, value: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(folders[kind], folder)
    add(folder, kind, 3, name, value)
    assert refused(kind, folder).startswith("trial 3 does not say what mixopt writes (")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [("coefficients", GONE), ("coefficients", [[1]]), ("seconds", GONE), ("seconds", "1"), ("images", None)],
)
def test_a_failed_trial_of_ours_has_a_form(
    kind: str, name: str, value: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(folders[kind], folder)
    attribute(kind, folder, 2, name, value)
    assert refused(kind, folder).startswith("trial 2 does not say what mixopt writes (")


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_that_somebody_told_fail_is_passed_over(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(folders[kind], folder)
    storage = search.open_storage(folder / "study.journal", url_of(folder, kind))
    study = optuna.load_study(study_name="x", storage=storage)
    trial = study.ask()
    trial.set_user_attr("coefficients", "none")
    trial.suggest_categorical("mine", ["a", "b"])
    study.tell(trial, state=TrialState.FAIL)
    resumed = run_at(folder, "random", url=url_of(folder, kind))
    assert resumed.trials[trial.number].state == TrialState.FAIL
    assert sum(each.state == TrialState.COMPLETE for each in resumed.trials) == TRIALS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("tell", "told"),
    [
        (lambda trial: trial.suggest_float("lower/a", -1, 1), "it has no coefficients"),
        (lambda trial: None, "it has no coefficients"),
    ],
)
def test_a_complete_trial_of_somebody_else_is_refused(
    kind: str, tell: Callable[[optuna.Trial], Any], told: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(folders[kind], folder)
    storage = search.open_storage(folder / "study.journal", url_of(folder, kind))
    study = optuna.load_study(study_name="x", storage=storage)
    trial = study.ask()
    tell(trial)
    study.tell(trial, 0.5)
    assert told in refused(kind, folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("suggest", "told"),
    [
        (lambda trial: trial.suggest_float("lower/a", -2, 2), "its parameter lower/a is not a number from -1 to 1"),
        (lambda trial: trial.suggest_float("nowhere", -1, 1), "its parameters are not the dimensions of the space"),
    ],
)
def test_parameters_lie_in_the_box(
    kind: str, suggest: Callable[[optuna.Trial], Any], told: str, tmp_path: Path
) -> None:
    study = run_at(tmp_path, "random", trials=1, url=url_of(tmp_path, kind))
    suggest(study.ask())
    assert told in refused(kind, tmp_path)


POINT = [0.5] * SPACE.dims
BATCHES: list[Any] = [
    5,
    [],
    {},
    {"points": [POINT], "expected": []},
    {"points": [], "expected": [], "half": 0.5},
    {"points": POINT, "expected": [], "half": 0.5},
    {"points": [POINT, POINT[1:]], "expected": [], "half": 0.5},
    {"points": [POINT[1:]], "expected": [], "half": 0.5},
    {"points": [[0.0] * 100_000], "expected": [], "half": 0.5},
    {"points": [[NAN, *POINT[1:]]], "expected": [], "half": 0.5},
    {"points": [[1.01, *POINT[1:]]], "expected": [], "half": 0.5},
    {"points": [["0.5", *POINT[1:]]], "expected": [], "half": 0.5},
    {"points": [POINT, POINT], "expected": [0.5], "half": 0.5},
    {"points": [POINT], "expected": [0.5] * 100_000, "half": 0.5},
    {"points": [POINT], "expected": [INF], "half": 0.5},
    {"points": [POINT], "expected": None, "half": 0.5},
    {"points": [POINT], "expected": [], "half": 0.0},
    {"points": [POINT], "expected": [], "half": NAN},
    {"points": [POINT], "expected": [], "half": 10**400},
    {"points": [POINT], "expected": [], "half": "0.5"},
]
NOTES: list[tuple[str, Any]] = [
    ("cma:generation", "1"),
    ("NSGAIISampler:generation", -1),
    ("NSGAIISampler:generation", [1]),
    ("constraints", 5),
    ("constraints", [None]),
    ("constraints:a", "x"),
    ("fixed_params", 5),
    ("fixed_params", {"lower/a": "x"}),
    ("tpe:relative_params:0", 5),
    ("tpe:relative_params:0", "[]"),
    ("gp:relative_params:0", "[" * 9999),
    *((BATCH, value) for value in BATCHES),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("key", "value"), NOTES, ids=range(len(NOTES)))
def test_what_samplers_note_in_a_trial_has_a_form(kind: str, key: str, value: Any, tmp_path: Path) -> None:
    study = run_at(tmp_path, "random", trials=1, url=url_of(tmp_path, kind))
    study._storage.set_trial_system_attr(study.ask()._trial_id, key, value)
    assert refused(kind, tmp_path).startswith("trial 1 does not say what mixopt writes (")


@pytest.mark.parametrize("batch", BATCHES, ids=range(len(BATCHES)))
def test_a_hostile_batch_is_refused_by_the_sampler_that_would_read_it(batch: Any, tmp_path: Path) -> None:
    study = run_at(tmp_path, "surface", trials=1 + POPULATION)
    study._storage.set_trial_system_attr(study.ask()._trial_id, BATCH, batch)
    with pytest.raises(RunError, match="trial 5 does not say what mixopt writes"):
        run_at(tmp_path, "surface")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [5, "x", ["a"], [-1], [True]])
def test_what_nsgaii_notes_in_a_study_has_a_form(kind: str, value: Any, tmp_path: Path) -> None:
    study = run_at(tmp_path, "random", trials=1, url=url_of(tmp_path, kind))
    study._storage.set_study_system_attr(study._study_id, "NSGAIISampler:parent:1", value)
    assert refused(kind, tmp_path).startswith("study 'x' does not say what mixopt writes (parents")


def of_space(**changes: Any) -> Callable[[Any], Any]:
    return lambda stored: {**stored, "space": {**stored["space"], **changes}}


STORED: dict[str, Callable[[Any], Any]] = {
    "a number": lambda _: 5,
    "a list": lambda _: [],
    "nothing": lambda stored: {**stored, "space": None},
    "no space": lambda stored: {"identity": stored["identity"]},
    "no identity but a list": lambda stored: {**stored, "identity": []},
    "an unknown space": of_space(kind="nowhere"),
    "a space of a list": of_space(kind=[]),
    "a space without a start": of_space(start=None),
    "a start of text": of_space(start="x"),
    "no radius": of_space(radius="x"),
    "a radius of NaN": of_space(radius=NAN),
    "no active columns": of_space(active=5),
    "another active column": of_space(active=["e"]),
    "other checkpoints": lambda stored: {
        **stored,
        "identity": {key: value for key, value in stored["identity"].items() if key != "checkpoint a"},
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", list(STORED))
def test_what_is_kept_of_the_study_has_a_form(kind: str, change: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(folders[kind], folder)
    storage = search.open_storage(folder / "study.journal", url_of(folder, kind))
    stored = optuna.load_study(study_name="x", storage=storage).user_attrs["mixopt"]
    attribute(kind, folder, None, "mixopt", STORED[change](stored))
    assert refused(kind, folder).startswith("study 'x' does not say what mixopt writes (")


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_of_another_version_is_refused_as_such(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(folders[kind], folder)
    attribute(kind, folder, None, "mixopt", {"fingerprint": "x"})
    with pytest.raises(RunError, match="another version of mixopt"):
        run_at(folder, "random", url=url_of(folder, kind))


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("update study_directions set direction = 'MINIMIZE'", "expected the directions maximize, found minimize"),
        (
            "update trials set number = 9 where trial_id = 4",
            "does not say what mixopt writes (its number is",
        ),
        ("update trials set state = 'RUNNING' where trial_id = 1", "it is the start, but running"),
        ("update trial_values set value = 9e999 where trial_id = 4", "its values are [inf]"),
        ("delete from trial_values where trial_id = 4", "its values are []"),
        ("update trial_params set param_value = 7 where trial_id = 4", "is not a number from -1 to 1"),
        ("update trial_params set param_name = 'z' where param_id = 12", "are not the dimensions of the space"),
        ("update trial_params set distribution_json = 'x' where trial_id = 4", ""),
        ("update trial_params set distribution_json = '{}' where trial_id = 4", ""),
        ("update trial_user_attributes set value_json = '{' where trial_id = 4", ""),
        (f"update trial_user_attributes set value_json = '{'[' * 100_000}' where trial_id = 4", ""),
        ("update study_user_attributes set value_json = 'x'", ""),
        ("update trials set state = 'NOWHERE' where trial_id = 4", ""),
        ("drop table trial_params", ""),
        ("alter table trials drop column state", ""),
    ],
)
def test_a_changed_database_is_one_error(statement: str, told: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(folders["sqlite"], folder)
    with sqlite3.connect(folder / "study.db") as database:
        database.execute(statement)
    database.close()
    with pytest.raises(RunError) as caught:
        run_at(folder, "random", url=url_of(folder, "sqlite"))
    found = str(caught.value)
    assert found.startswith(f"{place_of(folder, 'sqlite')}: ")
    assert told in found
    assert "\n" not in found
    assert "sqlalche.me" not in found
    assert "SELECT" not in found


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_that_is_whole_goes_on_as_before(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    shutil.copytree(folders[kind], folder)
    whole.mkdir()
    resumed = run_at(folder, "random", url=url_of(folder, kind))
    assert facts_of(resumed) == facts_of(run_at(whole, "random", Near(lambda call: call == 2), url=url_of(whole, kind)))
