"""The splits of a run: some of the classes, a part held out, records that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mixopt import compare, load_spec, report
from mixopt.assemble import open_splits
from mixopt.assemble.family import family_of
from mixopt.data import open_split
from mixopt.data.source import Reading
from mixopt.errors import DataError
from mixopt.values.samples import Encoding, Samples
from tests.conftest import CLASSES, make_images
from tests.listening import Recorder

LENGTHS = Encoding(lambda record: {"n": len(record["text"])}, lambda arrays: arrays, "lengths")
LEVELS = Encoding(lambda image: {"n": int(image[0, 0, 0])}, lambda arrays: arrays, "levels")


def splits_of(pool: Path, cache: Path, heard: Recorder, **options: Any) -> dict[str, Samples]:
    spec = load_spec({"models": pool, "cache": cache, **options})
    return open_splits(spec, family_of(spec), heard.listener)


def write_some(folder: Path, classes: tuple[str, ...]) -> Path:
    arrays = make_images(40, seed=7)
    for number, (pixels, label) in enumerate(zip(arrays["x"], arrays["y"], strict=True)):
        if CLASSES[label] in classes:
            path = folder / CLASSES[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


def test_a_test_split_may_have_some_of_the_classes(clip_pool: Path, tmp_path: Path) -> None:
    some = write_some(tmp_path / "some", CLASSES[1:3])
    heard = Recorder()
    data = {"search": clip_pool / "val.npz", "test": {"some": some}}
    split = splits_of(clip_pool, tmp_path / "cache", heard, data=data)["some"]
    assert split.among == (1, 2)
    assert set(split.labels.tolist()) == {1, 2}
    assert any("has 2 of the model's 4 classes; logits are restricted to these" in text for text in heard.infos)
    every = splits_of(clip_pool, tmp_path / "cache", heard, data=data, all_classes=True)["some"]
    assert every.among is None
    assert every.fingerprint != split.fingerprint
    with pytest.raises(DataError, match="missing: "):
        splits_of(clip_pool, tmp_path / "cache", heard, data={"search": some})


def test_classes_called_by_codes(clip_pool: Path, tmp_path: Path) -> None:
    write_some(tmp_path / "coded", CLASSES)
    for number, name in enumerate(CLASSES):
        (tmp_path / "coded" / name).rename(tmp_path / "coded" / f"n{number}")
    (tmp_path / "map.txt").write_text("".join(f"n{number} {name}\n" for number, name in enumerate(CLASSES)))
    data = {"search": tmp_path / "coded"}
    heard = Recorder()
    with pytest.raises(DataError, match="--class-map FILE"):
        splits_of(clip_pool, tmp_path / "cache", heard, data=data)
    split = splits_of(clip_pool, tmp_path / "cache", heard, data=data, class_map=tmp_path / "map.txt")["validation"]
    write_some(tmp_path / "named", CLASSES)
    named = splits_of(clip_pool, tmp_path / "cache", heard, data={"search": tmp_path / "named"})["validation"]
    assert labels_of(split) == labels_of(named)


def labels_of(split: Samples) -> dict[bytes, int]:
    return {digest.tobytes(): int(label) for digest, label in zip(split.digests, split.labels, strict=True)}


# A part held out


def test_a_share_selects_in_proportion_to_the_classes(clip_pool: Path, tmp_path: Path) -> None:
    heard = Recorder()
    whole = splits_of(clip_pool, tmp_path / "cache", heard)
    assert not heard.infos
    part = splits_of(clip_pool, tmp_path / "cache", heard, holdout=0.25)
    count = round(len(whole["validation"]) * 0.25)
    assert len(part["validation"]) == count
    assert part["validation"].fingerprint == whole["validation"].first(count).fingerprint
    assert part["test"].fingerprint == whole["test"].fingerprint, "the rest are whole"
    (told,) = heard.infos
    assert told.startswith(f"{clip_pool / 'val.npz'}: {count} of its {len(whole['validation'])} records are taken")
    assert "(--holdout 0.25)" in told
    again = Recorder()
    splits_of(clip_pool, tmp_path / "cache", again, holdout=0.25)
    assert again.infos == [told]
    assert part["validation"].notes == (told.partition(": ")[2],)


def test_what_is_held_out_of_is_no_test_split(clip_pool: Path, tmp_path: Path) -> None:
    data = {"search": clip_pool / "val.npz", "test": {"whole": clip_pool / "val.npz"}}
    with pytest.raises(DataError, match=r"test split whole\): --holdout takes the validation split from it"):
        splits_of(clip_pool, tmp_path / "cache", Recorder(), data=data, holdout=0.2)


# Records that cannot be read


def opened(path: Path, encoding: Encoding, heard: Recorder, skips: bool = True) -> Samples:
    return open_split(
        path,
        "test",
        encoding,
        classnames=None,
        cache=path.parent / "cache",
        reading=Reading(skips=skips),
        listener=heard.listener,
    )


def broken_folder(folder: Path) -> Path:
    for level in range(12):
        path = folder / "split" / "ab"[level % 2] / f"{level}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 3), (level,) * 3).save(path)
    (folder / "split" / "a" / "4.png").write_bytes(b"")
    (folder / "split" / "b" / "7.png").write_bytes((folder / "split" / "b" / "5.png").read_bytes()[:40])
    return folder / "split"


def test_images_that_do_not_decode_are_errors_or_left_out_and_told_each_time(tmp_path: Path) -> None:
    path = broken_folder(tmp_path)
    with pytest.raises(DataError, match=r"(4|7)\.png: this image does not decode"):
        opened(path, LEVELS, Recorder(), skips=False)
    for _ in range(2):
        heard = Recorder()
        split = opened(path, LEVELS, heard)
        assert sorted(split.arrays["n"].tolist()) == [0, 1, 2, 3, 5, 6, 8, 9, 10, 11]
        assert [label == level % 2 for label, level in zip(split.labels, split.arrays["n"], strict=True)] == [True] * 10
        (told,) = heard.warnings
        assert told.startswith(f"{path}: 2 of 12 records are left out, as they cannot be read (--bad-samples skip): ")
        assert "this image does not decode" in told


def test_links_that_lead_nowhere_are_left_out_too(tmp_path: Path) -> None:
    path = broken_folder(tmp_path)
    (path / "a" / "lost.png").symlink_to(tmp_path / "moved")
    heard = Recorder()
    assert len(opened(path, LEVELS, heard)) == 10
    assert heard.warnings[0] == f"{path}: 1 image that is not there left out: a/lost.png"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("split.csv", "text,label\na,0\nbb\nccc,1\ndddd,\neeeee,0\n"),
        ("split.jsonl", '{"text": "a", "label": 0}\n{"text": \n{"text": "ccc", "label": 1}\n{"text": "dddd"}\n'
                        '{"text": "eeeee", "label": 0}\n'),
    ],
)  # fmt: skip
def test_lines_that_are_no_records(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}, line (3|2)"):
        opened(tmp_path / name, LENGTHS, Recorder(), skips=False)
    for _ in range(2):
        heard = Recorder()
        split = opened(tmp_path / name, LENGTHS, heard)
        assert sorted(split.arrays["n"].tolist()) == [1, 3, 5]
        assert dict(zip(split.arrays["n"].tolist(), split.labels.tolist(), strict=True)) == {1: 0, 3: 1, 5: 0}
        (told,) = heard.warnings
        assert "2 of 5 records are left out, as they cannot be read (--bad-samples skip): line " in told


def test_where_none_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "split.jsonl").write_text('{"a": 1, "label": 0}\n{"a": 2, "label": 1}\n')
    with pytest.raises(DataError, match=r"none of 2 records can be read; the first: .*looks for 'text'"):
        opened(tmp_path / "split.jsonl", LENGTHS, Recorder())


def test_skipping_does_not_hide_that_memory_is_short(tmp_path: Path) -> None:
    def encode(record: Any) -> Any:
        raise DataError("no room") from MemoryError()

    (tmp_path / "split.jsonl").write_text('{"text": "a", "label": 0}\n')
    with pytest.raises(DataError, match="no room"):
        opened(tmp_path / "split.jsonl", Encoding(encode, lambda arrays: arrays, "none"), Recorder())


def test_a_split_with_nothing_to_skip_is_the_same(tmp_path: Path) -> None:
    np.savez(tmp_path / "split.npz", **make_images(20, seed=1))
    heard = Recorder()
    found = [opened(tmp_path / "split.npz", LEVELS, heard, skips).fingerprint for skips in (False, True)]
    assert found[0] == found[1]
    assert not heard.told


def test_reports_and_cards_say_what_was_done_to_a_split(clip_pool: Path, tmp_path: Path) -> None:
    found = compare(
        clip_pool,
        out=tmp_path / "run",
        methods=("uniform",),
        holdout=0.5,
        cache=tmp_path / "cache",
        device="cpu",
        precision="fp32",
    )
    (note,) = found.report.splits["validation"].notes
    assert "records are taken, each class in proportion (--holdout 0.5)" in note
    assert report(tmp_path / "run").splits["validation"].notes == (note,)
    assert "each class in proportion (--holdout 0.5)" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
