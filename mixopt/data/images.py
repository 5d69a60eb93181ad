"""Images to RGB in 8 bits, whatever files hold: deeper ones are scaled and counted, never cut off."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, features

from mixopt.errors import DataError
from mixopt.untrusted import refusing
from mixopt.untrusted.stand_ins import ENOUGH, stand_in, stand_in_at

Pixels = NDArray[np.uint8]

# Pillow's formats by suffix. By itself it looks at the content alone, and hands PostScript to another program.
_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
}
# What Pillow may be built without, by its name for it.
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
FORMATS = tuple(_FORMATS)
SUFFIXES = frozenset(suffix for suffixes in _FORMATS.values() for suffix in suffixes)

# How files of images begin, for those that no suffix tells.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"qoif", b"\xff\x0a")
_BOXES = (b"ftypavif", b"ftypavis", b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypjxl ")
# Grey levels of one channel in 16 bits, by Pillow's mode.
_SIXTEEN = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
# Formats whose 32-bit mode holds values of 16 bits: what their files can hold.
_AT_MOST_16 = frozenset({"PNG", "PPM"})
_TOP = {"8": 255, "12": 4095, "16": 65535}


def looks_like_an_image(beginning: bytes) -> bool:
    """Whether a file begins as images do, the readable formats and others."""
    return beginning.startswith(_BEGINNINGS) or beginning[4:12] in _BOXES or beginning[8:12] == b"WEBP"


class Images:
    """Images by number, decoded when they are asked for.

    Args:
        source: Number to a file, or to what one holds.
        place: Number to where it stands, for messages.
    """

    def __init__(self, source: Callable[[int], Path | bytes], place: Callable[[int], str]) -> None:
        self._source, self._place = source, place
        # By number: an image that is decoded twice counts once.
        self._converted: dict[int, str] = {}

    def load(self, number: int) -> Pixels:
        """``[height, width, 3]``.

        Raises:
            DataError: It does not decode, or its levels are on no known scale.
        """
        pixels, note = decoded(self._source(number), self._place(number))
        if note:
            self._converted[number] = note
        return pixels

    def notices(self) -> Sequence[str]:
        """What was done to those that were decoded, with how many there are."""
        counts = Counter(self._converted.values())
        return [f"{count:,} {'image' if count == 1 else 'images'} {note}" for note, count in sorted(counts.items())]


def decoded(source: Path | bytes, place: str) -> tuple[Pixels, str]:
    """An image ``[height, width, 3]``, and what was done to its levels; nothing for those of 8 bits.

    Raises:
        DataError: It does not decode, or its levels are on no known scale.
    """
    with (
        refusing(
            DataError,
            place,
            found="this image does not decode",
            cure=_cure(source),
            also=(Image.DecompressionBombError,),
        ),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # what makes an image odd is no error, and what is one is raised
        if instead := stand_in(source[:ENOUGH]) if isinstance(source, bytes) else stand_in_at(source):
            raise DataError(f"{place}: not an image but {instead}")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            return _rgb(image, place)


def _rgb(image: ImageFile.ImageFile, place: str) -> tuple[Pixels, str]:
    depth = _depth(image)
    if image.mode in _SIXTEEN or (image.mode == "I" and image.format in _AT_MOST_16):
        top = _TOP[depth]
        levels = np.asarray(image).astype(np.int64)
        grey = ((levels * 255 + top // 2) // top).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2), f"of {depth} bits scaled to 8 (level * 255 / {top})"
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise DataError(
            f"{place}: its levels are {kind}, whose black and white no file says; expected 8 or 16 bits: save it anew "
            "in the range that the models were trained with"
        )
    note = "of 16 bits a channel brought to 8" if depth == "16" else ""
    return np.asarray(image.convert("RGB"), dtype=np.uint8), note


def _depth(image: ImageFile.ImageFile) -> str:
    """Bits of a level in the file, as the names of Pillow's raw modes end; read before the levels are."""
    raw = " ".join(str(tile[3]) for tile in image.tile)
    if "I;12" in raw:
        return "12"
    deep = any(image.format == "PPM" and isinstance(tile[3], tuple) and tile[3][-1] > 255 for tile in image.tile)
    return "16" if deep or ";16" in raw or image.mode.startswith("I") else "8"


def _cure(source: Path | bytes) -> str:
    """What to do about an image that does not decode."""
    suffix = source.suffix.lower() if isinstance(source, Path) else ""
    kind = next((name for name, suffixes in _FORMATS.items() if suffix in suffixes), "")
    if kind in _OPTIONAL and not features.check(_OPTIONAL[kind]):
        return f"this Pillow reads no {kind}: pip install --upgrade pillow, or convert it"
    return "replace or remove it"
