"""Splits as they are downloaded: WebDataset shards, MNIST's and CIFAR's files, and what is refused by name."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as theirs
from PIL import Image

from mixopt.data import cifar, folder, idx, open_split, webdataset
from mixopt.data.source import Reading
from mixopt.errors import DataError
from mixopt.values.samples import Encoding

ENCODING = Encoding(lambda record: {"n": 0}, lambda arrays: arrays, "none")


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), (level,) * 3).save(stream, "PNG")
    return stream.getvalue()


def shard(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as opened:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


# WebDataset


def test_shards_as_the_library_writes_them(tmp_path: Path) -> None:
    with theirs.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(4):
            image = Image.new("RGB", (3, 2), (number * 10,) * 3)
            writer.write({"__key__": f"deep/{number}", "png": image, "cls": number % 2, "json": {"id": number}})
    source = webdataset.open_source(tmp_path / "a.tar", Reading())
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert [source.load(number)[0, 0, 0] for number in range(4)] == [0, 10, 20, 30]
    assert [source.where(number) for number in range(2)] == [", deep/0", ", deep/1"]


def test_labels_and_texts_in_json(tmp_path: Path) -> None:
    members = [
        (f"{number}.{suffix}", content)
        for number in range(3)
        for suffix, content in (
            ("json", json.dumps({"kind": "ab"[number % 2], "stars": number}).encode()),
            ("txt", f"text {number}".encode()),
            ("npy", b"x"),
        )
    ]
    path = shard(tmp_path / "a.tar", members)
    source = webdataset.open_source(path, Reading({"label": "kind"}))
    assert (source.labels.tolist(), source.classes) == ([0, 1, 0], ("a", "b"))
    assert source.load(1) == {"text": "text 1", "stars": 1}
    assert "3 members .npy are not read" in source.converted()
    assert webdataset.open_source(path, Reading({"label": "stars"})).labels.tolist() == [0, 1, 2]


def test_two_images_of_a_record_need_a_word(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [("0.png", png(1)), ("0.jpg", b""), ("0.cls", b"0")])
    assert webdataset.open_source(path, Reading({"image": "png"})).load(0)[0, 0, 0] == 1


def test_patterns_are_expanded_in_order(tmp_path: Path) -> None:
    for number in range(8, 12):
        shard(tmp_path / f"s-{number:03}-x.tar", [("0.txt", str(number).encode()), ("0.cls", b"0")])
    for pattern, expected in (("s-{008..011}-x.tar", "8 9 10 11"), ("s-{011,009}-x.tar", "11 9")):
        source = webdataset.open_source(tmp_path / pattern, Reading())
        assert [source.load(number)["text"] for number in range(len(source.labels))] == expected.split()
    assert webdataset.files(tmp_path, Reading()).files[0].name == "s-008-x.tar"
    with pytest.raises(DataError, match=r"2 of its 6 shards are not there: s-012-x\.tar, s-013-x\.tar"):
        webdataset.open_source(tmp_path / "s-{008..013}-x.tar", Reading())
    with pytest.raises(DataError, match="stands for more than 100,000 shards"):
        webdataset.open_source(tmp_path / "s-{0..99999999999}-x.tar", Reading())
    shard(tmp_path / "test-0.tar", [])
    with pytest.raises(DataError, match="holds several splits"):
        webdataset.files(tmp_path, Reading())


def cut(content: bytes) -> bytes:
    return content[:1536]


def zeroed_in_the_middle(content: bytes) -> bytes:
    return content[:1024] + bytes(300) + content[1324:]


def without_its_end(content: bytes) -> bytes:
    return content.rstrip(b"\0")[:2560]


@pytest.mark.parametrize("damage", [cut, zeroed_in_the_middle, without_its_end])
def test_a_damaged_shard_is_not_taken_for_a_shorter_one(tmp_path: Path, damage: Any) -> None:
    members = [(f"{number}.{suffix}", b"0") for number in range(4) for suffix in ("txt", "cls")]
    path = shard(tmp_path / "a.tar", members)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"a\.tar: not a readable \.tar"):
        webdataset.open_source(path, Reading())


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("0.png", b""), ("0.png", b""), ("0.cls", b"0")], r"two members are called 0\.png"),
        ([("0.txt", b"a"), ("0.cls", b"\xff")], r"a\.tar, 0\.cls: not UTF-8"),
        ([("0.txt", b"a"), ("0.json", b"{")], r"a\.tar, 0\.json: not JSON"),
        ([("0.txt", b"a")], r'expected a column "label"'),
        ([("0.txt", b"a"), ("0.cls", b"0"), ("1.txt", b"b")], r'a\.tar, 1: expected a "label"'),
        ([], "the split is empty"),
    ],
)
def test_members_that_are_no_records(tmp_path: Path, members: list[tuple[str, bytes]], says: str) -> None:
    with pytest.raises(DataError, match=says):
        webdataset.open_source(shard(tmp_path / "a.tar", members), Reading())


def test_links_in_a_shard_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.cls").write_text("7")
    with tarfile.open(tmp_path / "a.tar", "w") as opened:
        for name, kind in (("0.txt", tarfile.REGTYPE), ("0.cls", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(tmp_path / "secret.cls")
            opened.addfile(member, io.BytesIO())
    with pytest.raises(DataError, match='expected a column "label"'):
        webdataset.open_source(tmp_path / "a.tar", Reading())


# MNIST


def mnist(place: Path, name: str = "t10k", count: int = 3, labels: int | None = None) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for kind, shape in (("images-idx3", (count, 2, 2)), ("labels-idx1", (count if labels is None else labels,))):
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">u4").tobytes()
        (place / f"{name}-{kind}-ubyte").write_bytes(header + bytes(range(int(np.prod(shape)))))
    return place / f"{name}-images-idx3-ubyte"


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    source = idx.open_source(mnist(tmp_path), Reading())
    assert source.load(1).tolist() == [[[4] * 3, [5] * 3], [[6] * 3, [7] * 3]]
    assert source.labels.tolist() == [0, 1, 2]


def test_packed_and_unpacked_are_one(tmp_path: Path) -> None:
    images = mnist(tmp_path / "raw")
    images.with_name(f"{images.name}.gz").write_bytes(gzip.compress(images.read_bytes()))
    assert idx.files(tmp_path, Reading()).files[0] == images
    mnist(tmp_path / "raw", "train")
    with pytest.raises(DataError, match=r"holds several splits \(t10k-images.*, train-images.*\); name one, such as"):
        idx.open_source(tmp_path, Reading())


@pytest.mark.parametrize("damage", ["short", "long", "magic", "labels", "absent", "bomb"])
def test_damaged_idx_files_are_named(tmp_path: Path, damage: str) -> None:
    images = mnist(tmp_path, labels=2 if damage == "labels" else None)
    content = images.read_bytes()
    changed = {
        "short": content[:-1],
        "long": content + b"x",
        "magic": b"\0\0\x0d\3" + content[4:],
        "bomb": content[:4] + b"\xff" * 12 + content[16:],
    }
    images.write_bytes(changed.get(damage, content))
    if damage == "absent":
        (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte: (not a whole IDX file|3 images|its labels are not)"):
        idx.open_source(images, Reading())


# CIFAR


def test_the_fine_labels_of_cifar_100(tmp_path: Path) -> None:
    rows = [bytes([9, label]) + bytes([1]) * 1024 + bytes([2]) * 1024 + bytes([3]) * 1024 for label in (1, 0)]
    (tmp_path / "test.bin").write_bytes(b"".join(rows))
    (tmp_path / "fine_label_names.txt").write_text("apple\nbee\n")
    source = cifar.open_source(tmp_path / "test.bin", Reading())
    assert (source.labels.tolist(), source.classes) == ([1, 0], ("apple", "bee"))
    assert source.load(0).shape == (32, 32, 3)
    assert source.load(0)[5, 7].tolist() == [1, 2, 3]
    (tmp_path / "test.bin").write_bytes(rows[0][:-1])
    with pytest.raises(DataError, match=r"test\.bin: not a file of CIFAR's \(3,073 bytes"):
        cifar.open_source(tmp_path / "test.bin", Reading())


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "cifar-10-batches-py/test_batch", "cifar-100-python/test"])
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (path if name.endswith("py") else path.parent).mkdir(parents=True)
    if not path.is_dir():
        path.write_bytes(b"\x80\x04.")
    kind = 100 if "100" in name else 10
    with pytest.raises(DataError, match=rf"is pickles.*torchvision\.datasets\.CIFAR{kind}\(r'{tmp_path}', train=False"):
        open_split(path, "test", ENCODING, classnames=None, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("test.pkl", "a pickle, which may run code; turn it into an .npz"),
        ("test_32x32.mat", "turn it into an .npz"),
        ("images.tar.gz", "packed; unpack it first"),
        ("images.zip", "packed; unpack it first"),
        ("train.tfrecord", "of another library's"),
    ],
)
def test_what_is_not_opened_says_what_to_do(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=rf"{name}: {says}.*; expected \.npz"):
        open_split(tmp_path / name, "test", ENCODING, classnames=None, cache=tmp_path / "cache")


# Folders of splits


def test_a_folder_of_splits_is_no_folder_of_classes(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png"):
        (tmp_path / "imagenette" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "imagenette" / name).write_bytes(png(1))
    with pytest.raises(DataError, match=r"imagenette: holds the splits train, val; name one, such as .*imagenette/val"):
        folder.open_source(tmp_path / "imagenette", Reading())
    assert folder.open_source(tmp_path / "imagenette" / "train", Reading()).classes == ("cat", "dog")
