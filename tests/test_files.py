from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.errors import RunError
from mixopt.files import append, atomic_write, natural_key, write_json, write_text


@pytest.mark.parametrize(
    ("given_names", "expected"),
    [
        (["model_10", "model_2", "model_1"], ["model_1", "model_2", "model_10"]),
        (["b", "a10b2", "a10b10", "a9"], ["a9", "a10b2", "a10b10", "b"]),
        (["model", "model_0", "2model"], ["2model", "model", "model_0"]),
        (["x_01", "x_1", "x_002"], ["x_01", "x_1", "x_002"]),
        (["blocks.11.attn", "blocks.2.mlp", "blocks.2.attn"], ["blocks.2.attn", "blocks.2.mlp", "blocks.11.attn"]),
    ],
)
def test_digits_sort_as_numbers(given_names: list[str], expected: list[str]) -> None:
    assert sorted(given_names, key=natural_key) == expected


@given(st.lists(st.text(max_size=12), max_size=8))
def test_any_names_have_one_order(found: list[str]) -> None:
    assert sorted(found, key=natural_key) == sorted(sorted(found), key=natural_key)


@given(st.text(max_size=12), st.text(max_size=12))
def test_names_with_equal_keys_are_equal(one: str, other: str) -> None:
    assert (natural_key(one) == natural_key(other)) == (one == other)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_numbers_order_names(one: int, other: int) -> None:
    assert (natural_key(f"epoch{one}.pt") < natural_key(f"epoch{other}.pt")) == (one < other)


def test_digits_that_are_not_decimal_are_text() -> None:
    assert natural_key("x²") == natural_key("x²")
    assert sorted(["²", "1"], key=natural_key) == ["1", "²"]


def test_a_file_appears_whole_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file.bin"
    with atomic_write(path) as stream:
        stream.write(b"first")
        assert not path.exists()
        stream.write(b" second")
    assert path.read_bytes() == b"first second"
    assert os.listdir(path.parent) == ["file.bin"]


def test_a_file_replaces_an_older_one_and_obeys_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")
    before = os.umask(0o027)
    try:
        write_text(path, "neu ü\n")
    finally:
        os.umask(before)
    assert path.read_bytes() == "neu ü\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_json_is_written_as_it_reads_back(tmp_path: Path) -> None:
    value = {"b": [1, 0.1, None], "a": {"text": "ü"}}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == value
    assert list(json.loads(text)) == ["b", "a"]
    assert text.endswith("}\n")


def test_an_error_inside_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(path) as stream:
            stream.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_failing_system_call_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RunError, match=r"could not write .*file: No space left on device"), atomic_write(path) as out:
        out.write(b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="could not write"):
        write_text(tmp_path / "file" / "inside.txt", "x")


@pytest.mark.parametrize(
    ("text", "content"),
    [("ü", "ü".encode()), ("\udcc3\udcbc", "ü".encode()), ("a\udcff", b"a?"), ("b\ud800", b"b?")],
    ids=["plain", "of a locale without UTF-8", "no UTF-8", "half a pair"],
)
def test_a_text_with_the_name_of_any_file_is_written_as_utf_8(tmp_path: Path, text: str, content: bytes) -> None:
    write_text(tmp_path / "x", text)
    assert (tmp_path / "x").read_bytes() == content


def test_lines_are_appended_and_torn_ones_ended(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lines"
    append(path, b"one\ntwo\n")
    append(path, b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    path.write_bytes(b"one\ntw")
    append(path, b"three\n")
    assert path.read_bytes() == b"one\ntw\nthree\n"


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_what_is_appended_to_a_shared_cache_is_shared(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    append(tmp_path / "folder" / "lines", b"one\n", cache=tmp_path)
    assert stat.S_IMODE((tmp_path / "folder" / "lines").stat().st_mode) & 0o060 == 0o060
    tmp_path.chmod(0o700)
    append(tmp_path / "private", b"one\n", cache=tmp_path)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o666 & ~umask()


def test_several_processes_append_whole_lines(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mixopt.files import append\n"
        "for number in range(200): append(Path(sys.argv[1]), f'{sys.argv[2] * 3000}{number}\\n'.encode())"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "lines"), name]) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    lines = (tmp_path / "lines").read_text().splitlines()
    for name in "abc":
        mine = [line for line in lines if line.startswith(name)]
        assert mine == [f"{name * 3000}{number}" for number in range(200)]
    assert len(lines) == 600


def test_a_lock_that_is_never_given_back_is_not_waited_for(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "lines").open("wb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        append(tmp_path / "lines", b"one\n")
    assert (tmp_path / "lines").read_bytes() == b"one\n"
