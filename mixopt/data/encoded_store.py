"""The decoded cache: the encoded samples of a split on disk, memory-mapped from there."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mixopt.data.encode import Arrays
from mixopt.files import atomic_write
from mixopt.values.samples import LENGTH, sample_digest

CACHE_VERSION = 3


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded copy.

    Attributes:
        arrays: As in `mixopt.Samples`.
        labels: ``[n]`` int64, in the source's own numbering.
        digests: ``[n, 16]`` uint8.
        classes: The name of each label, where the source knows them.
        resized: The sizes that images had before they were resized, as a text; empty where none was.
    """

    arrays: Arrays
    labels: NDArray[np.int64]
    digests: NDArray[np.uint8]
    classes: tuple[str, ...] | None
    resized: str


def decoded_folder(cache: Path, content: str) -> Path:
    """Where the decoded copy of a split lies that follows from what it depends on."""
    return cache / "splits" / hashlib.sha256(f"{CACHE_VERSION}|{content}".encode()).hexdigest()[:32]


class _Fixed:
    """Rows of one shape, written as they come."""

    def __init__(self, stream: BinaryIO, count: int, row: NDArray[Any]) -> None:
        self._stream = stream
        _write_header(stream, row.dtype, (count, *row.shape))

    def add(self, row: NDArray[Any]) -> None:
        """Write a row."""
        self._stream.write(row.tobytes())

    def close(self) -> None:
        """Nothing is left to do."""


class _Padded:
    """Rows of any length: how long the longest is shows at the end, so that till then they wait in a nameless file."""

    def __init__(self, stream: BinaryIO, stream_of_lengths: BinaryIO, waiting: IO[bytes], dtype: np.dtype[Any]) -> None:
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
        np.save(self._stream_of_lengths, np.array(self._lengths, dtype=np.int64))


def write_decoded(
    folder: Path,
    samples: Iterable[Arrays],
    labels: NDArray[np.int64],
    classes: Sequence[str] | None,
    resized: Callable[[], str] = str,
) -> None:
    """Keep encoded samples, and hash each of them.

    Args:
        folder: From `decoded_folder`.
        samples: Name to array each, at least one, in evaluation order, all of the form of the first.
        labels: As in `Decoded`, like what follows.
        classes: The name of each label.
        resized: Asked once all samples are written.
    """
    stream = iter(samples)
    first = next(stream)
    padded = [name for name, row in first.items() if row.ndim == 1]
    digests = np.empty((len(labels), 16), dtype=np.uint8)
    # Written as streams: where a disk is full, a write says so, while a memory map would kill the process.
    with ExitStack() as files:

        def opened(name: str) -> BinaryIO:
            return files.enter_context(atomic_write(folder / f"{name}.npy"))

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
    names = [*first, *(name + LENGTH for name in padded)]
    meta = json.dumps({"arrays": names, "classes": classes, "resized": resized()})
    with atomic_write(folder / "labels.npz") as stored:
        np.savez(stored, digests=digests, labels=labels, meta=np.array(meta))


def load_decoded(folder: Path) -> Decoded | None:
    """The decoded copy, or None where there is none or it is damaged (it is then decoded anew)."""
    try:
        with (folder / "labels.npz").open("rb") as stream, np.load(stream) as stored:
            digests, labels, meta = stored["digests"], stored["labels"], json.loads(str(stored["meta"]))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["arrays"]}
        classes = None if meta["classes"] is None else tuple(meta["classes"])
        resized = meta["resized"]
        if {len(each) for each in (*arrays.values(), digests)} != {len(labels)}:
            return None
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        return None
    return Decoded(arrays, labels.astype(np.int64), digests, classes, resized)


def _write_header(stream: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
