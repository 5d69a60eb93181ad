"""What a source holds, as one hash of its files' names and bytes, looked up by stamps where these can be trusted.

A stamp holds the time at which the file system last saw a change, which nobody can set: content that was replaced under
the same size and time has another. Where a file changed too shortly before it was read, a change in the same tick of
the clock would not show, and its bytes are read again next time.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib

from mixopt.errors import DataError
from mixopt.files import write_json
from mixopt.untrusted import open_regular, refusing
from mixopt.untrusted.texts import check_checksum, read_json, with_checksum

# Longer than a tick of any file system's clock.
_SETTLED_SECONDS = 2.0
# Windows keeps no time of change.
_TELLS_CHANGES = os.name == "posix"


@dataclass(frozen=True)
class Content:
    """What a source holds.

    Attributes:
        hash: SHA-256 of its files' names and bytes.
        stamp: Of the files when they were read.
    """

    hash: str
    stamp: str


def content_of(path: Path, files: Sequence[Path], cache: Path) -> Content:
    """A hash of the names and bytes of a source's files.

    Args:
        path: The source; names are relative to it.
        files: Its files, in an order that follows from their names.
        cache: Where hashes are kept by stamps.

    Raises:
        DataError: A file cannot be read, or is no regular file.
    """
    stamp, settled = stamp_of(path, files)
    kept = (
        cache / "sources" / f"{hashlib.sha256(str(path.absolute()).encode(errors='surrogateescape')).hexdigest()}.json"
    )
    if (found := _kept(kept, stamp)) is not None:
        return Content(found, stamp)
    with joblib.Parallel(n_jobs=-1, prefer="threads") as parallel:
        hashes = parallel(joblib.delayed(_hash_of)(file) for file in files)
    digest = hashlib.sha256()
    for file, each in zip(files, hashes, strict=True):
        digest.update(f"{_name(path, file)}\0{each}\n".encode(errors="surrogateescape"))
    content = digest.hexdigest()
    check_unchanged(path, files, stamp)
    if settled and _TELLS_CHANGES:
        write_json(kept, with_checksum({"stamp": stamp, "content": content}), cache=cache)
    return Content(content, stamp)


def stamp_of(path: Path, files: Sequence[Path]) -> tuple[str, bool]:
    """A hash of names, sizes and times of files, and whether all of them changed long enough ago to rely on it.

    Raises:
        DataError: A file is not there, or is no regular file.
    """
    digest, latest = hashlib.sha256(), 0
    for file in files:
        with refusing(DataError, str(file), found="not a file", cure="remove it"):
            if file.is_symlink() and not file.exists():
                raise DataError(f"{file}: a link that leads nowhere; correct or remove it")
            found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{file}: expected a file, found a folder, pipe or device; remove it")
        parts = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)
        digest.update(f"{_name(path, file)}\0{parts}\n".encode(errors="surrogateescape"))
        latest = max(latest, found.st_ctime_ns, found.st_mtime_ns)
    return digest.hexdigest(), latest < (time.time() - _SETTLED_SECONDS) * 1e9


def check_unchanged(path: Path, files: Sequence[Path], stamp: str) -> None:
    """Compare a source's files with their stamp from before they were read.

    Raises:
        DataError: They have changed.
    """
    if stamp_of(path, files)[0] != stamp:
        raise DataError(f"{path}: it changed while it was read; run the same command again once it is complete")


def _name(path: Path, file: Path) -> str:
    if file == path:
        return ""
    return file.relative_to(path if path.is_dir() else path.parent).as_posix()


def _kept(path: Path, stamp: str) -> str | None:
    """The hash that was kept for a stamp; a damaged note of it is as good as none, since the files are read then."""
    if not path.is_file():
        return None
    try:
        values = read_json(path, DataError)
        with refusing(DataError, str(path), found="damaged", cure="it is made anew"):
            check_checksum(values)
            return str(values["content"]) if values["stamp"] == stamp else None
    except DataError:
        return None


def _hash_of(file: Path) -> str:
    with refusing(DataError, str(file), found="not readable", cure="remove it"), open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # a buffered reader
