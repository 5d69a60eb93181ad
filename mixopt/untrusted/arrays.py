"""Arrays in ``.npz`` files: what each member asks for is read and bounded before any of it is made."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mixopt.memory import available_memory, gigabytes
from mixopt.untrusted import open_regular

Arrays = dict[str, NDArray[Any]]

# The name of a checksum among the arrays it is of.
CHECKSUM = "_checksum"
_SUFFIX = ".npy"
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_ENCRYPTED = 0x1
_CHUNK = 2**24


def read_arrays(source: Path | IO[bytes], wanted: tuple[str, ...] | None = None) -> Arrays:
    """Arrays of plain numbers and texts from an ``.npz``; runs no code.

    Args:
        source: The file.
        wanted: The names to read, of which those that are absent are left out; all by default.

    Returns:
        Name to array.

    Raises:
        Exception: One of `mixopt.untrusted.READER_ERRORS`: not such a file, damaged, or asking for more memory than
            there is; says which member and why.
    """
    with _opened(source) as stream, zipfile.ZipFile(stream) as opened:
        members = {member.filename.removesuffix(_SUFFIX): member for member in opened.infolist()}
        chosen = {name: each for name, each in members.items() if wanted is None or name in wanted}
        _check_memory({name: each.file_size for name, each in chosen.items()})
        return {name: _read_member(opened, name, each) for name, each in chosen.items()}


def packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """An ``.npz`` file of arrays, with a checksum of them all."""
    buffer = BytesIO()
    np.savez(buffer, **{**arrays, CHECKSUM: np.array(_checksum(arrays))})  # type: ignore[arg-type]  # names are no options
    return buffer.getvalue()


def unpacked(source: Path | IO[bytes]) -> Arrays:
    """What `packed` made a file of.

    Raises:
        Exception: As `read_arrays`, and where the checksum is absent or does not fit.
    """
    arrays = read_arrays(source)
    if str(arrays.pop(CHECKSUM)) != _checksum(arrays):
        raise ValueError("its checksum does not fit")
    return arrays


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, whatever the order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {arrays[name].shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def names_in(source: Path | IO[bytes]) -> list[str]:
    """The names of the arrays in an ``.npz``; raises as `read_arrays`."""
    with _opened(source) as stream, zipfile.ZipFile(stream) as opened:
        return [name.removesuffix(_SUFFIX) for name in opened.namelist()]


def header_of(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order and dtype that an ``.npy`` stream declares, and the bytes of data that they make.

    Raises:
        ValueError: Not such a header, or one of objects, of sizes that are none, or of absurd ones.
    """
    version = npy.read_magic(stream)
    if version not in _READERS:
        raise ValueError(f"an .npy format {version} that is not known")
    shape, fortran, dtype = _READERS[version](stream)
    if dtype.hasobject:
        raise ValueError("an array of objects, which only running code could make; expected numbers or texts")
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"a shape that is none: {list(shape)}")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes >= 2**63 or any(size >= 2**63 for size in shape):
        raise ValueError(f"a shape beyond any memory: {list(shape)}")
    return shape, fortran, dtype, nbytes


def _opened(source: Path | IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    return open_regular(source) if isinstance(source, Path) else nullcontext(source)


def _read_member(opened: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> NDArray[Any]:
    if member.flag_bits & _ENCRYPTED:
        raise ValueError(f"{name} is encrypted")
    with opened.open(member) as stream:
        shape, fortran, dtype, nbytes = header_of(stream)
        _check_memory({name: nbytes})
        if nbytes == 0:
            return np.zeros(shape, dtype=dtype)
        content = np.empty(nbytes, dtype=np.uint8)
        into, filled = content.data, 0
        while filled < nbytes and (part := stream.read(min(_CHUNK, nbytes - filled))):
            into[filled : filled + len(part)] = part
            filled += len(part)
        # One byte more: the end of a member is where its checksum is looked at.
        if filled < nbytes or stream.read(1):
            raise ValueError(f"{name} declares {nbytes:,} bytes of data, and does not have just these")
    return content.view(dtype).reshape(shape, order="F" if fortran else "C")


def _check_memory(sizes: Mapping[str, int]) -> None:
    needed, free = sum(sizes.values()), available_memory()
    if free and needed > free:
        raise ValueError(f"{', '.join(sizes)}: asks for {gigabytes(needed)} of memory, and {gigabytes(free)} is free")
