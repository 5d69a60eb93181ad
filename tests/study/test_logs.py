"""A journal's lines: any that was changed, lost or moved is noticed, and none that is no operation reaches Optuna."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from mixopt import RunError
from mixopt import study as search
from mixopt.study.boundary import RESTORE
from tests.study.near import POPULATION, TRIALS, facts_of, plain, run_at

Lines = list[bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    """The lines of a journal of some trials."""
    folder = tmp_path_factory.mktemp("whole")
    run_at(folder, "random", trials=1 + POPULATION)
    return (folder / "study.journal").read_bytes().splitlines(keepends=True)


def plain_lines(lines: Lines) -> Lines:
    """The lines as an older version wrote them: without sums."""
    logs = [{key: value for key, value in json.loads(line).items() if key != "sum"} for line in lines]
    return [json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs]


def refused(folder: Path, content: bytes) -> str:
    """What is said of a journal, by a search that goes on and by a report alike."""
    journal = folder / "study.journal"
    journal.write_bytes(content)
    told = []
    for use in (lambda: run_at(folder, "random"), lambda: search.read_trials(journal)):
        with pytest.raises(RunError) as caught:
            use()
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert told[0].startswith(f"{journal}: line ")
    assert told[0].endswith(RESTORE)
    assert journal.read_bytes() == content
    return told[0].removeprefix(f"{journal}: ").removesuffix(f"; {RESTORE}")


def test_every_line_has_a_sum_and_optuna_reads_them(whole: Lines) -> None:
    assert all(len(json.loads(line)["sum"]) == 16 for line in whole)
    assert len({json.loads(line)["sum"] for line in whole}) == len(whole)


def flipped(lines: Lines, number: int) -> Lines:
    line = lines[number]
    place = next(each for each in range(len(line) // 3, len(line)) if 48 <= line[each] < 57)
    return [*lines[:number], line[:place] + bytes([line[place] + 1]) + line[place + 1 :], *lines[number + 1 :]]


def renamed(line: bytes) -> bytes:
    return line.replace(b'"worker_id":"', b'"worker_id":"x')


EDITS: dict[str, Callable[[Lines], tuple[Lines, int]]] = {
    "a digit of the first line": lambda lines: (flipped(lines, 0), 1),
    "a digit in the middle": lambda lines: (flipped(lines, 9), 10),
    "a digit of the last line": lambda lines: (flipped(lines, len(lines) - 1), len(lines)),
    "a line removed": lambda lines: ([*lines[:7], *lines[8:]], 8),
    "a line twice": lambda lines: ([*lines[:8], *lines[7:]], 9),
    "two lines exchanged": lambda lines: ([*lines[:7], lines[8], lines[7], *lines[9:]], 8),
    "the first removed": lambda lines: (lines[1:], 1),
    "a space more": lambda lines: ([*lines[:4], lines[4].replace(b",", b", ", 1), *lines[5:]], 5),
    "a sum taken off": lambda lines: ([*lines[:5], *plain_lines([renamed(lines[5])]), *lines[6:]], 7),
}


@pytest.mark.parametrize("edit", list(EDITS))
def test_what_was_changed_is_noticed(edit: str, whole: Lines, tmp_path: Path) -> None:
    lines, number = EDITS[edit](whole)
    told = refused(tmp_path, b"".join(lines))
    assert told.startswith(f"line {number}: expected the checksum ")
    assert "was changed, lost or moved" in told


def test_a_journal_without_sums_goes_on_with_them(whole: Lines, tmp_path: Path) -> None:
    for name in ("before", "whole"):
        (tmp_path / name).mkdir()
    journal = tmp_path / "before" / "study.journal"
    journal.write_bytes(b"".join(plain_lines(whole)))
    expected = facts_of(run_at(tmp_path / "whole", "random"))
    assert facts_of(run_at(tmp_path / "before", "random")) == expected
    assert facts_of(plain(tmp_path / "before")) == expected
    written = journal.read_bytes().splitlines(keepends=True)
    assert ["sum" in json.loads(line) for line in written] == [False] * len(whole) + [True] * (
        len(written) - len(whole)
    )
    # The first sum is one of all the lines before it too.
    told = refused(tmp_path, b"".join(flipped(written, 2)))
    assert told.startswith(f"line {len(whole) + 1}: expected the checksum")


def test_what_plain_optuna_adds_is_part_of_the_next_sum(tmp_path: Path) -> None:
    run_at(tmp_path, "random", trials=2)
    plain(tmp_path).set_user_attr("note", "mine 1")
    study = run_at(tmp_path, "random")
    assert study.user_attrs["note"] == "mine 1"
    content = (tmp_path / "study.journal").read_bytes()
    assert content.count(b"mine 1") == 1
    assert "expected the checksum" in refused(tmp_path, content.replace(b"mine 1", b"mine 2"))


def test_optuna_adds_to_an_open_study(tmp_path: Path) -> None:
    study = run_at(tmp_path, "random", trials=2)
    other = plain(tmp_path)
    other.set_user_attr("first", 1)
    study.set_user_attr("second", 2)
    other.set_user_attr("third", 3)
    assert list(study.user_attrs)[-3:] == ["first", "second", "third"]
    assert list(other.user_attrs)[-3:] == ["first", "second", "third"]
    assert len(search.read_trials(tmp_path / "study.journal")) == 2


def test_lines_that_are_lost_while_a_study_is_open_are_noticed(tmp_path: Path) -> None:
    study = run_at(tmp_path, "random", trials=2)
    journal = tmp_path / "study.journal"
    journal.write_bytes(journal.read_bytes()[:200])
    with pytest.raises(RunError, match=r"study\.journal: lines that were read are no longer there"):
        study.set_user_attr("note", 1)
    journal.unlink()
    with pytest.raises(RunError, match=r"study\.journal"):
        _ = study.trials


STUDY: dict[str, Any] = {"op_code": 0, "worker_id": "a", "study_name": "x", "directions": [2]}
TRIAL: dict[str, Any] = {"op_code": 4, "worker_id": "a", "study_id": 0, "datetime_start": "2026-01-01T00:00:00+00:00"}
TIME = "2026-01-01T00:00:01+00:00"
BOX = '{"name": "FloatDistribution", "attributes": {"step": null, "low": -1.0, "high": 1.0, "log": false}}'
WHOLE_TRIAL: dict[str, Any] = {
    **TRIAL,
    "state": 1,
    "value": 0.5,
    "values": None,
    "datetime_complete": TIME,
    "distributions": {"a": BOX},
    "params": {"a": 0.5},
    "user_attrs": {},
    "system_attrs": {},
    "intermediate_values": {"1": 0.5},
}
LATER: list[dict[str, Any]] = [
    {"op_code": 1, "worker_id": "a", "study_id": 0},
    {"op_code": 2, "worker_id": "a", "study_id": 0, "user_attr": {"key": 1}},
    {"op_code": 3, "worker_id": "a", "study_id": 0, "system_attr": {"key": 1}},
    TRIAL,
    WHOLE_TRIAL,
    {
        "op_code": 5,
        "worker_id": "a",
        "trial_id": 0,
        "param_name": "a",
        "param_value_internal": 0.5,
        "distribution": BOX,
    },
    {"op_code": 6, "worker_id": "a", "trial_id": 0, "state": 1, "values": [0.5], "datetime_complete": TIME},
    {"op_code": 6, "worker_id": "a", "trial_id": 0, "state": 0, "values": None, "datetime_start": TIME},
    {"op_code": 7, "worker_id": "a", "trial_id": 0, "step": 1, "intermediate_value": 0.5},
    {"op_code": 8, "worker_id": "a", "trial_id": 0, "user_attr": {"key": 1}},
    {"op_code": 9, "worker_id": "a", "trial_id": 0, "system_attr": {"key": 1}},
]
# What no value of a line may be, whatever it is a value of; the few that may be are listed.
WRONG: list[Any] = [True, "1", [None], {"a": []}, {}, -1, 10**30, 1.5, float("nan"), float("inf"), None, "", [1, 2]]
OPTIONAL = {"intermediate_values", "user_attrs", "system_attrs", "params", "distributions", "value", "values"}
RIGHT: dict[str, list[Any]] = {
    "worker_id": ["1", ""],
    "study_name": ["1", ""],
    "param_name": ["1", ""],
    "directions": [[1, 2]],
    "user_attr": [{"a": []}],
    "system_attr": [{"a": []}],
    "user_attrs": [{"a": []}, {}],
    "system_attrs": [{"a": []}, {}],
    "intermediate_values": [{}],
    "params": [{}],
    "datetime_start": [None],
    "intermediate_value": [-1, 1.5, float("nan"), float("inf")],
    "param_value_internal": [-1],
    "value": [-1, 1.5],
}


def written(*logs: Any) -> bytes:
    return b"".join(json.dumps(log).encode() + b"\n" for log in logs)


def allowed(log: dict[str, Any], key: str, value: Any) -> bool:
    if log["op_code"] == 6 and key == "datetime_start":
        return False
    if log["op_code"] == 6 and log["state"] == 0 and key == "values" and value is None:
        return True
    if key == "values" and log["op_code"] == 4:
        return value is None
    return any(repr(value) == repr(each) for each in RIGHT.get(key, []))


@pytest.mark.parametrize("log", [STUDY, *LATER], ids=lambda log: f"{log['op_code']} of {len(log)}")
def test_every_value_of_every_operation_has_a_type(log: dict[str, Any], tmp_path: Path) -> None:
    before = [] if log is STUDY else [STUDY, TRIAL]
    for key in log:
        for value in WRONG:
            if not allowed(log, key, value):
                told = refused(tmp_path, written(*before, {**log, key: value}))
                assert told.startswith(f"line {len(before) + 1}: "), (key, value)


@pytest.mark.parametrize("log", [STUDY, *LATER], ids=lambda log: f"{log['op_code']} of {len(log)}")
def test_optuna_itself_takes_these_and_every_key_is_needed_or_known(log: dict[str, Any], tmp_path: Path) -> None:
    before = [] if log is STUDY else [STUDY, TRIAL]
    journal = tmp_path / "study.journal"
    journal.write_bytes(written(*before, log))
    search.open_storage(journal, None)
    for key in log:
        if key not in OPTIONAL and not (log is WHOLE_TRIAL and key == "state"):
            refused(tmp_path, written(*before, {name: value for name, value in log.items() if name != key}))
    assert 'the key "more"' in refused(tmp_path, written(*before, {**log, "more": 1}))


TIMES = {"datetime_complete": TIME}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (written({"op_code": "x", "worker_id": "a"}), 'its op_code is "x"'),
        (written({**STUDY, "op_code": 10}), "its op_code is 10"),
        (written({**STUDY, "op_code": 99}), "its op_code is 99"),
        (written({"op_code": 0}), "it has no directions"),
        (b"[" * 100_000 + b"]" * 100_000 + b"\n", "nested more than 64 levels deep"),
        (b"null\n", "it is null"),
        (b"[]\n", "it is []"),
        (b"1e999\n", "it is Infinity"),
        (b"\n", "not JSON"),
        (b"nothing\n", "not JSON"),
        (b"\xff\xfe{}\n", "expected UTF-8 text"),
        (b"\0" * 512 + b"\n", "not JSON"),
        (b'{"op_code": ' + b"1" * 5000 + b"}\n", "not JSON"),
        (written({**STUDY, "sum": "0" * 15}), 'the key "sum"'),
        (written({**STUDY, "directions": [0]}), "its directions is [0]"),
        (written(TRIAL), "there is no study 0 before it"),
        (written(STUDY, {**LATER[9], "trial_id": 0}), "there is no trial 0 before it"),
        (written(STUDY, LATER[0], TRIAL, LATER[9]), "there is no trial 0 before it"),
        (written(STUDY, TRIAL, {**LATER[5], "param_value_internal": 1.5}), "outside its distribution"),
        (written(STUDY, TRIAL, {**LATER[5], "distribution": "{}"}), "its distribution is"),
        (written(STUDY, TRIAL, {**LATER[5], "distribution": "[" * 9999}), "its distribution is"),
        (written(STUDY, TRIAL, {**LATER[6], "values": None}), "completes a trial without a value"),
        (written(STUDY, TRIAL, {**LATER[6], "values": [1, 2]}), "2 values, where the study has 1"),
        (written(STUDY, TRIAL, {**LATER[7], "state": 3}), "it has no datetime_complete"),
        (written(STUDY, {**WHOLE_TRIAL, "values": [0.5]}), "both value and values"),
        (written(STUDY, {**WHOLE_TRIAL, "params": {"b": 0.5}}), "has no distribution"),
        (written(STUDY, {**WHOLE_TRIAL, "params": {"a": 2}}), "outside its distribution"),
        (written(STUDY, {**WHOLE_TRIAL, "intermediate_values": {"x": 1}}), "its intermediate_values"),
        (written(STUDY, {**TRIAL, "datetime_start": "0001-01-01T00:00:00"}), "its datetime_start"),
    ],
)
def test_what_is_no_operation_is_named(content: bytes, told: str, tmp_path: Path) -> None:
    assert told in refused(tmp_path, content)


def test_line_ends_of_another_system_are_the_same(whole: Lines, tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_bytes(b"".join(line.replace(b"\n", b"\r\n") for line in whole))
    assert len(run_at(tmp_path, "random").trials) == TRIALS
    assert len(search.read_trials(tmp_path / "study.journal")) == TRIALS


def test_an_empty_journal_is_a_new_one_and_no_report(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    journal.touch()
    with pytest.raises(RunError, match=r"study\.journal: expected the study of one run, found none"):
        search.read_trials(journal)
    assert len(run_at(tmp_path, "random", trials=2).trials) == 2


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.journal").mkdir()
    for use in (run_at, lambda folder: search.read_trials(folder / "study.journal")):
        with pytest.raises(RunError, match=r"study\.journal: "):
            use(tmp_path)


def test_a_torn_last_line_is_cut_off_or_passed_over(whole: Lines, tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    journal.write_bytes(b"".join(whole) + whole[-1][:30])
    assert len(search.read_trials(journal)) == 1 + POPULATION
    assert journal.read_bytes().endswith(whole[-1][:30])
    search.open_storage(journal, None)
    assert journal.read_bytes() == b"".join(whole)


def test_studies_that_optuna_passes_over_are_counted_as_it_does(tmp_path: Path) -> None:
    again = {**TRIAL, "study_id": 1}
    logs = [STUDY, STUDY, LATER[0], TRIAL, {**STUDY, "directions": [1]}, again, {**LATER[9], "trial_id": 0}]
    journal = tmp_path / "study.journal"
    journal.write_bytes(written(*logs))
    storage = search.open_storage(journal, None)
    (study,) = optuna.get_all_study_summaries(storage)
    assert (study.study_name, study.n_trials) == ("x", 1)
    assert optuna.load_study(study_name="x", storage=storage).trials[0].user_attrs == {"key": 1}


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_in_its_place_is_told_at_once(tmp_path: Path, kind: str) -> None:
    journal = tmp_path / "study.journal"
    if kind == "pipe":
        os.mkfifo(journal)
    else:
        journal.mkdir()
    with pytest.raises(RunError, match=r"study\.journal: a folder, pipe or device, .*choose another --out"):
        search.open_storage(journal, None)
