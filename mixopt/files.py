"""Files as such: natural order, whole-or-nothing writes."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mixopt.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# What the system says of a disk, a folder, a name or a permission, rather than of a mistake in the code.
ENVIRONMENT = frozenset(
    {
        errno.EACCES,
        errno.EBUSY,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EFBIG,
        errno.EIO,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMFILE,
        errno.ENAMETOOLONG,
        errno.ENFILE,
        errno.ENODEV,
        errno.ENOENT,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.ENXIO,
        errno.EPERM,
        errno.EROFS,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ETXTBSY,
    }
)
# Longer numbers in names are compared as text: Python makes no integers of them.
_LONGEST_NUMBER = 400
_LONGEST_NAME = 256
_LONGEST_PREFIX = 100
_TEMPORARY = ".mixopt.tmp"
# How often a lock on a file that is appended to is asked for, and how long to wait between, in seconds.
_TRIES, _PAUSE = 100, 0.001
_SHARED = stat.S_IWGRP | stat.S_IWOTH


# Where a cache keeps adapters that were merged into their base.
MERGED = "merged"


def is_plain_name(name: str) -> bool:
    """Whether a text names a file in some folder, and no other place."""
    return 0 < len(name) < _LONGEST_NAME and name not in (".", "..") and not set(name) & set("/\\:\0")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key of natural order: digits compare as numbers, so ``model_2`` comes before ``model_10``."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), part) if _is_number(part) else (1, 0, part) for part in parts)


def _is_number(part: str) -> bool:
    return part.isdecimal() and len(part) <= _LONGEST_NUMBER


@contextmanager
def atomic_write(path: Path, *, cache: Path | None = None) -> Iterator[BinaryIO]:
    """Open a binary file that appears at ``path`` whole, or not at all.

    Written beside the target, flushed to disk, then renamed over it. What a killed process leaves of it is removed by
    `remove_leftovers`.

    Args:
        path: The target; its folder is made.
        cache: The cache that the file belongs to: it is written in one folder there, and whoever may write to the cache
            may write to the folders that are made in it.

    Raises:
        RunError: The folder cannot be written or the disk is full; an older file at ``path`` is left as it was.
    """
    temporary: str | None = None
    try:
        make_folder(path.parent, cache)
        beside = path.parent if cache is None else scratch_of(cache)
        make_folder(beside, cache)
        descriptor, temporary = _temporary(path.name, beside)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.chmod(temporary, 0o666 & (~_umask() | (0 if cache is None else _shared_by(cache))))
            if fcntl is not None:
                os.replace(temporary, path)  # while its lock is held
        if fcntl is None:
            os.replace(temporary, path)  # Windows renames no open file
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(
            f"could not write {path}: {error.strerror or error}; free space or choose another place. "
            "Nothing already computed is lost: the same command continues from here"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def append(path: Path, content: bytes, *, cache: Path | None = None) -> None:
    """Append whole lines to a file that several processes append to; it is made where it is absent.

    What a killed process left of a line is ended first, so that it spoils no other. Nothing waits for the disk: a loss
    of power may take the last lines, the end of a process takes none.

    Args:
        path: The file; its folder is made.
        content: Lines, each with its end.
        cache: As for `atomic_write`.

    Raises:
        OSError: It cannot be written.
        ValueError: It is a folder, a pipe or a device.
    """
    make_folder(path.parent, cache)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, 0o666)
    with os.fdopen(descriptor, "r+b", buffering=0) as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("a folder, pipe or device, where a file is expected")
        _wait_for(descriptor)
        size = os.fstat(descriptor).st_size
        if not size and cache is not None and (shared := _shared_by(cache)):
            with suppress(OSError):  # another user made it meanwhile
                os.chmod(descriptor if os.chmod in os.supports_fd else path, 0o666 & (~_umask() | shared))
        if size:
            stream.seek(size - 1)
            content = content if stream.read(1) == b"\n" else b"\n" + content
        # One call: where locks do not hold, no other process writes in the midst of it.
        written = stream.write(content) or 0
        if written < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _wait_for(descriptor: int) -> None:
    """Lock a file until it is closed, if its holder does not keep it for long and the file system has locks."""
    for _ in range(_TRIES if fcntl is not None else 0):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)
        except OSError:
            return
        else:
            return


def scratch_of(cache: Path) -> Path:
    """The folder of a cache in which its files are written, before they are renamed to where they belong."""
    return cache / "tmp"


def make_folder(folder: Path, cache: Path | None = None) -> None:
    """Make a folder and those around it; what is made in a cache lets those write who may write to the cache.

    Raises:
        OSError: It cannot be made.
    """
    absent = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if cache is not None and (mode := _shared_by(cache)):
        for each in absent:
            if each.is_relative_to(cache) and each != cache:
                with suppress(OSError):  # another user made it meanwhile
                    os.chmod(each, each.stat().st_mode & 0o777 | mode | cache.stat().st_mode & 0o7000)


def _shared_by(folder: Path) -> int:
    """The permissions of group and others on a folder that one of them may write to; none on any other folder."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    return mode & 0o077 if mode & _SHARED else 0


def _temporary(name: str, folder: Path) -> tuple[int, str]:
    """A new file, locked as long as it is open: by this, others know that it is not a leftover."""
    while True:
        descriptor, path = tempfile.mkstemp(prefix=f".{name[:_LONGEST_PREFIX]}.", suffix=_TEMPORARY, dir=folder)
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)  # taken for a leftover before it was locked


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove what killed processes left of files; where locks do not tell which are gone, nothing is removed.

    Args:
        folder: Where they were written.
        names: The names that the files would have had; any by default.
    """
    if fcntl is None or folder.is_symlink():
        return
    patterns = [glob.escape(name[:_LONGEST_PREFIX]) for name in names] or ["*"]
    left = [path for name in patterns for path in folder.glob(f".{name}.*{_TEMPORARY}")]
    for path in left:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


def write_text(path: Path, text: str, *, cache: Path | None = None) -> None:
    """Write a text file whole or not at all (UTF-8); ``cache`` as for `atomic_write`."""
    with atomic_write(path, cache=cache) as stream:
        stream.write(_utf_8(text))


def write_content(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, a text as UTF-8."""
    with atomic_write(path) as stream:
        stream.write(_utf_8(content) if isinstance(content, str) else content)


def write_json(path: Path, value: Any, *, cache: Path | None = None) -> None:
    """Write a value as indented JSON, whole or not at all; ``cache`` as for `atomic_write`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=True) + "\n", cache=cache)


def _utf_8(text: str) -> bytes:
    """A text as UTF-8, also where it holds the name of a file that this locale, or nobody, can read."""
    with suppress(UnicodeError):
        content = text.encode("utf-8", "surrogateescape")
        content.decode("utf-8")
        return content
    return text.encode("utf-8", "replace")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename durable where the system allows a folder to be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
