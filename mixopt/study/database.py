"""A study in a database: how Optuna reaches it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import finalize

from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import NullPool, create_engine, func, make_url, select

from mixopt.study.boundary import LIBPQ

# Without it a server that does not answer is waited for as long as the system cares to, minutes at least.
CONNECT_SECONDS = 5
# A machine that is gone, or a firewall that forgot the connection, is an error after half a minute, not a wait.
KEPT_ALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000}
# The lock that is held while tables are made, among a database's advisory locks, which are numbers.
_TABLES = int.from_bytes(b"mixopt")


def open_database(url: str) -> BaseStorage:
    """Optuna's storage of a URL.

    No heartbeats: they are for trials of many processes, and have those of a dead one told FAIL. Here one parent owns
    the study, and a resumed run finishes what it finds running.

    Args:
        url: An Optuna storage URL. What it says of libpq's options, or the environment, goes before what is set here.
    """
    if url.partition("://")[0] not in LIBPQ:
        return get_storage(url)
    options = _options(url)
    with _alone(url, options):
        # A connection that was cut while a mix was scored is noticed before it is used, and made again.
        storage = RDBStorage(url, {"pool_pre_ping": True, "connect_args": options})
    finalize(storage, storage.engine.dispose)  # a server has few connections to give
    return get_storage(storage)


@contextmanager
def _alone(url: str, options: dict[str, Any]) -> Iterator[None]:
    """Nobody else makes Optuna's tables in the block: of two who begin to at once, one would fail."""
    with create_engine(url, poolclass=NullPool, connect_args=options).begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(_TABLES)))
        yield


def _options(url: str) -> dict[str, Any]:
    # A database may declare no encoding, for which psycopg would give bytes in place of text.
    options = {"connect_timeout": CONNECT_SECONDS, "client_encoding": "utf8", **KEPT_ALIVE}
    given = set(make_url(url).query)
    if "PGCONNECT_TIMEOUT" in os.environ:
        given.add("connect_timeout")
    return {name: value for name, value in options.items() if name not in given}
