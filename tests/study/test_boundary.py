"""What a storage raises, at opening, reading or mid-run is one line that names it, without passwords."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage, RDBStorage
from sqlalchemy.exc import OperationalError

from mixopt import RunError
from mixopt import study as search
from mixopt.study.boundary import ANEW, name_of, shown, without_password
from tests.study.near import TRIALS, Near, run_at


def refused(folder: Path, url: str, use: Callable[[], Any] | None = None) -> str:
    with pytest.raises(RunError) as caught:
        use() if use else run_at(folder, "random", url=url)
    told = str(caught.value)
    assert told.startswith(f"{shown(url)}: the study's storage cannot be ")
    assert told.endswith(f"; check the URL and the database, and run the same command again, or {ANEW}")
    for page in ("\n", "sqlalche.me", "Background", "SELECT", "INSERT", "secret"):
        assert page not in told
    assert caught.value.__cause__ is None  # which would be shown with the URL in it
    return told


def database(folder: Path) -> tuple[Path, str]:
    path = folder / "study.db"
    return path, f"sqlite:///{path}"


def text(path: Path) -> None:
    path.write_text("not a database at all, but long enough for a header " * 20)


def truncated(path: Path) -> None:
    run_at(path.parent, "random", trials=2, url=f"sqlite:///{path}")
    path.write_bytes(path.read_bytes()[:9000])


def of_another_version(path: Path) -> None:
    RDBStorage(f"sqlite:///{path}")
    with sqlite3.connect(path) as opened:
        opened.execute("update version_info set schema_version = 3")
        opened.execute("update alembic_version set version_num = 'v0.9.0.a'")
    opened.close()


def of_another_use(path: Path) -> None:
    with sqlite3.connect(path) as opened:
        opened.execute("create table studies (mine text)")
    opened.close()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (text, "file is not a database"),
        (truncated, "database disk image is malformed"),
        (of_another_version, "no longer compatible with the table schema"),
        (of_another_use, "no such column"),
        (Path.mkdir, "unable to open database file"),
    ],
)
def test_what_is_no_database_of_optuna_is_named(make: Callable[[Path], Any], told: str, tmp_path: Path) -> None:
    path, url = database(tmp_path)
    make(path)
    assert told in refused(tmp_path, url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("foo://bar", "Can't load plugin: sqlalchemy.dialects:foo"),
        ("redis://localhost", "RedisStorage is removed"),
        ("nothing", "Could not parse SQLAlchemy URL"),
        ("", "Could not parse SQLAlchemy URL"),
        ("sqlite:////nowhere/at/all/study.db", "unable to open database file"),
        ("mysql+nothing://me:secret@localhost/x", "Can't load plugin"),
        ("oracle://me:secret@localhost/x", "install the database's driver"),
        ("oracle+cx_oracle://me:a:secret@b@localhost/x?password=secret", "***"),
    ],
)
def test_urls_that_cannot_be_used_are_named_without_their_passwords(url: str, told: str, tmp_path: Path) -> None:
    assert told in refused(tmp_path, url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("postgresql://me:secret@host:5432/x", "postgresql://me:***@host:5432/x"),
        ("postgresql://me:se:cr@et@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("mysql://host/x?user=me&password=secret&more=1", "mysql://host/x?user=me&password=***&more=1"),
    ],
)
def test_a_password_is_not_shown(url: str, told: str) -> None:
    assert shown(url) == f"--storage {told}"


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("sqlite:////home/a@b:c/study.db", "sqlite:////home/a@b:c/study.db"),
        ("postgresql://host/x", "postgresql://host/x"),
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("postgresql://me:secret@host:5432/x", "postgresql://me@host:5432/x"),
        ("postgresql://me:se:cr@et@host/x?sslmode=require", "postgresql://me@host/x?sslmode=require"),
        ("mysql://host/x?user=me&password=secret&more=1", "mysql://host/x?user=me&more=1"),
        ("postgresql:///x?password=secret&host=/tmp", "postgresql:///x?host=/tmp"),
        ("postgresql:///x?sslpassword=secret", "postgresql:///x"),
    ],
)
def test_what_is_kept_of_a_url_has_no_password(url: str, kept: str) -> None:
    assert without_password(url) == kept


def test_a_password_in_what_a_driver_says_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "mysql://me:secret@host/x"

    def fail(*_: Any, **__: Any) -> None:
        raise OperationalError("SELECT 1", {}, Exception(f"no route with 'secret' to {url}\nmore"))

    monkeypatch.setattr(RDBStorage, "_fill_storage_url_template", fail)
    assert "(no route with '***' to mysql://me:***@host/x)" in refused(tmp_path, url)


def test_storages_have_names(tmp_path: Path) -> None:
    path, url = database(tmp_path)
    journal = tmp_path / "study.journal"
    assert name_of(search.open_storage(journal, None)) == str(journal)
    assert name_of(search.open_storage(journal, url)) == f"--storage {url}"
    assert path.exists()
    assert name_of(InMemoryStorage()) == "the study's storage"


def lock(path: Path) -> sqlite3.Connection:
    held = sqlite3.connect(path)
    held.execute("begin exclusive")
    return held


def test_a_locked_database_is_named_and_goes_on_when_free(tmp_path: Path) -> None:
    path, url = database(tmp_path)
    short = f"{url}?timeout=0.05"
    run_at(tmp_path, "random", trials=2, url=url)
    held = lock(path)
    assert "database is locked" in refused(tmp_path, short)
    held.close()
    assert len(run_at(tmp_path, "random", url=short).trials) == TRIALS


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("drop table trial_params", "no such table: trial_params"),
        ("drop table trial_user_attributes", "no such table: trial_user_attributes"),
        ("delete from trials", "Record does not exist"),
    ],
)
def test_what_goes_wrong_in_the_middle_of_a_run_is_named(statement: str, told: str, tmp_path: Path) -> None:
    path, url = database(tmp_path)

    def spoil(call: int) -> bool:
        if call == 2:
            with sqlite3.connect(path) as opened:
                opened.execute(statement)
            opened.close()
        return False

    found = refused(tmp_path, url, lambda: run_at(tmp_path, "random", Near(spoil), url=url))
    assert told in found


def test_a_database_that_locks_in_the_middle_of_a_run_is_named_and_goes_on(tmp_path: Path) -> None:
    path, url = database(tmp_path)
    short = f"{url}?timeout=0.05"
    held: list[sqlite3.Connection] = []

    def spoil(call: int) -> bool:
        if call == 2:
            held.append(lock(path))
        return False

    assert "database is locked" in refused(tmp_path, short, lambda: run_at(tmp_path, "random", Near(spoil), url=short))
    held[0].close()
    assert len(run_at(tmp_path, "random", url=short).trials) == TRIALS


@pytest.mark.parametrize("kind", [TypeError, ValueError, KeyError, RuntimeError, ImportError, AssertionError])
def test_our_own_mistakes_are_not_the_storages(kind: type[Exception], tmp_path: Path) -> None:
    def fail(call: int) -> bool:
        raise kind("a mistake")

    with pytest.raises(kind, match="a mistake"):
        run_at(tmp_path, "random", Near(fail), url=database(tmp_path)[1])


@pytest.mark.parametrize("kind", [TypeError, ValueError, RuntimeError])
def test_a_samplers_mistakes_are_not_the_storages(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise kind("a mistake")

    monkeypatch.setattr(RandomSampler, "sample_independent", fail)
    with pytest.raises(kind, match="a mistake"):
        run_at(tmp_path, "random", url=database(tmp_path)[1])


@pytest.mark.parametrize(("number", "passes"), [(errno.ENOSPC, True), (errno.EACCES, True), (errno.EBADF, False)])
def test_a_full_disk_under_a_journal_is_told_by_the_run_folder(
    number: int, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, "of the system")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError if passes else RunError, match="of the system"):
        run_at(tmp_path, "random")
    assert not list(tmp_path.glob("*.lock*"))
