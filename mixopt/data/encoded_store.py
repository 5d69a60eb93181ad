"""The decoded cache: the encoded samples of a split on disk, memory-mapped from there."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, BinaryIO

import joblib
import numpy as np
from numpy.typing import NDArray

from mixopt.data.encode import Arrays
from mixopt.files import atomic_write
from mixopt.listener import Listener
from mixopt.untrusted import READER_ERRORS, open_regular, reason_of
from mixopt.untrusted.arrays import packed, unpacked
from mixopt.values.samples import LENGTH, sample_digest

CACHE_VERSION = 6
# What stands beside the arrays: labels, digests, and a text about them all.
INDEX = "labels.npz"
# Bytes of a file under one checksum: several are compared side by side, and a chunk is in the processor's caches.
CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded copy.

    Attributes:
        arrays: As in `mixopt.Samples`.
        labels: ``[n]`` int64, in the source's own numbering.
        digests: ``[n, 16]`` uint8.
        classes: The name of each label, where the source knows them.
        notices: What was done to the records on the way, for the user.
        skipped: What is told of records that were left out; empty where none was.
    """

    arrays: Arrays
    labels: NDArray[np.int64]
    digests: NDArray[np.uint8]
    classes: tuple[str, ...] | None
    notices: tuple[str, ...]
    skipped: str


def decoded_folder(cache: Path, content: str) -> Path:
    """Where the decoded copy of a split lies that follows from what it depends on."""
    return cache / "splits" / hashlib.sha256(f"{CACHE_VERSION}|{content}".encode()).hexdigest()[:32]


class _Summed:
    """A file that is written, and a checksum of each chunk of it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest, self._room = _new_digest(), CHUNK
        self._sums: list[str] = []

    def write(self, content: bytes) -> int:
        """Write bytes."""
        rest = memoryview(content)
        while len(rest):
            part, rest = rest[: self._room], rest[self._room :]
            self._digest.update(part)
            self._room -= len(part)
            if not self._room:
                self._end_chunk()
        return self._stream.write(content)

    def sums(self) -> list[str]:
        """The checksums of all that was written."""
        if self._room < CHUNK:
            self._end_chunk()
        return self._sums

    def _end_chunk(self) -> None:
        self._sums.append(self._digest.hexdigest())
        self._digest, self._room = _new_digest(), CHUNK


class _Fixed:
    """Rows of one shape, written as they come."""

    def __init__(self, stream: _Summed, count: int, row: NDArray[Any]) -> None:
        self._stream = stream
        _write_header(stream, row.dtype, (count, *row.shape))

    def add(self, row: NDArray[Any]) -> None:
        """Write a row."""
        self._stream.write(row.tobytes())

    def close(self) -> None:
        """Nothing is left to do."""


class _Padded:
    """Rows of any length: how long the longest is shows at the end, so that till then they wait in a nameless file."""

    def __init__(self, stream: _Summed, stream_of_lengths: _Summed, waiting: IO[bytes], dtype: np.dtype[Any]) -> None:
        self._stream, self._stream_of_lengths, self._waiting = stream, stream_of_lengths, waiting
        self._dtype = dtype
        self._lengths: list[int] = []

    def add(self, row: NDArray[Any]) -> None:
        """Let a row wait."""
        self._waiting.write(row.tobytes())
        self._lengths.append(len(row))

    def close(self) -> None:
        """Write all rows, padded, and their lengths."""
        width = max(1, *self._lengths)
        _write_header(self._stream, self._dtype, (len(self._lengths), width))
        self._waiting.seek(0)
        for length in self._lengths:
            used = length * self._dtype.itemsize
            self._stream.write(self._waiting.read(used).ljust(width * self._dtype.itemsize, b"\0"))
        lengths = np.array(self._lengths, dtype=np.int64)
        _write_header(self._stream_of_lengths, lengths.dtype, lengths.shape)
        self._stream_of_lengths.write(lengths.tobytes())


def write_decoded(
    folder: Path,
    samples: Iterable[Arrays],
    labels: NDArray[np.int64],
    classes: Sequence[str] | None,
    notices: Callable[[], Sequence[str]] = tuple,
    *,
    skipped: str = "",
    cache: Path | None = None,
) -> None:
    """Keep encoded samples, and hash each of them.

    Args:
        folder: From `decoded_folder`.
        samples: Name to array each, at least one, in evaluation order, all of the form of the first.
        labels: As in `Decoded`, like what follows.
        classes: The name of each label.
        notices: Asked once all samples are written.
        skipped: What is told of records that were left out.
        cache: The cache that the folder lies in.
    """
    stream = iter(samples)
    first = next(stream)
    padded = [name for name, row in first.items() if row.ndim == 1]
    digests = np.empty((len(labels), 16), dtype=np.uint8)
    summed: dict[str, _Summed] = {}
    # Written as streams: where a disk is full, a write says so, while a memory map would kill the process.
    with ExitStack() as files:

        def opened(name: str) -> _Summed:
            summed[name] = _Summed(files.enter_context(atomic_write(folder / f"{name}.npy", cache=cache)))
            return summed[name]

        writers: dict[str, _Fixed | _Padded] = {}
        for name, row in first.items():
            if name in padded:
                kept, lengths = opened(name), opened(name + LENGTH)
                waiting = files.enter_context(tempfile.TemporaryFile(dir=folder))
                writers[name] = _Padded(kept, lengths, waiting, row.dtype)
            else:
                writers[name] = _Fixed(opened(name), len(labels), row)
        for place, arrays in enumerate(chain([first], stream)):
            for name, writer in writers.items():
                writer.add(arrays[name])
            digests[place] = np.frombuffer(sample_digest(arrays), dtype=np.uint8)
        for writer in writers.values():
            writer.close()
    # The arrays of the samples first, then the lengths of those that are padded.
    sums = {name: summed[name].sums() for name in [*first, *(name + LENGTH for name in padded)]}
    told = {"notices": list(notices()), "skipped": skipped}
    meta = json.dumps({"key": folder.name, "sums": sums, "classes": classes, **told})
    with atomic_write(folder / INDEX, cache=cache) as stored:
        stored.write(packed({"digests": digests, "labels": labels, "meta": np.array(meta)}))


def load_decoded(folder: Path, listener: Listener | None = None) -> Decoded | None:
    """The decoded copy, every byte compared with its checksum.

    Args:
        folder: From `decoded_folder`.
        listener: Told about a damaged copy.

    Returns:
        None where there is none, or it is damaged: it is then decoded anew.
    """
    if not (folder / INDEX).exists():
        return None
    try:
        return _load(folder)
    except READER_ERRORS as error:
        (listener or Listener()).warn(f"damaged decoded copy {folder} ({reason_of(error)}): decoded again")
        return None


def _load(folder: Path) -> Decoded:
    index = unpacked(folder / INDEX)
    digests, labels, meta = index["digests"], index["labels"], json.loads(str(index["meta"]))
    if meta["key"] != folder.name:
        raise ValueError("a copy of another split")
    jobs = [
        (folder / f"{name}.npy", place, expected)
        for name, sums in meta["sums"].items()
        for place, expected in enumerate(sums)
    ]
    with joblib.Parallel(n_jobs=-1, prefer="threads") as parallel:
        parallel(joblib.delayed(_check_chunk)(*job) for job in jobs)
    arrays = {}
    for name, sums in meta["sums"].items():
        if (folder / f"{name}.npy").stat().st_size > len(sums) * CHUNK:
            raise ValueError(f"{name}.npy is longer than it was")
        arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    classes = None if meta["classes"] is None else tuple(meta["classes"])
    if {len(each) for each in (*arrays.values(), digests)} != {len(labels)}:
        raise ValueError("its arrays are of different lengths")
    return Decoded(
        arrays, labels.astype(np.int64), digests, classes, tuple(map(str, meta["notices"])), str(meta["skipped"])
    )


def _check_chunk(path: Path, place: int, expected: str) -> None:
    with open_regular(path) as stream:
        stream.seek(place * CHUNK)
        digest = _new_digest()
        digest.update(stream.read(CHUNK))
    if digest.hexdigest() != expected:
        raise ValueError(f"{path.name} is not what was written")


def _new_digest() -> hashlib._Hash:
    return hashlib.sha256()


def _write_header(stream: _Summed, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
