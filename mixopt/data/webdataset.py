"""Splits in WebDataset shards: one ``.tar``, a folder of them, or a pattern such as ``shard-{000..003}.tar``.

Members of one name are a record: an image (``.jpg``, ``.png``, ...), a label (``.cls``, or a field of ``.json``), a
text (``.txt``). Nothing is unpacked: a member is read where it lies.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from mixopt.data.images import SUFFIXES
from mixopt.data.source import Listing, Reading, Source
from mixopt.data.table import MISSING, Table, listing_of, source_of
from mixopt.errors import DataError, names, short
from mixopt.files import natural_key
from mixopt.untrusted import open_regular, refusing
from mixopt.untrusted.texts import json_of

SUFFIX = ".tar"
_WANTED = "expected WebDataset shards, members such as 000.jpg and 000.cls"
# Extensions of small members, which are texts, and the columns that they are.
_TEXTS = {"txt": "text", "text": "text", "cls": "label", "class": "class", "label": "label", "target": "target"}
_JSON = "json"
_NAME = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
# Shards of a pattern, bytes of a small member, and of the mark at a shard's end.
_MOST_SHARDS = 100_000
_MOST_TEXT = 2**24
_END = 1024


def matches(path: Path) -> bool:
    """Whether the path is a shard, a folder of shards, or a pattern of them."""
    if path.suffix.lower() == SUFFIX and (path.is_file() or _is_pattern(path)):
        return True
    return path.is_dir() and bool(_shards_in(path))


def files(path: Path, reading: Reading) -> Listing:
    """The shards."""
    return listing_of(_table(path, reading), reading)


def open_source(path: Path, reading: Reading) -> Source:
    """List the members, and read all but the images.

    Raises:
        DataError: A shard is missing, damaged or cut off, two members have one name, or there are no records.
    """
    return source_of(_table(path, reading), reading)


@dataclass(frozen=True)
class _Member:
    """A member of a shard: where it lies, and how many bytes it has."""

    shard: Path
    start: int
    size: int

    def read(self) -> bytes:
        """What it holds."""
        with (
            refusing(DataError, str(self.shard), found="a member cannot be read", cure=_WANTED),
            open_regular(self.shard) as stream,
        ):
            stream.seek(self.start)
            content = stream.read(self.size)
            if len(content) < self.size:
                raise ValueError("it ends in the middle")
        return content


def _table(path: Path, reading: Reading) -> Table:
    shards = _shards(path)
    records: list[dict[str, Any]] = []
    places: list[str] = []
    bad: list[str] = []
    left_out: Counter[str] = Counter()
    for shard in shards:
        with refusing(DataError, str(shard), found="not a readable .tar", cure=_WANTED, also=(tarfile.TarError,)):
            members = _members(shard)
        for key, parts in members.items():
            try:
                record = _record(shard, key, parts)
            except DataError as error:
                if not reading.skips:
                    raise
                bad.append(str(error))
                continue
            left_out.update(extension for extension in parts if not _is_read(extension))
            records.append(record)
            places.append(f", {shard.name}: {short(key)}" if path != shard else f", {short(key)}")
    kinds = {name for record in records for name, value in record.items() if isinstance(value, _Member)}
    if len(kinds) == 1:
        (kind,) = kinds
        records = [{("image" if name == kind else name): value for name, value in each.items()} for each in records]

    def row(number: int) -> dict[str, Any]:
        record = records[number]
        return {name: value.read() if isinstance(value, _Member) else value for name, value in record.items()}

    notices = [f"{count:,} members .{name} are not read" for name, count in sorted(left_out.items())]
    return Table(
        path=path,
        files=tuple(shards),
        columns=tuple(dict.fromkeys(name for record in records for name in record)),
        count=len(records),
        row=row,
        column=lambda name: [record.get(name, MISSING) for record in records],
        where=lambda number: places[number],
        bad=tuple(bad),
        notices=tuple(notices),
    )


def _is_read(extension: str) -> bool:
    return extension in _TEXTS or extension == _JSON or f".{extension}" in SUFFIXES


def _members(shard: Path) -> dict[str, dict[str, _Member]]:
    """Key to extension to member, in the order of the shard.

    Raises:
        Exception: `tarfile.TarError` or one of `mixopt.untrusted.READER_ERRORS`.
    """
    found: dict[str, dict[str, _Member]] = {}
    with open_regular(shard) as stream, tarfile.open(fileobj=stream, mode="r:") as opened:
        for member in opened:
            name = _NAME.fullmatch(member.name)
            if not member.isreg() or name is None:
                continue
            if member.sparse is not None:
                raise ValueError(f"{short(member.name)} is a sparse file")
            parts = found.setdefault(name[1], {})
            extension = name[2].lower()
            if extension in parts:
                raise ValueError(f"two members are called {short(member.name)}")
            parts[extension] = _Member(shard, member.offset_data, member.size)
        _check_end(stream, opened.offset)
    return found


def _check_end(stream: BinaryIO, end: int) -> None:
    """Refuse a shard that does not end with zeros: `tarfile` takes damage in its middle for its end."""
    stream.seek(end)
    if stream.read(_END) != bytes(_END):
        raise ValueError(f"after {end:,} bytes comes neither a member nor the end; damaged, or a part of a file")


def _record(shard: Path, key: str, parts: dict[str, _Member]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for extension, member in parts.items():
        place = f"{shard}, {short(key)}.{short(extension)}"
        if f".{extension}" in SUFFIXES:
            record[extension] = member
        elif extension in _TEXTS:
            text = _text(place, member)
            is_label = extension != "txt" and extension != "text"
            record[_TEXTS[extension]] = int(text) if is_label and re.fullmatch(r"[0-9]{1,9}", text) else text
        elif extension == _JSON:
            value = json_of(_text(place, member), place, DataError, cure="expected a JSON object")
            fields = value if isinstance(value, dict) else {_JSON: value}
            record |= {str(name): field for name, field in fields.items() if name not in record}
    return record


def _text(place: str, member: _Member) -> str:
    if member.size > _MOST_TEXT:
        raise DataError(f"{place}: {member.size:,} bytes, where texts and labels have far fewer")
    try:
        return member.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text ({error.reason})") from error


def _is_pattern(path: Path) -> bool:
    return bool(_RANGE.search(path.name) or _CHOICE.search(path.name))


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        found = _shards_in(path)
        stems = sorted({re.sub(r"\d+", "", each.stem) for each in found})
        if len(stems) > 1:
            shown = names(each.name for each in found)
            raise DataError(
                f"{path}: holds several splits ({shown}); name one by a pattern: {path}/NAME-{{000..009}}.tar"
            )
        return found
    wanted = [path.with_name(name) for name in islice(_expanded(path.name), _MOST_SHARDS + 1)]
    if len(wanted) > _MOST_SHARDS:
        raise DataError(f"{path}: stands for more than {_MOST_SHARDS:,} shards; correct the pattern")
    if absent := [each.name for each in wanted if not each.is_file()]:
        raise DataError(f"{path}: {len(absent)} of its {len(wanted)} shards are not there: {names(absent)}")
    return wanted


def _shards_in(folder: Path) -> list[Path]:
    """The shards of a folder, if there is nothing else in it but what is hidden or says what they are."""
    found = [each for each in folder.iterdir() if not each.name.startswith(".")]
    shards = [each for each in found if each.suffix.lower() == SUFFIX and each.is_file()]
    others = [
        each for each in found if each not in shards and each.suffix.lower() not in (".md", ".json", ".txt", ".idx")
    ]
    return [] if others else sorted(shards, key=lambda file: natural_key(file.name))


def _expanded(name: str) -> Iterator[str]:
    """The names that a pattern stands for, in its order."""
    if numbers := _RANGE.search(name):
        first, last = int(numbers[1]), int(numbers[2])
        choices: Sequence[str] | Iterator[str] = (
            str(number).zfill(len(numbers[1])) for number in range(first, last + 1)
        )
        found = numbers
    elif choice := _CHOICE.search(name):
        choices, found = choice[1].split(","), choice
    else:
        yield name
        return
    for each in choices:
        for rest in _expanded(name[found.end() :]):
            yield f"{name[: found.start()]}{each}{rest}"
