"""Data sources: decoded once, in the fixed order, matched to the model's classes."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from mixopt import load_spec
from mixopt.assemble import open_splits
from mixopt.assemble.family import family_of
from mixopt.data import folder, npz, open_split
from mixopt.data.source import Reading
from mixopt.errors import DataError
from mixopt.families import FamilyOptions, open_family
from mixopt.families.image_encoding import image_encoding
from mixopt.families.open_clip import OpenClip
from mixopt.values.samples import Preprocess, Samples, sample_digest, stratified_order
from tests.conftest import CLASSES, CLIP_CONFIG, make_images, permissions_bind
from tests.listening import Recorder

ANY_SIZE = image_encoding(Preprocess(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), lambda image: image, "any size"))


# Of `source`, as the very first version took them.
PINNED = {
    ".npz": "872070a89d8821ff77547c0ad7f58838d75cf21790790b7bf09efa12b2686e90",
    "": "0001c5a728be025b8a192c215940599a72eb85cd4adb0d999ef582bf8a25a828",
}


@pytest.fixture(params=["npz", "folder"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same 40 images as one file or as class folders."""
    return write_source(tmp_path, request.param)


def write_source(folder: Path, kind: str, count: int = 40, seed: int = 0, size: int | None = None) -> Path:
    arrays = make_images(count, seed)
    if size is not None:
        arrays["x"] = np.stack([np.asarray(Image.fromarray(x).resize((size, size))) for x in arrays["x"]])
    if kind == "npz":
        np.savez(folder / "split.npz", **arrays)
        return folder / "split.npz"
    for number, (pixels, label) in enumerate(zip(arrays["x"], arrays["y"], strict=True)):
        path = folder / "split" / CLASSES[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder / "split"


def opened(path: Path, **options: Any) -> Samples:
    given: dict[str, Any] = {"classnames": CLASSES, "cache": path.parent / "cache", "encoding": ANY_SIZE, **options}
    return open_split(path, "validation", **given)


def pairs(split: Samples) -> set[tuple[bytes, int]]:
    """Images and labels without their order."""
    return {(image.tobytes(), int(label)) for image, label in zip(split.arrays["images"], split.labels, strict=True)}


def test_holds_the_source_pixels_and_labels(source: Path) -> None:
    arrays = make_images(40, seed=0)
    split = opened(source)
    assert split.arrays["images"].shape == (40, 16, 16, 3)
    assert split.arrays["images"].dtype == np.uint8
    assert pairs(split) == {(x.tobytes(), int(y)) for x, y in zip(arrays["x"], arrays["y"], strict=True)}
    assert split.source == str(source)


def test_is_memory_mapped(source: Path) -> None:
    split = opened(source)
    assert isinstance(split.arrays["images"], np.memmap)
    assert isinstance(split.first(3).arrays["images"], np.memmap)


def test_second_open_decodes_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(source)

    def refuse(path: Path, reading: Reading) -> None:
        raise AssertionError(f"{path} was opened again")

    monkeypatch.setattr("mixopt.data.npz.open_source", refuse)
    monkeypatch.setattr("mixopt.data.folder.open_source", refuse)
    second = opened(source)
    assert second.fingerprint == first.fingerprint
    assert np.array_equal(second.arrays["images"], first.arrays["images"])
    with pytest.raises(AssertionError, match="opened again"):
        opened(source, cache=source.parent / "another cache")


def test_changed_source_is_decoded_anew(source: Path) -> None:
    first = opened(source)
    kept = np.array(first.arrays["images"])
    write_source(source.parent, "npz" if source.suffix else "folder", seed=1)
    second = opened(source)
    arrays = make_images(40, seed=1)
    assert {pixels for pixels, _ in pairs(second)} >= {x.tobytes() for x in arrays["x"]}
    assert second.fingerprint != first.fingerprint
    assert np.array_equal(first.arrays["images"], kept), "what was opened before stays as it was"


@pytest.mark.parametrize("file", ["images.npy", "labels.npz"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "text", "shorter"])
def test_damaged_copy_is_decoded_anew(tmp_path: Path, file: str, damage: str) -> None:
    source = write_source(tmp_path, "npz")
    expected = opened(source)
    (stored,) = (tmp_path / "cache").rglob(file)
    pixels, fingerprint = np.array(expected.arrays["images"]), expected.fingerprint
    if damage == "truncated":
        os.truncate(stored, stored.stat().st_size - 10)
    elif damage == "empty":
        os.truncate(stored, 0)
    elif damage == "missing":
        stored.unlink()
    elif damage == "text":
        stored.write_text("no array")
    elif file == "images.npy":
        np.save(stored, pixels[:7])
    else:
        with np.load(stored) as whole:
            meta = whole["meta"]
        np.savez(stored, digests=expected.digests[:7], labels=expected.labels[:7], meta=meta)
    again = opened(source)
    assert again.fingerprint == fingerprint
    assert np.array_equal(again.arrays["images"], pixels)
    assert opened(source).fingerprint == fingerprint


def test_failed_decoding_leaves_nothing(tmp_path: Path) -> None:
    source = write_source(tmp_path, "folder")
    broken = next(source.rglob("*.png"))
    content = broken.read_bytes()
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"\.png: this image does not decode"):
        opened(source)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    broken.write_bytes(content)
    assert len(opened(source)) == 40


def test_images_of_different_sizes_need_a_family_that_says_one(tmp_path: Path) -> None:
    source = write_source(tmp_path, "folder")
    Image.new("RGB", (20, 16)).save(source / "red" / "wide.png")
    with pytest.raises(DataError, match="different sizes"):
        opened(source)


def test_preprocess_of_another_shape_than_promised(tmp_path: Path) -> None:
    wrong = Preprocess((8, 8), (0.0,) * 3, (1.0,) * 3, lambda image: image, "does nothing")
    with pytest.raises(DataError, match=r"gives \[16, 16, 3\], expected \[8, 8, 3\]"):
        opened(write_source(tmp_path, "npz"), encoding=image_encoding(wrong))


def test_limit_is_a_prefix_with_another_fingerprint(source: Path) -> None:
    whole, part = opened(source), opened(source).first(11)
    assert len(part) == 11
    assert np.array_equal(part.arrays["images"], whole.arrays["images"][:11])
    assert np.array_equal(part.labels, whole.labels[:11])
    assert part.fingerprint != whole.fingerprint
    assert whole.first(1000).fingerprint == whole.fingerprint


def test_order_is_stratified_whatever_the_order_of_the_source(tmp_path: Path) -> None:
    arrays = make_images(60, seed=0)
    order = np.argsort(arrays["y"], kind="stable")
    np.savez(tmp_path / "sorted.npz", x=arrays["x"][order], y=arrays["y"][order])
    split = opened(tmp_path / "sorted.npz")
    shares = np.bincount(split.labels, minlength=4) / 60
    for count in range(1, 61):
        found = np.bincount(split.labels[:count], minlength=4)
        assert np.all(np.abs(found - count * shares) < 1 + 4 * shares)


# Sizes and pixels


def clip_preprocess() -> Preprocess:
    family = open_family(FamilyOptions("open_clip", CLIP_CONFIG, CLASSES, None, Path()))
    assert isinstance(family, OpenClip)
    return family.preprocess


@pytest.mark.parametrize("size", [(16, 16), (40, 40), (37, 23), (9, 30)])
def test_pixels_are_those_of_open_clips_own_transform(tmp_path: Path, size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    folder = tmp_path / "split"
    expected = {}
    transform = image_transform_v2(PreprocessCfg(size=16, mean=(0.5,) * 3, std=(0.25,) * 3), is_train=False)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        image = Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
        image.save(folder / name / "0.png")
        expected[number] = transform(image).numpy()
    preprocess = clip_preprocess()
    assert (preprocess.mean, preprocess.std) == ((0.5,) * 3, (0.25,) * 3)
    split = opened(folder, encoding=image_encoding(preprocess))
    for pixels, label in zip(split.arrays["images"], split.labels, strict=True):
        normalised = (pixels.transpose(2, 0, 1) / np.float32(255) - 0.5) / 0.25
        np.testing.assert_allclose(normalised, expected[int(label)], atol=1e-6)


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_resizing_is_told_each_time(tmp_path: Path, kind: str) -> None:
    source = write_source(tmp_path, kind, size=20)
    for _ in range(2):
        heard = Recorder()
        opened(source, encoding=image_encoding(clip_preprocess()), listener=heard.listener)
        (text,) = (said for said in heard.infos if "resized" in said)
        for part in (str(source), "20x20", "16x16"):
            assert part in text


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for name, mode in zip(CLASSES, ("L", "RGBA", "P", "1"), strict=True):
        (tmp_path / "split" / name).mkdir(parents=True)
        Image.new(mode, (16, 16), 1).save(tmp_path / "split" / name / "0.png")
    assert opened(tmp_path / "split").arrays["images"].shape == (4, 16, 16, 3)


# Classes


def test_folder_names_match_class_names(tmp_path: Path) -> None:
    classnames = ("fire truck", "T-shirt", "ice cream")
    for number, name in enumerate(("ice-cream", "fire_truck", "t_shirt")):
        (tmp_path / "split" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "split" / name / "0.png")
    heard = Recorder()
    split = opened(tmp_path / "split", classnames=classnames, listener=heard.listener)
    found = {
        int(image[0, 0, 0]): classnames[label]
        for image, label in zip(split.arrays["images"], split.labels, strict=True)
    }
    assert found == {0: "ice cream", 1: "fire truck", 2: "T-shirt"}
    assert len(heard.told) == 1
    assert "matched by name" in heard.told[0]


def test_classes_in_the_models_order_are_not_talked_about(tmp_path: Path) -> None:
    heard = Recorder()
    opened(write_source(tmp_path, "npz"), listener=heard.listener)
    assert heard.told == []


def test_class_names_that_stand_there_twice_are_legal_in_the_models_order(tmp_path: Path) -> None:
    twice = ("crane", "crane", "wren", "owl")  # as in ImageNet's older lists
    arrays = make_images(20, seed=0)
    np.savez(tmp_path / "split.npz", **{**arrays, "classes": np.array(twice)})
    assert pairs(opened(tmp_path / "split.npz", classnames=twice)) == {
        (x.tobytes(), int(y)) for x, y in zip(arrays["x"], arrays["y"], strict=True)
    }
    with pytest.raises(DataError, match="twice"):
        opened(tmp_path / "split.npz", classnames=twice[::-1])


def test_classes_as_bytes_are_text(tmp_path: Path) -> None:
    arrays = make_images(20, seed=0)
    np.savez(tmp_path / "split.npz", **{**arrays, "classes": np.array([name.encode() for name in CLASSES])})
    assert np.bincount(opened(tmp_path / "split.npz").labels, minlength=4).tolist() == (
        np.bincount(arrays["y"], minlength=4).tolist()
    )


def test_without_class_names_labels_stay(tmp_path: Path) -> None:
    split = opened(write_source(tmp_path, "npz"), classnames=None)
    assert pairs(split) == pairs(opened(tmp_path / "split.npz"))


# Overlap


def test_overlap_with_the_selection_split_warns(clip_pool: Path, tmp_path: Path) -> None:
    ours, theirs = make_images(96, seed=0), make_images(30, seed=9)
    images, labels = (np.concatenate([ours[key][:5], theirs[key]]) for key in ("x", "y"))
    np.savez(clip_pool / "test.npz", x=images, y=labels)
    heard = Recorder()
    spec = load_spec({"models": clip_pool, "cache": tmp_path / "cache"})
    splits = open_splits(spec, family_of(spec), heard.listener)
    assert list(splits) == ["validation", "test", "shift"]
    assert splits["test"].shared_with(splits["validation"]) == 5
    assert splits["shift"].shared_with(splits["validation"]) == 0
    warnings = heard.warnings
    assert warnings == ["5 images of test split test are in the validation split too"]


def test_selection_split_of_one_label_warns(clip_pool: Path, tmp_path: Path) -> None:
    arrays = make_images(20, seed=0)
    np.savez(clip_pool / "val.npz", x=arrays["x"], y=np.full(20, 2))
    heard = Recorder()
    spec = load_spec({"models": clip_pool, "cache": tmp_path / "cache"})
    open_splits(spec, family_of(spec), heard.listener)
    assert any("all 20 samples have one label" in text for text in heard.warnings)


# The order's laws

labels_of_some_classes = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(
    lambda values: np.array(values, dtype=np.int64)
)


@settings(max_examples=80, deadline=None)
@given(labels_of_some_classes)
def test_stratified_order_is_a_permutation_with_fair_prefixes(labels: NDArray[np.int64]) -> None:
    order = stratified_order(labels)
    assert sorted(order.tolist()) == list(range(len(labels)))
    assert np.array_equal(order, stratified_order(labels.copy()))
    classes = np.unique(labels)
    places = labels[order]
    for label in classes:
        share = float(np.mean(labels == label))
        found = np.cumsum(places == label)
        wanted = share * np.arange(1, len(labels) + 1)
        assert np.all(np.abs(found - wanted) <= 1 + share * len(classes) + 1e-9)


def test_stratified_order_is_random_within_a_class() -> None:
    labels = np.zeros(100, dtype=np.int64)
    order = stratified_order(labels)
    assert not np.array_equal(order, np.arange(100))
    assert not np.array_equal(order, stratified_order(labels, seed=1))


def test_stratified_order_does_not_visit_classes_in_turn() -> None:
    labels = np.tile(np.arange(10), 30)
    firsts = labels[stratified_order(labels)][:10]
    assert sorted(firsts.tolist()) == list(range(10))
    assert firsts.tolist() != list(range(10))


def test_fingerprints_of_images_are_those_of_earlier_versions(source: Path) -> None:
    """Outcomes are cached by them."""
    assert opened(source).fingerprint == PINNED[source.suffix]


def test_digests_of_images_are_of_their_pixels_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    expected = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    assert sample_digest({"images": image}) == expected
    assert sample_digest({"pixels": image}) != expected


def test_digests_tell_names_dtypes_shapes_and_bytes_apart() -> None:
    tokens, marks = np.arange(6, dtype=np.int64), np.zeros(2)
    first = sample_digest({"tokens": tokens, "marks": marks})
    assert sample_digest({"marks": marks.copy(), "tokens": tokens.copy()}) == first, "whatever the order"
    others: list[dict[str, NDArray[Any]]] = [
        {"tokens": tokens},
        {"tokens": tokens, "words": marks},
        {"tokens": tokens.astype(np.int32), "marks": marks},
        {"tokens": tokens.reshape(2, 3), "marks": marks},
        {"tokens": tokens[::-1], "marks": marks},
        {"tokens": tokens[:5], "marks": marks},
    ]
    assert len({first, *map(sample_digest, others)}) == 1 + len(others)


@pytest.mark.parametrize("change", ["image", "label", "order"])
def test_fingerprint_follows_content(change: str) -> None:
    random = np.random.default_rng(0)
    digests = random.integers(0, 256, (6, 16), dtype=np.uint8)
    images = {"images": np.zeros((6, 2, 2, 3), np.uint8)}
    labels = np.arange(6)
    split = Samples("validation", "here", images, labels, digests)
    assert Samples("other", "there", images, labels, digests).fingerprint == split.fingerprint
    changes: dict[str, Callable[[], Samples]] = {
        "image": lambda: Samples("validation", "here", images, labels, digests ^ np.uint8(1)),
        "label": lambda: Samples("validation", "here", images, labels[::-1].copy(), digests),
        "order": lambda: Samples("validation", "here", images, labels[::-1].copy(), digests[::-1]),
    }
    assert changes[change]().fingerprint != split.fingerprint


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (
            {"x": np.zeros((4, 0, 8, 3), np.uint8), "y": np.zeros(4, np.int64)},
            "images of 1 x 1 pixels or more",
        ),
        ({"x": np.zeros((4, 8, 8, 3), np.uint8), "y": np.zeros(4, np.int64), "classes": np.array([b"\xff"])}, "UTF-8"),
    ],
    ids=["no height", "classes"],
)
def test_arrays_that_no_model_takes(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "val.npz", **arrays)
    with pytest.raises(DataError, match=rf"val\.npz: .*{says}"):
        npz.open_source(tmp_path / "val.npz", Reading())


@pytest.mark.parametrize("name", ["val.npz", "val.jsonl", "val.txt"])
def test_what_stands_in_a_splits_place_is_named(tmp_path: Path, name: str) -> None:
    for content, says in (
        ("version https://git-lfs.github.com/spec/v1\nsize 1\n", "a git-LFS pointer.*; run git lfs pull"),
        ("<html><body>404</body></html>", "an HTML page.*; download the file again"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=rf"{name}: no split but {says}"):
            opened(tmp_path / name)


def test_images_that_are_something_else_are_not_handed_to_other_programs(tmp_path: Path) -> None:
    """Pillow opens PostScript by its content, and runs Ghostscript to draw it."""
    (tmp_path / "split" / "a").mkdir(parents=True)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (tmp_path / "split" / "a" / "x.png").write_bytes(script)
    with pytest.raises(DataError, match=r"x\.png: this image does not decode"):
        folder.open_source(tmp_path / "split", Reading()).load(0)


def test_an_image_that_declares_more_pixels_than_is_safe_is_named(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10**5, 10**5, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    (tmp_path / "split" / "a").mkdir(parents=True)
    (tmp_path / "split" / "a" / "bomb.png").write_bytes(bomb)
    with pytest.raises(DataError, match=r"bomb\.png: this image does not decode .*10000000000 pixels"):
        folder.open_source(tmp_path / "split", Reading()).load(0)


@pytest.mark.skipif(not permissions_bind(), reason="permissions do not bind this user")
def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    for name in ("a", "b/below"):
        (tmp_path / "split" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "split" / name / "x.png")
    (tmp_path / "split" / "b" / "below").chmod(0)
    try:
        with pytest.raises(DataError, match=r"below: cannot be listed \(Permission denied\); check its permissions"):
            folder.files(tmp_path / "split", Reading())
    finally:
        (tmp_path / "split" / "b" / "below").chmod(0o700)


def test_images_below_class_folders_are_found(tmp_path: Path) -> None:
    for name in ("a/x.png", "a/deep/er/y.png", "b/z.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in folder.files(tmp_path, Reading()).files] == ["y.png", "x.png", "z.png"]
