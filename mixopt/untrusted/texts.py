"""Text files of structured values, JSON and TOML: read as UTF-8 and bounded before they are parsed."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixopt.errors import MixoptError
from mixopt.untrusted import open_regular, refusing

# Bytes of a file that is parsed; recipes, indexes and reports stay far below.
MOST_JSON = 2**28
MOST_TOML = 2**20
# Levels of brackets; deeper ones would end in an exhausted stack, here or where the values are used.
DEEPEST = 64
# The key of a checksum beside the values it is of, and its length.
CHECKSUM = "checksum"
_CHECKSUM_LENGTH = 16
# Dots in a key of TOML, which the parser takes the square of.
_MOST_DOTS = 64
# Closed or not, each string is passed over once.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)
# On one line: the parts of keys may be quoted too.
_TOML_STRING = re.compile(r""" "(?:[^"\\\n]|\\.)*+" | '[^'\n]*+' """, re.VERBOSE)
_ENDS_OF_KEYS = re.compile(r"[\n{,]")


def read_text(path: Path, error: type[MixoptError], *, most: int = MOST_JSON, found: str = "") -> str:
    """The text of a file, a byte order mark apart.

    Args:
        path: The file.
        error: What to raise.
        most: Bytes that it may have.
        found: What it is where it is no such text, for messages.

    Raises:
        MixoptError: Of the kind asked for: it cannot be read, is larger, or is not UTF-8.
    """
    what = f"{found}, " if found else ""
    with refusing(error, str(path), found=f"{what}not UTF-8 text", cure="save it as UTF-8, or restore it from a copy"):
        with open_regular(path) as stream:
            content = stream.read(most + 1)
        if len(content) > most:
            raise error(f"{path}: more than {most:,} bytes, where a file of this kind has far fewer; check what it is")
        return content.decode("utf-8-sig")


def json_of(
    text: str, source: str, error: type[MixoptError], *, found: str = "", cure: str = "restore it from a copy"
) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        source: Where it stands, for messages.
        error: What to raise.
        found: What the text is where it is no JSON, for messages.
        cure: What to do about it.

    Raises:
        MixoptError: Of the kind asked for: not JSON, or nested beyond all use.
    """
    with refusing(error, source, found=f"{found}, not JSON" if found else "not JSON", cure=cure):
        check_depth(text)
        return json.loads(text)


def read_json(path: Path, error: type[MixoptError], *, found: str = "", cure: str = "restore it from a copy") -> Any:
    """The value of a JSON file; raises as `read_text` and `json_of`."""
    return json_of(read_text(path, error, found=found), str(path), error, found=found, cure=cure)


def read_toml(path: Path, error: type[MixoptError]) -> dict[str, Any]:
    """The keys of a TOML file.

    Args:
        path: The file.
        error: What to raise.

    Raises:
        MixoptError: Of the kind asked for: it cannot be read, is not TOML, or has keys beyond all use.
    """
    text = read_text(path, error, most=MOST_TOML)
    with refusing(error, str(path), found="not valid TOML", cure="correct it"):
        check_depth(text.replace("'", '"'))
        for part in _ENDS_OF_KEYS.split(_TOML_STRING.sub("text", text)):
            key, sign, _ = part.partition("=")
            if (sign or key.lstrip().startswith("[")) and key.count(".") > _MOST_DOTS:
                raise ValueError(f"a key of {key.count('.') + 1:,} parts")
        return tomllib.loads(text)


def checksum_of(values: Mapping[str, Any]) -> str:
    """A checksum of JSON values, whatever the order of their keys; what stands under `CHECKSUM` does not count."""
    kept = {key: value for key, value in values.items() if key != CHECKSUM}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_CHECKSUM_LENGTH]


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with a checksum among them, in the last place."""
    return {**values, CHECKSUM: checksum_of(values)}


def check_checksum(values: Mapping[str, Any]) -> None:
    """Compare JSON values with the checksum that stands among them.

    Raises:
        ValueError: There is none, or they are others.
    """
    found, expected = checksum_of(values), values.get(CHECKSUM)
    if found != expected:
        raise ValueError(f"its checksum is {found}, expected {expected or 'one in it'}: damaged or edited")


def check_depth(text: str) -> None:
    """Refuse brackets within brackets within brackets.

    Raises:
        ValueError: More levels of them than `DEEPEST`.
    """
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        if (mark := found[0]) in ("[", "{"):
            depth += 1
            if depth > DEEPEST:
                raise ValueError(f"nested more than {DEEPEST} levels deep")
        elif mark in ("]", "}"):
            depth -= 1
