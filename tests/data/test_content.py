"""What a split holds is known by its content; stamps are believed only where nobody can set them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mixopt.data import content as module
from mixopt.data import open_split
from mixopt.data.content import check_unchanged, content_of, stamp_of
from mixopt.errors import DataError
from mixopt.families.image_encoding import image_encoding
from mixopt.values.samples import Preprocess, Samples
from tests.conftest import make_images
from tests.listening import Recorder

ENCODING = image_encoding(Preprocess(None, (0.0,) * 3, (1.0,) * 3, lambda image: image, "plain"))


@pytest.fixture
def split(tmp_path: Path) -> Path:
    np.savez(tmp_path / "val.npz", **make_images(12, seed=0))
    return tmp_path / "val.npz"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once."""
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 0.0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files whose bytes were hashed."""
    found: list[Path] = []
    real = module._hash_of

    def hash_of(file: Path) -> str:
        found.append(file)
        return real(file)

    monkeypatch.setattr(module, "_hash_of", hash_of)
    return found


def opened(path: Path, cache: Path, heard: Recorder | None = None) -> Samples:
    listener = (heard or Recorder()).listener
    return open_split(path, "validation", ENCODING, classnames=None, cache=cache, listener=listener)


def test_content_replaced_under_the_same_size_and_time_is_noticed(split: Path, tmp_path: Path) -> None:
    before, times = opened(split, tmp_path / "cache"), split.stat()
    arrays = make_images(12, seed=1)
    size = times.st_size
    np.savez(split, **arrays)
    os.utime(split, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (split.stat().st_size, split.stat().st_mtime_ns) == (size, times.st_mtime_ns)
    after = opened(split, tmp_path / "cache")
    assert after.fingerprint != before.fingerprint
    assert sorted(image.tobytes() for image in after.arrays["images"]) == sorted(each.tobytes() for each in arrays["x"])


@pytest.mark.usefixtures("settled")
def test_content_is_read_once_while_the_stamp_stays(split: Path, tmp_path: Path, reads: list[Path]) -> None:
    first = content_of(split, [split], tmp_path / "cache")
    assert content_of(split, [split], tmp_path / "cache") == first
    assert reads == [split]
    os.utime(split, ns=(5, 5))  # another time, the same bytes
    assert content_of(split, [split], tmp_path / "cache").hash == first.hash
    assert reads == [split, split]


def test_a_file_that_has_just_changed_is_read_again(split: Path, tmp_path: Path, reads: list[Path]) -> None:
    for _ in range(2):
        content_of(split, [split], tmp_path / "cache")
    assert reads == [split, split], "a change within one tick of the clock would leave its stamp as it is"


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "damage",
    [
        lambda note: note.write_text("no note"),
        lambda note: note.write_text(json.dumps({**json.loads(note.read_text()), "content": "0" * 64})),
        lambda note: note.write_text("[]"),
    ],
    ids=["text", "flipped", "list"],
)
def test_a_damaged_note_is_not_believed(
    split: Path, tmp_path: Path, reads: list[Path], damage: Callable[[Path], object]
) -> None:
    first = content_of(split, [split], tmp_path / "cache")
    (note,) = (tmp_path / "cache" / "sources").iterdir()
    damage(note)
    assert content_of(split, [split], tmp_path / "cache") == first
    assert reads == [split, split]


def test_a_copy_elsewhere_is_the_same_content(split: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "other.npz").write_bytes(split.read_bytes())
    moved = tmp_path / "moved" / "other.npz"
    cache = tmp_path / "cache"
    assert content_of(moved, [moved], cache).hash == content_of(split, [split], cache).hash
    opened(split, cache)
    opened(moved, cache)
    assert len(list((cache / "splits").iterdir())) == 1


def test_names_of_files_are_content(tmp_path: Path) -> None:
    """The folder that an image lies in is its class."""
    hashes = set()
    for name in ("cat", "dog"):
        file = tmp_path / name / "photos" / name / "1.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"same")
        hashes.add(content_of(tmp_path / name / "photos", [file], tmp_path / "cache").hash)
    assert len(hashes) == 2


def test_a_source_that_changes_while_it_is_read_is_refused(split: Path) -> None:
    stamp, _ = stamp_of(split, [split])
    check_unchanged(split, [split], stamp)
    time.sleep(0.02)
    split.write_bytes(split.read_bytes())
    with pytest.raises(DataError, match=r"val\.npz: it changed while it was read; run the same command again"):
        check_unchanged(split, [split], stamp)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    path = tmp_path / "photos" / "cat" / "lost.png"
    if kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        os.mkfifo(path)
    with pytest.raises(DataError, match=r"lost\.png: (a link that leads nowhere|expected a file, found)"):
        opened(tmp_path / "photos", tmp_path / "cache")


# The decoded copy


def test_no_flipped_bit_in_a_decoded_copy_goes_unnoticed(split: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    wanted = opened(split, cache).arrays["images"].tobytes()
    (images,) = cache.rglob("images.npy")
    whole = images.read_bytes()
    for place in (0, 9, 70, 200, len(whole) // 2, len(whole) - 1):
        images.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        heard = Recorder()
        assert opened(split, cache, heard).arrays["images"].tobytes() == wanted
        assert [text.startswith("damaged decoded copy") for text in heard.warnings] == [True]
        assert images.read_bytes() == whole
    heard = Recorder()
    opened(split, cache, heard)
    assert not heard.warnings


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images[..., :1],
        lambda images: images[:, :4],
        lambda images: images.reshape(len(images), -1),
        lambda images: np.concatenate([images, images]),
    ],
    ids=["one channel", "4 rows", "flat", "twice"],
)
def test_arrays_of_another_shape_are_decoded_anew(split: Path, tmp_path: Path, change: Callable[..., object]) -> None:
    cache = tmp_path / "cache"
    wanted = opened(split, cache).arrays["images"].tobytes()
    (images,) = cache.rglob("images.npy")
    np.save(images, np.asarray(change(np.load(images))))
    heard = Recorder()
    assert opened(split, cache, heard).arrays["images"].tobytes() == wanted
    assert len(heard.warnings) == 1


def test_several_chunks_are_each_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixopt.data import encoded_store

    monkeypatch.setattr(encoded_store, "CHUNK", 1000)
    np.savez(tmp_path / "val.npz", **make_images(40, seed=0))
    cache = tmp_path / "cache"
    wanted = opened(tmp_path / "val.npz", cache).arrays["images"].tobytes()
    (images,) = cache.rglob("images.npy")
    whole = bytearray(images.read_bytes())
    for place in (500, 1500, len(whole) - 1):
        damaged = whole.copy()
        damaged[place] ^= 1
        images.write_bytes(damaged)
        heard = Recorder()
        assert opened(tmp_path / "val.npz", cache, heard).arrays["images"].tobytes() == wanted
        assert "images.npy is not what was written" in heard.warnings[0]
    images.write_bytes(bytes(whole) + b"more")
    heard = Recorder()
    assert opened(tmp_path / "val.npz", cache, heard).arrays["images"].tobytes() == wanted
    assert len(heard.warnings) == 1
