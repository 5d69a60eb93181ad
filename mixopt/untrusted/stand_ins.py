"""What lies in a file's place where something went wrong on the way to it: told by how it begins."""

from __future__ import annotations

from pathlib import Path

from mixopt.untrusted import open_regular

# Bytes that are enough to tell.
ENOUGH = 512
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html")


def stand_in(beginning: bytes) -> str:
    """What stands there in place of the file itself, and what to do about it; empty where nothing shows.

    Args:
        beginning: The first bytes of the file, `ENOUGH` of them where there are so many.
    """
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_POINTER):
        return "a git-LFS pointer, which stands for a file that was not fetched; run git lfs pull in its repository"
    if text.startswith(_PAGES):
        return "an HTML page, as a failed download leaves it; download the file again"
    return ""


def stand_in_at(path: Path) -> str:
    """The same of a file; empty where it cannot be read, which its reader says better."""
    try:
        with open_regular(path) as stream:
            return stand_in(stream.read(ENOUGH))
    except (OSError, ValueError):
        return ""
