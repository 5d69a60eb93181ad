"""JSON and TOML: bounded before they are parsed, one error that names the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.errors import SpecError
from mixopt.untrusted.texts import (
    CHECKSUM,
    DEEPEST,
    check_checksum,
    checksum_of,
    json_of,
    read_json,
    read_text,
    read_toml,
)

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSONS)
def test_json_is_read_as_ever(value: object) -> None:
    assert json_of(json.dumps(value), "x", SpecError) == value


def test_brackets_in_strings_are_no_levels() -> None:
    value = {"text": "[" * 1000 + '\\"' + "{" * 1000, "rows": [[1.0]] * 500}
    assert json_of(json.dumps(value), "x", SpecError) == value


@pytest.mark.parametrize(("levels", "is_read"), [(DEEPEST, True), (DEEPEST + 1, False), (100_000, False)])
def test_depth(levels: int, is_read: bool) -> None:
    text = "[" * levels + "]" * levels
    if is_read:
        assert isinstance(json_of(text, "x", SpecError), list)
        return
    with pytest.raises(SpecError, match=r"^x: not JSON \(nested more than 64 levels deep\); restore it"):
        json_of(text, "x", SpecError)


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a": }', "nul", '"' + "\\" * 5, "9" * 5000, "\x00", '{"a": "\ud800' + "["],
    ids=["empty", "open", "no value", "word", "backslashes", "digits", "nul", "surrogate"],
)
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(SpecError, match=r"^here: not JSON"):
        json_of(text, "here", SpecError)


@pytest.mark.timeout(60)
def test_quotes_that_never_close_take_no_square_of_time() -> None:
    with pytest.raises(SpecError):
        json_of('{"a": [' * 40 + '"' + '\\"' * 2_000_000, "x", SpecError)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "a.json", SpecError) == [1]
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfa = 1")
    assert read_toml(tmp_path / "a.toml", SpecError) == {"a": 1}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = 1 b", "not valid TOML"),
        (b"\xff", "not UTF-8 text"),
        (b"x = " + b"[" * 100_000, "nested more than"),
        (b"x = " + b"{a=" * 100 + b"1" + b"}" * 100, "nested more than"),
        (b".".join([b"a"] * 50_000) + b" = 1", "a key of 50,000 parts"),
        (b"[" + b".".join([b"a"] * 50_000) + b"]", "a key of 50,000 parts"),
        (b"x = {" + b".".join([b"a"] * 50_000) + b" = 1}", "a key of 50,000 parts"),
        (b".".join([b'"="'] * 50_000) + b" = 1", "a key of 50,000 parts"),
        (b".".join([b"'a.b'"] * 50_000) + b" = 1", "a key of 50,000 parts"),
        (b"a = " + b"9" * 5000, "not valid TOML"),
        (b"# " + b"x" * 5_000_000, "more than 1,048,576 bytes"),
    ],
    ids=["words", "bytes", "lists", "tables", "key", "header", "inline", "quoted", "literal", "digits", "large"],
)
def test_what_is_no_toml(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "pool.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"pool\.toml: .*" + says):
        read_toml(path, SpecError)


def test_dots_in_texts_are_no_parts_of_keys(tmp_path: Path) -> None:
    templates = ["a photo of a {}."] * 80
    (tmp_path / "a.toml").write_text(f"templates = {json.dumps(templates)}\n[a.b]\nc.d = '...'\n")
    assert read_toml(tmp_path / "a.toml", SpecError)["templates"] == templates


def test_what_is_not_there_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none: cannot be read \(No such file or directory\); check"):
        read_text(tmp_path / "none", SpecError)
    with pytest.raises(SpecError, match="a folder, pipe or device"):
        read_text(tmp_path, SpecError)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecError, match="a folder, pipe or device"):
        read_text(tmp_path / "pipe", SpecError)


@given(st.dictionaries(st.text(), JSONS, max_size=5))
def test_a_checksum_is_of_the_values_in_any_order(values: dict[str, object]) -> None:
    values.pop(CHECKSUM, None)
    whole = {**values, CHECKSUM: checksum_of(values)}
    check_checksum(json.loads(json.dumps(dict(reversed(whole.items())))))
    with pytest.raises(ValueError, match="its checksum is"):
        check_checksum({**whole, "one more": 1})
    with pytest.raises(ValueError, match="expected one in it"):
        check_checksum(values)
