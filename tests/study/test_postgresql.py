"""A study in PostgreSQL: the same search as in a journal, for many who watch, whatever becomes of the server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import numpy as np
import optuna
import pytest
from optuna.storages import RDBStorage

import mixopt
from mixopt import RunError
from mixopt import study as search
from mixopt.study import database
from mixopt.study.boundary import shown
from tests.postgres import PASSWORD, USER, Server
from tests.study import killing
from tests.study.killing import Killed, facts_of_trials, kill_at_statement, model_hash
from tests.study.near import GROUPS, IDENTITY, SPACE, TRIALS, Near, facts_of, run_at

WATCHER = "watcher"


@pytest.fixture
def url(server: Server) -> str:
    """An empty database."""
    return server.url(server.new_database())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """What the search without models finds, in a journal."""
    return facts_of(run_at(tmp_path_factory.mktemp("near")))


@pytest.fixture(scope="module")
def options(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of searches with models, which share a cache."""
    plain = {"space": "simplex", "groups": "2", "start": "greedy", "confirm": 0, "race": "off"}
    kept = {"cache": tmp_path_factory.mktemp("cache"), "device": "cpu"}
    return {"models": clip_pool_template, "trials": 14, "sampler": "cmaes", **plain, **kept}


@pytest.fixture(scope="module")
def journaled(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a search in a journal."""
    return mixopt.search(**options, out=tmp_path_factory.mktemp("journaled") / "run").folder


def trials_of(url: str, name: str = "run") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=search.open_storage(Path("none"), url)).trials


def check_equal(run: Path, url: str, journaled: Path) -> None:
    assert facts_of_trials(trials_of(url)) == killing.facts_of(journaled)
    assert model_hash(run) == model_hash(journaled)
    assert (run / "recipe.json").read_bytes() == (journaled / "recipe.json").read_bytes()


def test_a_search_equals_that_of_a_journal(options: dict[str, Any], journaled: Path, url: str, tmp_path: Path) -> None:
    done = mixopt.search(**options, out=tmp_path / "run", storage=url)
    check_equal(done.folder, url, journaled)
    assert not (done.folder / "study.journal").exists()


def test_a_database_that_declares_no_encoding_does_as_well(
    server: Server, undisturbed: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    plain = server.url(server.new_database("encoding 'SQL_ASCII' template template0"))
    assert facts_of(run_at(tmp_path, url=plain)) == undisturbed


def test_no_heartbeats(server: Server, url: str, tmp_path: Path) -> None:
    storage: Any = run_at(tmp_path, url=url)._storage
    assert storage.get_heartbeat_interval() is None
    assert server.sql("select * from trial_heartbeats", url.rpartition("/")[2]) == []


# Interrupted


@pytest.mark.parametrize("statements", [(1, 3), (25, 60), (100, 7)])
def test_killed_twice_equals_uninterrupted(
    statements: tuple[int, int], undisturbed: list[tuple[Any, ...]], url: str, tmp_path: Path
) -> None:
    for number in statements:
        with kill_at_statement(number), pytest.raises(Killed):
            run_at(tmp_path, url=url)
    assert facts_of(run_at(tmp_path, url=url)) == undisturbed


@pytest.fixture(scope="module")
def killed(options: dict[str, Any], server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run folder and database of a command without a password in its URL, killed in the middle and resumed with one."""
    folder, name = tmp_path_factory.mktemp("killed") / "run", server.new_database()
    search.open_storage(folder, server.url(name))  # so that there are tables to look at
    given = {**options, "out": folder, "storage": server.url(name, password=None), "page": "off"}
    command = [sys.executable, "-m", "mixopt", "search", *(f"--{key}={value}" for key, value in given.items())]
    told = "select count(*) from trials where state = 'COMPLETE'"
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PGPASSWORD": PASSWORD}
    ) as process:
        while process.poll() is None and server.sql(told, name)[0][0] < 3:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert 3 <= server.sql(told, name)[0][0] < given["trials"]
    mixopt.search(**{**given, "storage": server.url(name)})
    return folder, name


def test_kill_9_in_the_middle_of_a_command(killed: tuple[Path, str], journaled: Path, server: Server) -> None:
    folder, name = killed
    check_equal(folder, server.url(name), journaled)


def test_a_password_is_kept_nowhere(killed: tuple[Path, str], options: dict[str, Any], server: Server) -> None:
    folder, name = killed
    kept = f'storage = "{server.url(name, password=None)}"'
    assert kept in (folder / "run.toml").read_text(encoding="utf-8").splitlines()
    for path in (path for path in [*folder.rglob("*"), *options["cache"].rglob("*")] if path.is_file()):
        assert PASSWORD.encode() not in path.read_bytes(), path
    for table in ("study_user_attributes", "study_system_attributes", "trial_user_attributes"):
        assert server.sql(f"select * from {table} where value_json like '%{PASSWORD}%'", name) == []
    with pytest.raises(RunError, match=r"no password supplied.*in PGPASSWORD"):
        mixopt.search(study=folder / "run.toml")


def refused(url: str, use: Callable[[], Any]) -> str:
    """What an error says, checked for what it must say of every one, and how soon."""
    begun = time.monotonic()
    with pytest.raises(RunError) as caught:
        use()
    assert time.monotonic() - begun < 2 * database.CONNECT_SECONDS
    told = str(caught.value)
    assert told.startswith(f"{shown(url)}: the study's storage cannot be ")
    assert told.endswith("; then run the same command again: no trial that was told is lost")
    assert PASSWORD not in told
    assert "\n" not in told
    assert caught.value.__cause__ is None  # which would be shown with the URL in it
    return told


def at_call(number: int, do: Callable[[], Any]) -> Near:
    """An objective in the middle of whose n-th score something happens."""

    def happen(call: int) -> bool:
        if call == number:
            do()
        return False

    return Near(happen)


@pytest.mark.parametrize("call", [0, 7])
def test_a_server_that_goes_away_is_named_and_nothing_is_lost(
    call: int,
    server: Server,
    undisturbed: list[tuple[Any, ...]],
    url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with server.running():
        told = refused(url, lambda: run_at(tmp_path, objective=at_call(call, server.stop), url=url))
    assert "cannot be read or written (" in told
    assert not caplog.records  # which would be shown beside the error, with a traceback
    resumed = Near()
    assert facts_of(run_at(tmp_path, objective=resumed, url=url)) == undisturbed
    assert resumed.calls == TRIALS - call


def test_a_server_that_is_started_anew_between_trials_is_not_noticed(
    server: Server, undisturbed: list[tuple[Any, ...]], url: str, tmp_path: Path
) -> None:
    def restart() -> None:
        server.stop()
        server.start()

    with server.running():
        assert facts_of(run_at(tmp_path, objective=at_call(6, restart), url=url)) == undisturbed


# Refused


@contextmanager
def silent() -> Iterator[int]:
    """The port of somebody who takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_server_that_does_not_answer(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    monkeypatch.setattr(database, "CONNECT_SECONDS", 2)  # libpq takes no less
    with silent() as port:
        url = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/x"
        told = refused(url, lambda: mixopt.search(**options, out=tmp_path / "run", storage=url))
    assert "timeout" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda server, name: server.url(name, password="wr0ng"), "password authentication failed"),
        (lambda server, name: server.url(name, password=None), "no password supplied"),
        (lambda server, name: server.url(name, user="nobody"), "password authentication failed"),
        (lambda server, name: server.url("nothing"), 'database "nothing" does not exist'),
        (lambda server, name: f"postgresql://{USER}:{PASSWORD}@127.0.0.1:1/{name}", "Connection refused"),
        (lambda server, name: f"postgresql://{USER}:{PASSWORD}@nowhere.invalid/{name}", "failed to resolve host"),
    ],
)
def test_what_cannot_be_connected_to(
    change: Callable[[Server, str], str], told: str, server: Server, tmp_path: Path
) -> None:
    url = change(server, "postgres")
    said = refused(url, lambda: run_at(tmp_path, url=url))
    assert told in said
    assert "cannot be opened" in said
    assert "wr0ng" not in said


@pytest.mark.parametrize("kind", ["postgresql", "postgresql+psycopg"])
def test_a_missing_driver_is_named_with_its_command(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(RunError, match=r"psycopg.*; it comes with: pip install 'mixopt\[postgresql\]'$") as caught:
        run_at(tmp_path, url=f"{kind}://{USER}:{PASSWORD}@127.0.0.1/x")
    assert PASSWORD not in str(caught.value)


def test_a_short_name_of_the_kind_is_told_how_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"; write postgresql:// for postgres://$"):
        run_at(tmp_path, url=f"postgres://{USER}:{PASSWORD}@127.0.0.1/x")


# Several people


def test_several_people_watch_a_study(
    server: Server,
    undisturbed: list[tuple[Any, ...]],
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    # What it shows it otherwise reads again after two seconds.
    monkeypatch.setattr("optuna_dashboard._storage.timedelta", lambda **_: timedelta())
    name = url.rpartition("/")[2]
    search.open_storage(tmp_path / "none", url)
    server.sql(f"create role {WATCHER} login password '{PASSWORD}'")
    server.sql(f"grant select on all tables in schema public to {WATCHER}", name)
    reads = [0, 0]
    seen: list[list[str]] = [[], []]
    over = threading.Event()

    def watch(person: int) -> None:
        # As the dashboard opens a URL.
        watched = server.url(name, user=WATCHER)
        storage = RDBStorage(watched, skip_compatibility_check=True, skip_table_creation=True)
        watching = dashboard.wsgi(storage)
        while not over.is_set():
            listed = get(watching, "/api/studies")["study_summaries"]
            if listed:
                shown = get(watching, f"/api/studies/{listed[0]['study_id']}")
                seen[person] = [trial["state"] for trial in shown["trials"]]
            reads[person] += 1
        storage.engine.dispose()

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 30
        while min(states.count("Complete") for states in seen) < count:
            assert time.monotonic() < deadline, seen
            time.sleep(0.01)

    with ThreadPoolExecutor(2) as people:
        watching = [people.submit(watch, person) for person in range(2)]
        try:
            study = run_at(tmp_path, objective=at_call(6, lambda: wait_for(1)), url=url)
            wait_for(TRIALS)
        finally:
            over.set()
        for each in watching:
            each.result()
    assert facts_of(study) == undisturbed
    assert min(reads) > 3


def get(application: Any, path: str) -> Any:
    """What a server answers to a browser."""
    environment: dict[str, Any] = {"PATH_INFO": path}
    setup_testing_defaults(environment)
    status: list[str] = []
    answer = b"".join(application(environment, lambda said, *_: status.append(said)))
    assert status == ["200 OK"], answer
    return json.loads(answer)


def test_runs_of_other_names_begin_at_once_in_an_empty_database(
    undisturbed: list[tuple[Any, ...]], url: str, tmp_path: Path
) -> None:
    ready = threading.Barrier(3)

    def run(name: str) -> list[tuple[Any, ...]]:
        (tmp_path / name).mkdir()
        ready.wait()
        return facts_of(run_at(tmp_path / name, url=url, name=name))

    with ThreadPoolExecutor(3) as people:
        found = list(people.map(run, ("one", "two", "three")))
    assert found == [undisturbed] * 3


def test_one_name_belongs_to_one_run_folder(url: str, undisturbed: list[tuple[Any, ...]], tmp_path: Path) -> None:
    first, second = (IDENTITY | {"run folder": f"/home/{name}/x"} for name in ("one", "two"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.study.near.IDENTITY", first)
        run_at(tmp_path, url=url)
        patch.setattr("tests.study.near.IDENTITY", second)
        with pytest.raises(RunError) as caught:
            run_at(tmp_path, url=url)
        assert str(caught.value) == (
            f"{shown(url)}: its study 'x' belongs to the run folder /home/one/x, this is /home/two/x; "
            "a study is named by the last part of --out: choose another one, or go on in /home/one/x"
        )
        assert facts_of(run_at(tmp_path, url=url, name="other")) == undisturbed
        patch.setattr("tests.study.near.IDENTITY", first)
        assert facts_of(run_at(tmp_path, url=url)) == undisturbed


def test_a_study_begun_by_another_while_the_start_was_found(url: str, tmp_path: Path) -> None:
    studies = [
        search.open_study(search.open_storage(tmp_path / "none", url), "x", "maximize", metric="accuracy")
        for _ in range(2)
    ]
    identities = [{**IDENTITY, "run folder": f"/home/{name}/run"} for name in ("one", "two")]
    for study, identity in zip(studies, identities, strict=True):
        search.check_identity(study, identity, tmp_path, ["maximize"])
    assert search.keep_space(studies[0], identities[0], lambda: SPACE).to_mix(np.zeros(SPACE.dims)).groups == GROUPS
    with pytest.raises(RunError, match="belongs to the run folder /home/one/run, this is /home/two/run"):
        search.keep_space(studies[1], identities[1], lambda: SPACE)
    search.keep_space(studies[0], identities[0], lambda: SPACE)
