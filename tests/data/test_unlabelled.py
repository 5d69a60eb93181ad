"""Samples without labels: what labels them is not needed, not read, and told where it is there."""

from __future__ import annotations

import gzip
import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mixopt.data import SOURCES, open_split
from mixopt.data.source import Reading
from mixopt.data.unlabelled import open_unlabelled
from mixopt.errors import DataError
from mixopt.values.samples import Encoding, Samples
from tests.data.examples import CLASSES, EXAMPLES
from tests.data.examples import ENCODING as NUMBERS
from tests.listening import Recorder

LEVELS = Encoding(lambda image: {"images": image}, lambda arrays: arrays["images"], "images")
TEXTS = Encoding(lambda record: {"length": len(record["text"])}, lambda arrays: arrays["length"], "lengths")
FIELDS = Encoding(lambda record: {"fields": len(record)}, lambda arrays: arrays["fields"], "fields")
UNREAD = Reading(labelled=False)


def draw(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level,) * 3).save(path)
    return path


def opened(path: Path, encoding: Encoding = LEVELS, heard: Recorder | None = None, **reading: Any) -> Samples:
    listener = None if heard is None else heard.listener
    return open_unlabelled(
        path, "unlabelled", encoding, classnames=CLASSES, cache=path.parent / "cache",
        reading=Reading(**reading), listener=listener,
    )  # fmt: skip


def levels_of(split: Samples) -> list[int]:
    return [int(image[0, 0, 0]) for image in split.arrays["images"]]


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_opens_without_its_labels(name: str, tmp_path: Path) -> None:
    path = EXAMPLES[name](tmp_path)
    module: Any = importlib.import_module(f"mixopt.data.{name}")
    source = module.open_source(path, UNREAD)
    assert (source.classes, source.labels.tolist()) == (None, [0] * 7)
    heard = Recorder()
    split = open_unlabelled(path, "x", NUMBERS, classnames=CLASSES, cache=tmp_path / "cache", listener=heard.listener)
    assert sorted(split.arrays["number"].tolist()) == list(range(7))
    assert (split.labels.tolist(), split.classes, split.among) == ([0] * 7, CLASSES, None)
    # MNIST's labels are files of their own, which nobody opens.
    assert bool(heard.infos) == (name != "idx")


@pytest.mark.parametrize("name", SOURCES)
def test_a_copy_without_labels_is_not_taken_for_one_with_them(name: str, tmp_path: Path) -> None:
    path, cache = EXAMPLES[name](tmp_path), tmp_path / "cache"
    classnames = list(CLASSES)
    fresh = open_split(path, "x", NUMBERS, classnames=classnames, cache=tmp_path / "other")
    open_unlabelled(path, "x", NUMBERS, classnames=classnames, cache=cache)
    after = open_split(path, "x", NUMBERS, classnames=classnames, cache=cache)
    assert after.labels.tolist() == fresh.labels.tolist()
    again = open_unlabelled(path, "x", NUMBERS, classnames=classnames, cache=cache)
    assert again.labels.tolist() == [0] * 7
    assert sorted(each.tobytes() for each in again.digests) == sorted(each.tobytes() for each in fresh.digests)
    assert len(list((cache / "splits").iterdir())) == 2, "the decoded copy of each is used again"


def test_keys_of_what_was_decoded_before_stay() -> None:
    assert Reading({"text": "a"}, skips=True, holdout=0.5).key == '[[["text", "a"]], true, 0.5]'
    assert UNREAD.key != Reading().key


@pytest.mark.parametrize("names", [("1.png", "2.JPG", "3.png"), ("a/1.png", "a/b/c/2.png", "3.png")])
def test_a_folder_of_images_flat_or_deep(names: tuple[str, ...], tmp_path: Path) -> None:
    for level, name in enumerate(names):
        draw(tmp_path / "split" / name, 10 * level)
    heard = Recorder()
    split = opened(tmp_path / "split", heard=heard)
    assert sorted(levels_of(split)) == [0, 10, 20]
    nested = f"{tmp_path / 'split'}: the names of its folders are not taken as classes"
    assert (nested in heard.infos) == any("/" in name for name in names)
    assert not heard.warnings


def test_folders_are_no_classes_whatever_they_are_called(tmp_path: Path) -> None:
    """Those of other classes than the model's, of some of them, of splits, and around all: none is refused."""
    for level, name in enumerate(("train/blue/1.png", "test/red/2.png", "test/cats/3.png")):
        draw(tmp_path / "split" / name, 10 * level)
    split = opened(tmp_path / "split")
    assert (sorted(levels_of(split)), split.among) == ([0, 10, 20], None)
    draw(tmp_path / "around" / "images" / "red" / "1.png", 7)
    assert levels_of(opened(tmp_path / "around")) == [7]


def test_the_order_is_random_and_always_the_same(tmp_path: Path) -> None:
    for level in range(30):
        draw(tmp_path / "split" / f"{level}.png", level)
    found = [levels_of(opened(tmp_path / "split")), levels_of(opened(tmp_path / "split"))]
    (tmp_path / "split").rename(tmp_path / "renamed")
    found.append(levels_of(opened(tmp_path / "renamed")))
    assert found[0] == found[1] == found[2] != sorted(found[0])
    assert sorted(found[0]) == list(range(30))


def test_what_is_left_out_of_a_folder_is_told(tmp_path: Path) -> None:
    split = tmp_path / "split"
    draw(split / "1.png")
    draw(split / "a" / "2.png").rename(split / "a" / "2")
    draw(split / ".trash" / "3.png")
    (split / "notes.txt").write_text("seen at noon")
    (split / "README.md").write_text("photos")
    (split / "a" / "back").symlink_to(split)
    heard = Recorder()
    assert len(opened(split, heard=heard)) == 1
    assert heard.warnings == [
        f"{split}: {text}"
        for text in (
            "1 file that begins as images do, without a suffix that is known for one left out: a/2",
            "1 file that is no image left out: notes.txt",
            "1 link to a folder that is in it left out: a/back",
            "1 hidden image left out: .trash/3.png",
        )
    ]


def test_linked_images_and_folders_are_followed(tmp_path: Path) -> None:
    draw(tmp_path / "store" / "1.png", 5)
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "2.png").symlink_to(tmp_path / "store" / "1.png")
    (tmp_path / "split" / "more").symlink_to(tmp_path / "store")
    assert levels_of(opened(tmp_path / "split")) == [5, 5]
    (tmp_path / "split" / "3.png").symlink_to(tmp_path / "moved")
    with pytest.raises(DataError, match=r"3\.png: a link that leads nowhere; correct or remove it"):
        opened(tmp_path / "split")


def test_an_npz_needs_no_labels_and_reads_none(tmp_path: Path) -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    np.savez(tmp_path / "bare.npz", x=images)
    # Of no use as labels, and nobody looks at them.
    np.savez(tmp_path / "odd.npz", x=images, y=np.array(["?"] * 5), classes=np.zeros(3))
    heard = Recorder()
    bare = opened(tmp_path / "bare.npz", heard=heard)
    assert not heard.infos
    odd = opened(tmp_path / "odd.npz", heard=heard)
    assert heard.infos == [f"{tmp_path / 'odd.npz'}: its labels y are not read"]
    assert levels_of(bare) == levels_of(odd)
    assert bare.fingerprint == odd.fingerprint
    with pytest.raises(DataError, match=r"bare\.npz: lacks y; expected x uint8 .* and y integer \[n\], found x"):
        open_split(tmp_path / "bare.npz", "x", LEVELS, classnames=None, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "bb"}\n{"text": "ccc"}\n'),
        ("a.csv", "text\na\nbb\nccc\n"),
        ("a.tsv", "id\ttext\n1\ta\n2\tbb\n3\tccc\n"),
        ("labelled.csv", "text,label\na,\nbb,7\nccc,x\n"),
    ],
)
def test_records_without_labels(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    heard = Recorder()
    split = opened(tmp_path / name, TEXTS, heard)
    assert sorted(split.arrays["length"].tolist()) == [1, 2, 3]
    told = [f"{tmp_path / name}: its column label is a label's, and is not read"]
    assert heard.infos == (told if "label" in content else [])


def test_fields_say_which_column_is_the_text_or_the_image(tmp_path: Path) -> None:
    lines = [{"body": "a" * number, "stars": number} for number in range(1, 4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    # The option is for every split of a run, those with labels too.
    split = opened(tmp_path / "a.jsonl", TEXTS, fields={"text": "body", "label": "sentiment"})
    assert sorted(split.arrays["length"].tolist()) == [1, 2, 3]
    with pytest.raises(DataError, match="--fields text=title: unknown column"):
        opened(tmp_path / "a.jsonl", TEXTS, fields={"text": "title"})
    draw(tmp_path / "pictures" / "1.png", 9)
    (tmp_path / "b.csv").write_text("photo\npictures/1.png\n")
    assert levels_of(opened(tmp_path / "b.csv", fields={"image": "photo"})) == [9]


@pytest.mark.parametrize(
    ("columns", "fields", "kept"),
    [
        (("text", "label"), {}, 1),
        (("text", "label", "y"), {}, 2),  # the label is the column of that name
        (("text", "y"), {}, 1),
        (("text", "target", "y"), {}, 3),  # either may be the label
        (("text", "stars"), {"label": "stars"}, 1),
        (("text", "label"), {"label": "stars"}, 1),
    ],
)
def test_a_label_is_no_part_of_a_record(
    columns: tuple[str, ...], fields: dict[str, str], kept: int, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(dict.fromkeys(columns, "x")))
    assert opened(tmp_path / "a.jsonl", FIELDS, fields=fields).arrays["fields"].tolist() == [kept]


def test_mnist_without_the_file_of_its_labels(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + np.array([4, 2, 2], dtype=">u4").tobytes()
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(16)))
    assert len(opened(tmp_path / "t10k-images-idx3-ubyte.gz")) == 4


# What cannot be opened


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    with pytest.raises(DataError, match=r"split: the split is empty; expected images in it$"):
        opened(tmp_path / "split")
    (tmp_path / "split" / "deep").mkdir()
    with pytest.raises(DataError, match=r"split: the split is empty; expected images in it$"):
        opened(tmp_path / "split")


@pytest.mark.parametrize("name", ["moved", "moved.npz"])
def test_what_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"{name}: no such file or folder; --unlabelled takes \.npz \(x\), .*a folder of im"
    ):
        opened(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", r'the split is empty; expected one JSON object per line, such as \{"text": ...\}'),
        ("a.jsonl", b"[1]", r"a\.jsonl, line 1: expected a JSON object, found a list"),
        ("a.csv", b"text\n", "the split is empty; expected at least one record"),
        ("a.npz", b"PK", r"not an \.npz file, or only a part of one; expected x uint8 \[n, h, w, 3\], written"),
        ("a.png", b"", r"a\.png: expected \.npz \(x\), .*a folder of images"),
    ],
)
def test_files_that_are_none(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        opened(tmp_path / name, TEXTS)


def test_an_image_that_cannot_be_read_is_named_or_left_out(tmp_path: Path) -> None:
    for level in range(3):
        draw(tmp_path / "split" / f"{level}.png", level)
    (tmp_path / "split" / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError, match=r"broken\.png: this image does not decode"):
        opened(tmp_path / "split")
    os.symlink(tmp_path / "moved", tmp_path / "split" / "lost.png")
    heard = Recorder()
    assert sorted(levels_of(opened(tmp_path / "split", heard=heard, skips=True))) == [0, 1, 2]
    assert len(heard.warnings) == 2
    assert heard.warnings[0] == f"{tmp_path / 'split'}: 1 image that is not there left out: lost.png"
    assert "1 of 4 records are left out, as they cannot be read (--bad-samples skip): broken.png" in heard.warnings[1]
