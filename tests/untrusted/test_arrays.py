"""Arrays in .npz files: as NumPy reads them, or one reason why not, before memory is asked for."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from mixopt.untrusted import READER_ERRORS
from mixopt.untrusted import arrays as module
from mixopt.untrusted.arrays import names_in, packed, read_arrays, unpacked

DTYPES = st.sampled_from([np.dtype(name) for name in ("u1", ">i4", "<f8", "?", "<U3", "|S2", "<f2", "<U0")])
KINDS: st.SearchStrategy[NDArray[Any]] = st_numpy.arrays(
    DTYPES, st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
)


def stored(**arrays: NDArray[Any]) -> io.BytesIO:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    stream.seek(0)
    return stream


@given(KINDS)
def test_arrays_are_read_as_numpy_does(array: NDArray[Any]) -> None:
    found = read_arrays(stored(a=array, b=np.array(array, order="F")))
    for each in found.values():
        assert each.dtype == array.dtype
        assert each.shape == array.shape
        assert each.tobytes() == array.tobytes()


def test_only_what_is_wanted_is_read() -> None:
    stream = stored(a=np.ones(3), b=np.zeros(2))
    assert list(read_arrays(stream, ("b", "c"))) == ["b"]
    assert names_in(stream) == ["a", "b"]


def header(shape: str, descr: str = "|u1", data: bytes = b"") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello", "magic"),
        (header("(3000000000, 8, 8, 3)"), "asks for 576.0 GB of memory, and"),
        (header("(10000000000000000000000000000000,)"), "beyond any memory"),
        (header("(3, -1)", data=b"abc"), "a shape that is none"),
        (header("(True, 3)", data=b"abc"), "a shape that is none"),
        (header("(3,)", "|O"), "an array of objects"),
        (header("(4,)", data=b"abc"), "does not have just these"),
        (header("(2,)", data=b"abc"), "does not have just these"),
        (header("(2,)", "no dtype"), "descr"),
        (b"\x93NUMPY\x07\x00", "format"),
    ],
)
def test_odd_members_give_a_reason(content: bytes, says: str) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(READER_ERRORS, match=says):
        read_arrays(stream)


def test_a_bomb_is_told_by_what_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 10**6)
    with pytest.raises(ValueError, match=r"a: asks for 8\.0 MB of memory, and 1\.0 MB is free"):
        read_arrays(stored(a=np.zeros(10**6)))


def test_a_checksum_goes_with_the_arrays(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "t": np.array("text")}
    (tmp_path / "x.npz").write_bytes(packed(arrays))
    found = unpacked(tmp_path / "x.npz")
    assert list(found) == ["a", "t"]
    assert np.array_equal(found["a"], arrays["a"])
    (tmp_path / "y.npz").write_bytes(packed({**arrays, "a": arrays["a"] + 1}))
    other = read_arrays(tmp_path / "y.npz")
    np.savez(tmp_path / "z.npz", **{**read_arrays(tmp_path / "x.npz"), "a": other["a"]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="its checksum does not fit"):
        unpacked(tmp_path / "z.npz")
