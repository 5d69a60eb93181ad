"""Images of every depth and format: RGB of 8 bits, scaled where they are deeper, refused where no scale is known."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from mixopt.data import open_split
from mixopt.data.images import FORMATS, SUFFIXES, decoded, looks_like_an_image
from mixopt.errors import DataError
from mixopt.families.image_encoding import image_encoding
from mixopt.values.samples import Preprocess
from tests.listening import Recorder

ANY_SIZE = image_encoding(Preprocess(None, (0.0,) * 3, (1.0,) * 3, lambda image: image, "any size"))
LEVELS = np.array([[0, 257, 5140], [32768, 41120, 65535]], dtype=np.uint16)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_levels_of_16_bits_are_scaled(kind: str) -> None:
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    pixels, note = decoded(saved(Image.fromarray(LEVELS), kind, **options), "x")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2, 3, 3)
    assert np.array_equal(pixels, np.rint(LEVELS / 257).astype(np.uint8)[:, :, None].repeat(3, axis=2))
    assert note == "of 16 bits scaled to 8 (level * 255 / 65535)"


def test_grey_levels_of_12_bits_are_scaled_by_their_own_range() -> None:
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 1, 279: 3}
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00" + value.to_bytes(4, "little")
        for tag, value in tags.items()
    )
    content = b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little") + entries + bytes(4)
    pixels, note = decoded(content + bytes([0xFF, 0xF8, 0x00]), "x")  # 4095 and 2048
    assert pixels[0, :, 0].tolist() == [255, 128]
    assert note == "of 12 bits scaled to 8 (level * 255 / 4095)"


def test_colours_of_16_bits_keep_their_levels() -> None:
    row = b"".join(int(level).to_bytes(2, "big") for level in LEVELS.ravel())
    pixels, note = decoded(b"P6 2 1 65535\n" + row, "x")
    assert np.abs(pixels.ravel().astype(int) - LEVELS.ravel() / 257).max() <= 1
    assert note == "of 16 bits a channel brought to 8"


@pytest.mark.parametrize(("mode", "says"), [("F", "floating-point numbers"), ("I", "32-bit integers")])
def test_levels_on_no_known_scale_are_refused(mode: str, says: str) -> None:
    with pytest.raises(DataError, match=rf"a/x\.tif: its levels are {says}, whose black and white no file says"):
        decoded(saved(Image.fromarray(LEVELS.astype(np.int32)).convert(mode), "TIFF"), "a/x.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_usual_modes_are_what_pillow_makes_of_them(mode: str) -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5).convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    if mode == "P":
        image.info["transparency"] = 3
    pixels, note = decoded(saved(image, kind), "x")
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
    assert not note


def test_formats_are_none_that_pillow_hands_to_other_programs() -> None:
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)
    assert not {"EPS", "PDF", "WMF"} & set(FORMATS)
    assert {".jfif", ".avif", ".jp2"} <= SUFFIXES


@pytest.mark.parametrize("name", ["a.PNG", "a.JFIF", "a.Avif", "a.jp2", "a.JPEG", "a.pbm"])
def test_suffixes_in_any_case(tmp_path: Path, name: str) -> None:
    if name == "a.Avif" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    kind = Image.registered_extensions()[Path(name).suffix.lower()]
    (tmp_path / "split" / "red").mkdir(parents=True)
    (tmp_path / "split" / "red" / name).write_bytes(saved(Image.new("RGB", (4, 4), (200, 0, 0)), kind))
    split = open_split(tmp_path / "split", "test", ANY_SIZE, classnames=None, cache=tmp_path / "cache")
    assert split.arrays["images"].shape == (1, 4, 4, 3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n", "a git-LFS pointer.*git lfs pull"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>Not Found</html>", "an HTML page.*download the file again"),
        (b"nothing of the kind", "this image does not decode"),
    ],
)
def test_what_stands_in_an_images_place_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    for source in (tmp_path / "x.png", content):
        with pytest.raises(DataError, match=rf"x\.png: .*{says}"):
            decoded(source, "x.png")


def test_deep_images_are_told_once_and_again_from_the_decoded_copy(tmp_path: Path) -> None:
    (tmp_path / "split" / "grey").mkdir(parents=True)
    for number in range(3):
        image = Image.fromarray(LEVELS) if number else Image.new("RGB", (3, 2))
        image.save(tmp_path / "split" / "grey" / f"{number}.png")
    for _ in range(2):
        heard = Recorder()
        split = open_split(
            tmp_path / "split", "test", ANY_SIZE, classnames=None, cache=tmp_path / "cache", listener=heard.listener
        )
        assert len(split) == 3
        assert heard.told == [f"{tmp_path / 'split'}: 2 images of 16 bits scaled to 8 (level * 255 / 65535)"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000"])
def test_images_are_known_by_their_beginning(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    assert looks_like_an_image(saved(Image.new("RGB", (4, 4)), kind)[:512])
    assert not looks_like_an_image(b"a caption of an image")
