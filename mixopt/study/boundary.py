"""What a study's storage is called in messages, and what goes wrong in it told in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from mixopt.errors import RunError
from mixopt.files import ENVIRONMENT
from mixopt.untrusted import READER_ERRORS, reason_of

ANEW = "choose another --out: the scores come from the cache"
RESTORE = f"restore it from a copy, or {ANEW}"
_CHECK = f"check the URL and the database, and run the same command again, or {ANEW}"
_CONNECT = (
    "check that the server runs and has this user and database, and the password (in PGPASSWORD, ~/.pgpass or the "
    "URL); then run the same command again: no trial that was told is lost"
)
_INSTALL = "it comes with: pip install 'mixopt[postgresql]'"

_RAISED: tuple[type[Exception], ...] = (*READER_ERRORS, ImportError, SQLAlchemyError, optuna.exceptions.OptunaError)
# What Optuna itself raises over what a storage says.
_OF_STORAGE = (optuna.exceptions.StorageInternalError, optuna.exceptions.DuplicatedStudyError)
_PASSWORD = re.compile(r"(?<=://)([^:@/?]*):.*(?=@)")
_PASSWORD_OPTION = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)
# URLs of PostgreSQL through libpq; the driver of the first two is psycopg, which the extra of mixopt's installs.
LIBPQ = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")
_OF_THE_EXTRA = LIBPQ[:2]
# SQLSTATE's classes of connections that were not made, or were cut; where the driver gives none, there was none to ask.
_NO_CONNECTION = ("08", "28", "3D", "57")
_HIDDEN = "***"


@contextmanager
def storage_errors(journal: Path, url: str | None, what: str = "be read or written") -> Iterator[None]:
    """Turn what a study's storage raises in the block, at any depth, into one error that names it.

    A full disk or a missing permission under a journal passes as it is: the run folder has a message for these.

    Args:
        journal: The journal file, used where no URL is given.
        url: An Optuna storage URL.
        what: What cannot be done with it then.

    Raises:
        RunError: The storage cannot be opened, read or written.
    """
    try:
        yield
    except _RAISED as error:
        if not (isinstance(error, _OF_STORAGE) or _is_of_storage(error.__traceback__)):
            raise
        if url is None and isinstance(error, OSError) and error.errno in ENVIRONMENT:
            raise
        # Nothing that stands behind the error either: SQLAlchemy's own text has the URL and the values of statements.
        raise RunError(_told(error, journal, url, what)) from None


def name_of(storage: BaseStorage) -> str:
    """What a storage is called in messages: its journal, or its URL without the password."""
    if isinstance(storage, JournalStorage):
        return str(getattr(storage._backend, "_file_path", "the study's storage"))
    backend = getattr(storage, "_backend", storage)
    return shown(backend.url) if isinstance(backend, RDBStorage) else "the study's storage"


def shown(url: str) -> str:
    """The option that gives a storage URL, without its password."""
    return f"--storage {_masked(url)}"


def without_password(url: str) -> str:
    """A storage URL with neither password nor the options that hold one: what may be kept where others read it."""
    place, _, options = _PASSWORD.sub(r"\1", url).partition("?")
    kept = [each for each in options.split("&") if each and not _PASSWORD_OPTION.match(f"?{each}")]
    return place + ("?" + "&".join(kept) if kept else "")


def _masked(text: str) -> str:
    return _PASSWORD_OPTION.sub(rf"\g<1>{_HIDDEN}", _PASSWORD.sub(rf"\g<1>:{_HIDDEN}", text))


def _told(error: Exception, journal: Path, url: str | None, what: str) -> str:
    reason = reason_of(_plain(error))
    if url is None:
        return f"{journal}: the study's storage cannot {what} ({reason}); {RESTORE}"
    for secret in _secrets_of(url):
        reason = reason.replace(secret, _HIDDEN)
    return f"{shown(url)}: the study's storage cannot {what} ({_masked(reason)}); {_cure(error, url)}"


def _cure(error: Exception, url: str) -> str:
    kind = url.partition("://")[0]
    if isinstance(error, ImportError) and kind in _OF_THE_EXTRA:
        return _INSTALL
    if kind == "postgres":
        return "write postgresql:// for postgres://"
    raised = _raised_by(error)
    if kind in LIBPQ and isinstance(raised, (OperationalError, InterfaceError)):
        state = getattr(raised.orig, "sqlstate", None) or getattr(raised.orig, "pgcode", None)
        if state is None or state[:2] in _NO_CONNECTION:
            return _CONNECT
    return _CHECK


def _secrets_of(url: str) -> list[str]:
    """The passwords in a URL, longest first, so that none is left in part."""
    _, _, rest = url.partition("://")
    credentials, at, _ = rest.rpartition("@")
    _, _, password = credentials.partition(":")
    options = [found[0].partition("=")[2] for found in _PASSWORD_OPTION.finditer(url)]
    return sorted({each for each in [password if at else "", *options] if each}, key=len, reverse=True)


def _plain(error: BaseException) -> BaseException:
    """The driver's own error, where SQLAlchemy or Optuna wraps one."""
    error = _raised_by(error)
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    if isinstance(error, SQLAlchemyError):  # whose text ends with the address of a page on it
        return ValueError(*error.args[:1])
    if isinstance(error, ImportError) and isinstance(error.__cause__, ImportError):
        return ImportError(f"{error.__cause__}; install the database's driver")
    return error


def _raised_by(error: BaseException) -> BaseException:
    """SQLAlchemy's error, where Optuna wraps one."""
    while not isinstance(error, SQLAlchemyError) and isinstance(error.__cause__, SQLAlchemyError):
        error = error.__cause__
    return error


def _is_of_storage(traceback: TracebackType | None) -> bool:
    """Whether an error arose within Optuna's storages or on the way to one, not in code of ours that they called."""
    modules = []
    while traceback is not None:
        modules.append(str(traceback.tb_frame.f_globals.get("__name__")))
        traceback = traceback.tb_next
    places = (module for module in reversed(modules) if module.startswith(("optuna.storages", "mixopt.")))
    return next(places, "").startswith(("optuna.", "mixopt.study.database"))
