"""The zip archive that ``torch.save`` writes since torch 1.6, and the checksums in it, which torch does not look at."""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

import joblib

from mixopt.errors import CheckpointError
from mixopt.untrusted import open_regular, refusing
from mixopt.weights.checkpoints.strange import check_torchscript

# A record's own header: its signature, and the lengths of its name and of what follows that.
_HEADER = struct.Struct("<4s22xHH")
_SIGNATURE = b"PK\x03\x04"


def check(path: Path) -> bool:
    """Compare every record with its checksum, once per file.

    Returns:
        Whether the file is an archive whose records lie in it as they are, so that it can be mapped into memory.

    Raises:
        CheckpointError: A record is damaged.
    """
    with refusing(
        CheckpointError,
        str(path),
        found="damaged or truncated checkpoint",
        cure="copy it again from where it was trained",
    ):
        found = path.stat()
        return _check(path, (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))


@lru_cache(maxsize=4096)
def _check(path: Path, stamp: tuple[int, ...]) -> bool:
    with open_regular(path) as stream:
        if not zipfile.is_zipfile(stream):
            return False
        with zipfile.ZipFile(stream) as archive:
            records = archive.infolist()
            check_torchscript(path, records)
            if len({record.filename for record in records}) < len(records):
                raise ValueError("two records of one name")
            # What torch was told not to sum has 0 in all of them.
            summed = any(record.CRC for record in records)
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                if (bad := archive.testzip() if summed else None) is not None:
                    raise ValueError(f"the checksum of {bad} does not fit")
                return False
        if summed:
            whole = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            with whole as content, joblib.Parallel(n_jobs=-1, prefer="threads") as parallel:
                parallel(joblib.delayed(_check_record)(content, record) for record in records)
    return True


def _check_record(content: mmap.mmap, record: zipfile.ZipInfo) -> None:
    signature, name, extra = _HEADER.unpack_from(content, record.header_offset)
    start = record.header_offset + _HEADER.size + name + extra
    with memoryview(content) as view, view[start : start + record.file_size] as part:
        if signature != _SIGNATURE or len(part) != record.file_size or zlib.crc32(part) != record.CRC:
            raise ValueError(f"the checksum of {record.filename} does not fit")
