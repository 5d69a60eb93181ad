"""What files bring in: each kind is bounded and checked here before use, and names itself in one error where it fails.

Nothing in this package imports, unpickles or calls what a file names.
"""

from __future__ import annotations

import lzma
import os
import pickle
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mixopt.errors import MixoptError
from mixopt.memory import is_out_of_memory

# What libraries raise over bytes that are not what they should be. Anything else is a mistake of ours.
READER_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    pickle.PickleError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_LONGEST_REASON = 160


@contextmanager
def refusing(
    error: type[MixoptError], where: str, *, found: str, cure: str, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn whatever a reader raises in the block into one error.

    Args:
        error: Its kind.
        where: The file.
        found: What it is then, such as ``not a readable .npz file``.
        cure: What to do about it.
        also: More exceptions of the library that reads.

    Raises:
        MixoptError: Of the kind asked for. What the block itself raises as one passes as it is.
    """
    try:
        yield
    except (*READER_ERRORS, *also) as caught:
        if is_environment(caught):
            raise error(
                f"{where}: cannot be read ({reason_of(caught)}); check its permissions, the disk and the free memory"
            ) from caught
        raise error(f"{where}: {found} ({reason_of(caught)}); {cure}") from caught


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a pipe, which might never end, and a device are refused.

    Raises:
        OSError: It is not there, or may not be read.
        ValueError: It is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("a folder, pipe or device, where a file is expected")
    return os.fdopen(descriptor, "rb")


def is_environment(error: BaseException) -> bool:
    """Whether an error is about the system, a permission or the memory rather than what a file holds."""
    return is_out_of_memory(error) or (isinstance(error, OSError) and error.errno is not None)


def reason_of(error: BaseException) -> str:
    """One short line of what an error says."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if is_out_of_memory(error):
        return "not enough memory"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
