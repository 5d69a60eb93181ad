"""A PostgreSQL server of this machine's own installation; skipped with a reason where there is none."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

# Whom Debian's package makes; the server refuses to run as root.
SYSTEM_USER = "postgres"
PROGRAMS = ("initdb", "pg_ctl", "postgres")
USER, PASSWORD = "owner", "s3cret"
SETTINGS = {"listen_addresses": "127.0.0.1", "fsync": "off", "shared_buffers": "16MB", "max_connections": "40"}
SECONDS = 60
_databases = count()


@dataclass(frozen=True)
class Server:
    """A server on loopback, with its files in a folder of its own.

    Attributes:
        programs: The folder of its programs.
        folder: Its data, log and socket.
        port: Where it listens.
    """

    programs: Path
    folder: Path
    port: int

    def url(self, database: str, password: str | None = PASSWORD, user: str = USER) -> str:
        """A storage URL, with a password or without."""
        credentials = user if password is None else f"{user}:{password}"
        return f"postgresql://{credentials}@127.0.0.1:{self.port}/{database}"

    def new_database(self, more: str = "") -> str:
        """The name of an empty database."""
        name = f"studies{next(_databases)}"
        self.sql(f"create database {name} {more}")
        return name

    def sql(self, statement: str, database: str = "postgres") -> list[Any]:
        """The rows that a statement gives, of an owner of everything."""
        engine = sqlalchemy.create_engine(self.url(database), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                found = connection.execute(sqlalchemy.text(statement))
                return list(found) if found.returns_rows else []
        finally:
            engine.dispose()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = [f"-c {name}={value}" for name, value in SETTINGS.items()]
        options.append(f"-c port={self.port} -c unix_socket_directories={self.folder}")
        self.run("pg_ctl", "start", "-w", "-t", str(SECONDS), "-l", str(self.folder / "log"), "-o", " ".join(options))

    def stop(self) -> None:
        """End it at once, as a crash does: connections are cut, transactions that are not committed are lost."""
        self.run("pg_ctl", "stop", "-w", "-t", str(SECONDS), "-m", "immediate")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Whatever the block does to it, it runs afterwards."""
        try:
            yield
        finally:
            if not (self.folder / "data" / "postmaster.pid").exists():
                self.start()

    def run(self, program: str, *arguments: str) -> None:
        """Run one of its programs, as somebody who is not root."""
        environment = {**os.environ, "PGDATA": str(self.folder / "data"), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a pipe would stay open as long as the server
            stderr=subprocess.STDOUT,
            timeout=2 * SECONDS,
            user=SYSTEM_USER if _is_root() else None,
            group=SYSTEM_USER if _is_root() else None,
            extra_groups=[] if _is_root() else None,
        )
        if done.returncode:
            log = self.folder / "log"
            said = log.read_text(encoding="utf-8")[-500:] if log.exists() else ""
            raise OSError(f"{program} ended with {done.returncode}: {said}")


@contextmanager
def open_server() -> Iterator[Server]:
    """A new server, gone with its files at the end of the block."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = _installed()
    # Not under the folder of the tests, which nobody else may enter.
    folder = Path(tempfile.mkdtemp(prefix="mixopt-postgres-"))
    server = Server(programs, folder, _free_port())
    try:
        try:
            _prepare(server)
        except (OSError, LookupError, subprocess.SubprocessError) as error:
            pytest.skip(f"PostgreSQL cannot be started: {error}")
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _installed() -> Path:
    """The folder of the newest installation's programs."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda found: float(found.parent.name))
    on_path = [Path(found).parent for program in PROGRAMS[:1] if (found := shutil.which(program))]
    for folder in [*reversed(debian), *on_path]:
        if all((folder / program).exists() for program in PROGRAMS):
            return folder
    pytest.skip("no PostgreSQL server on this machine")


def _prepare(server: Server) -> None:
    password = server.folder / "password"
    password.write_text(PASSWORD, encoding="utf-8")
    if _is_root():
        for path in (server.folder, password):
            shutil.chown(path, SYSTEM_USER)
    quick = ("--no-sync", "--no-instructions")
    access = ("--auth=scram-sha-256", f"--username={USER}", f"--pwfile={password}")
    server.run("initdb", *quick, *access, "--encoding=UTF8", "--locale=C.UTF-8")
    server.start()


def _is_root() -> bool:
    return os.geteuid() == 0


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
