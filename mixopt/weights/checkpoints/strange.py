"""What lies under a checkpoint's name and is none, told for what it is."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mixopt.errors import CheckpointError
from mixopt.untrusted import open_regular

_HEAD = 512
# Letters that make a text at the least, those of it that are shown, and the bytes at its ends that may be none.
_FEWEST = 8
_SHOWN = 60
_CUT = 8
_LFS = b"version https://git-lfs"
_HTML = (b"<!doctype html", b"<html", b"<?xml")
# First bytes of other formats, their names, and how to come by a state dict.
_OTHERS = {
    b"GGUF": ("a GGUF file", "mix the checkpoints that it was made from, and convert the mix"),
    b"\x89HDF": ("an HDF5 file, as Keras saves it", "load it in its own library and save a PyTorch state dict"),
    b"\x1f\x8b": ("compressed with gzip", "unpack it first: gunzip"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it first"),
}


def check_kind(path: Path, head: bytes) -> None:
    """Refuse what is known to be something else, by its first bytes.

    Args:
        path: The file.
        head: Its first bytes, as `head_of` gives them.

    Raises:
        CheckpointError: Says what it is, and what to do.
    """
    if head.startswith(_LFS):
        raise CheckpointError(
            f"{path}: a git-lfs pointer, a text that stands for the file; fetch the file itself with git lfs pull"
        )
    if head.lstrip().lower().startswith(_HTML):
        raise CheckpointError(
            f"{path}: a web page, not a checkpoint, most likely an error page saved in its place; download it again "
            "and look at what comes (a login or a licence may be asked for)"
        )
    for start, (kind, cure) in _OTHERS.items():
        if head.startswith(start):
            raise CheckpointError(f"{path}: {kind}, which holds no PyTorch state dict as it is; {cure}")
    if text := "" if path.suffix == ".json" else _text_of(head):
        raise CheckpointError(
            f"{path}: a text, not a checkpoint ({text!r}), most likely a message saved in its place; download it again "
            "and look at what comes"
        )


def _text_of(head: bytes) -> str:
    """The beginning of a text; empty for anything that holds more than letters and blanks."""
    # A letter of several bytes may be cut at the end.
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="ignore").strip()
    readable = len(head) - len(text.encode()) <= _CUT and all(
        letter.isprintable() or letter in "\r\n\t" for letter in text
    )
    return " ".join(text.split())[:_SHOWN] if readable and len(text) >= _FEWEST else ""


def head_of(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no regular file.
    """
    with open_regular(path) as stream:
        return stream.read(_HEAD)


def check_torchscript(path: Path, records: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that holds a program beside the weights.

    Raises:
        CheckpointError: It is a TorchScript file; how to convert it.
    """
    if any("/code/" in record.filename or record.filename.endswith("/constants.pkl") for record in records):
        raise CheckpointError(
            f"{path}: a TorchScript archive, a program with its weights inside; if you trust where it came from, take "
            f"the weights out of it: torch.save(torch.jit.load({path.name!r}, map_location='cpu').state_dict(), "
            "'converted.pt')"
        )
