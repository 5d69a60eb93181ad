"""Ways to damage a file, whatever it holds: its bytes, and what lies in its place. Seeded, and so repeatable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.conftest import permissions_bind

Random = np.random.Generator
Change = Callable[[Random, bytes], bytes]


@dataclass(frozen=True)
class Mutation:
    """A way to damage a file.

    Attributes:
        name: What it is called in failures.
        apply: Damages the file at a path.
    """

    name: str
    apply: Callable[[Random, Path], None]


def rewriting(change: Change, name: str = "") -> Mutation:
    """A mutation from a function of the file's bytes; the file becomes another one, as where it is copied anew."""

    def apply(random: Random, path: Path) -> None:
        content = change(random, path.read_bytes())
        path.unlink()
        path.write_bytes(content)

    return Mutation(name or change.__name__, apply)


def place(random: Random, content: bytes) -> int:
    """A place in the bytes; as often as not near their beginning, where formats keep what matters."""
    most = max(1, len(content))
    return int(random.integers(0, min(most, 256) if random.random() < 0.5 else most))


def span(random: Random, content: bytes) -> tuple[int, int]:
    """The two ends of a range of bytes; short ones are likelier."""
    start = place(random, content)
    return start, min(len(content), start + int(2 ** random.uniform(0, 12)))


def flip_one_bit(random: Random, content: bytes) -> bytes:
    return _flipped(random, content, 1)


def flip_few_bits(random: Random, content: bytes) -> bytes:
    return _flipped(random, content, int(random.integers(2, 9)))


def flip_many_bits(random: Random, content: bytes) -> bytes:
    return _flipped(random, content, int(random.integers(20, 400)))


def _flipped(random: Random, content: bytes, count: int) -> bytes:
    changed = bytearray(content)
    for _ in range(count if content else 0):
        changed[place(random, content)] ^= 1 << int(random.integers(0, 8))
    return bytes(changed)


def truncate(random: Random, content: bytes) -> bytes:
    return content[: place(random, content)]


def truncate_the_end(random: Random, content: bytes) -> bytes:
    return content[: -int(random.integers(1, 64))]


def empty(random: Random, content: bytes) -> bytes:
    return b""


def zero_a_range(random: Random, content: bytes) -> bytes:
    start, stop = span(random, content)
    return content[:start] + bytes(stop - start) + content[stop:]


def fill_a_range(random: Random, content: bytes) -> bytes:
    start, stop = span(random, content)
    return content[:start] + random.bytes(stop - start) + content[stop:]


def remove_a_range(random: Random, content: bytes) -> bytes:
    start, stop = span(random, content)
    return content[:start] + content[stop:]


def insert_a_range(random: Random, content: bytes) -> bytes:
    start, stop = span(random, content)
    return content[:start] + random.bytes(stop - start) + content[start:]


def duplicate_a_range(random: Random, content: bytes) -> bytes:
    start, stop = span(random, content)
    return content[:stop] + content[start:stop] + content[stop:]


def exchange_two_ranges(random: Random, content: bytes) -> bytes:
    (first, end), (second, last) = sorted([span(random, content), span(random, content)])
    end = min(end, second)
    return content[:first] + content[second:last] + content[end:second] + content[first:end] + content[last:]


def append_noise(random: Random, content: bytes) -> bytes:
    return content + random.bytes(int(2 ** random.uniform(0, 14)))


def append_itself(random: Random, content: bytes) -> bytes:
    return content + content


def only_noise(random: Random, content: bytes) -> bytes:
    return random.bytes(max(1, len(content)))


def another_format(random: Random, content: bytes) -> bytes:
    starts = (
        b"PK\x03\x04" + bytes(60),
        b"\x89PNG\r\n\x1a\n" + bytes(60),
        b"\x93NUMPY\x01\x00" + bytes(60),
        b"\x80\x02}q\x00.",
        b"SQLite format 3\x00" + bytes(84),
        b"\x1f\x8b\x08\x00" + bytes(20),
        b"<html><body>404 Not Found</body></html>\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf",
        b"\n",
    )
    return starts[int(random.integers(len(starts)))]


BYTES = tuple(
    rewriting(change)
    for change in (
        flip_one_bit,
        flip_few_bits,
        flip_many_bits,
        truncate,
        truncate_the_end,
        empty,
        zero_a_range,
        fill_a_range,
        remove_a_range,
        insert_a_range,
        duplicate_a_range,
        exchange_two_ranges,
        append_noise,
        append_itself,
        only_noise,
        another_format,
    )
)


def folder_in_its_place(random: Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def full_folder_in_its_place(random: Random, path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    (path / path.name).write_bytes(content)


def dangling_link(random: Random, path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.at.all")


def link_to_itself(random: Random, path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def link_without_end(random: Random, path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def pipe(random: Random, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def missing(random: Random, path: Path) -> None:
    path.unlink()


def unreadable(random: Random, path: Path) -> None:
    path.chmod(0)


def another_file(random: Random, path: Path) -> None:
    """What another file of the example holds, under this one's name."""
    others = sorted(other for other in Path().rglob("*") if other.is_file() and not other.is_symlink())
    others = [other for other in others if other != path and not other.parts[0].startswith("cache")]
    content = others[int(random.integers(len(others)))].read_bytes()
    path.unlink()
    path.write_bytes(content)


PLACES = tuple(
    Mutation(apply.__name__, apply)
    for apply in (
        folder_in_its_place,
        full_folder_in_its_place,
        dangling_link,
        link_to_itself,
        link_without_end,
        pipe,
        missing,
        unreadable,
        another_file,
    )
)
# Permissions do not bind the one who may do anything.
BINDS = permissions_bind()


def remove(path: Path) -> None:
    """Whatever lies at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
