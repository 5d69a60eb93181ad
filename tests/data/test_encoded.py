"""Records that a family encodes: any arrays, padded where they differ in length, kept and read again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.data import open_split
from mixopt.data.encoded_store import load_decoded, write_decoded
from mixopt.data.shifts import open_shifted
from mixopt.errors import DataError
from mixopt.families.image_encoding import image_encoding
from mixopt.values.samples import Encoding, Preprocess, Samples
from tests.conftest import make_images

TEXTS = ["one", "", "three little words", "two words", "a b c d e f", "x"]
Encode = Callable[[Any], Any]


def encode(record: dict[str, str]) -> dict[str, Any]:
    """Of every kind: of any length, of a fixed shape, a number."""
    words = record["text"].split()
    return {
        "tokens": np.array([len(word) for word in words], dtype=np.int32),
        "grid": np.full((2, 3), len(words), dtype=np.float32),
        "upper": bool(record["text"].isupper()),
    }


def opened(folder: Path, encode: Encode = encode, texts: list[str] = TEXTS, key: str = "test") -> Samples:
    lines = [json.dumps({"text": text, "label": number % 2}) for number, text in enumerate(texts)]
    if not (folder / "split.jsonl").exists():
        (folder / "split.jsonl").write_text("\n".join(lines))
    encoding = Encoding(encode, lambda arrays: arrays, key)
    return open_split(folder / "split.jsonl", "validation", encoding, classnames=None, cache=folder / "cache")


def rows(split: Samples) -> list[list[int]]:
    """The tokens of each sample without the padding."""
    lengths = split.arrays["tokens_length"]
    return [row[:length].tolist() for row, length in zip(split.arrays["tokens"], lengths, strict=True)]


def test_arrays_are_kept_as_they_are_and_padded_with_zeros(tmp_path: Path) -> None:
    split = opened(tmp_path)
    assert list(split.arrays) == ["tokens", "grid", "upper", "tokens_length"]
    assert all(isinstance(array, np.memmap) for array in split.arrays.values())
    tokens, lengths = split.arrays["tokens"], split.arrays["tokens_length"]
    assert tokens.shape == (6, 6)
    assert tokens.dtype == np.int32
    assert lengths.dtype == np.int64
    assert sorted(rows(split)) == sorted([len(word) for word in text.split()] for text in TEXTS)
    assert all(not row[length:].any() for row, length in zip(tokens, lengths, strict=True))
    assert split.arrays["grid"].shape == (6, 2, 3)
    assert np.array_equal(split.arrays["grid"][:, 1, 2], lengths)
    assert split.arrays["upper"].dtype == np.bool_
    assert split.unit == "sample"


def test_second_open_encodes_nothing_and_another_key_all(tmp_path: Path) -> None:
    calls: list[Any] = []

    def counted(record: Any) -> Any:
        calls.append(record)
        return encode(record)

    first = opened(tmp_path, counted)
    before = len(calls)
    assert opened(tmp_path, counted).fingerprint == first.fingerprint
    assert len(calls) == before
    opened(tmp_path, counted, key="another")
    assert len(calls) == 2 * before


def test_a_sample_is_the_same_in_a_split_with_longer_ones(tmp_path: Path) -> None:
    (tmp_path / "longer").mkdir()
    short, long = opened(tmp_path), opened(tmp_path / "longer", texts=[*TEXTS[:3], "word " * 40])
    assert long.arrays["tokens"].shape[1] == 40
    assert short.shared_with(long) == 3
    assert len({row.tobytes() for row in short.digests}) == 6


def test_first_keeps_every_array_in_step(tmp_path: Path) -> None:
    split = opened(tmp_path)
    part = split.first(2)
    assert rows(part) == rows(split)[:2]
    assert {len(array) for array in part.arrays.values()} == {2}
    assert part.fingerprint != split.fingerprint


@pytest.mark.parametrize("file", ["tokens", "tokens_length", "grid", "labels"])
def test_damaged_copy_is_encoded_anew(tmp_path: Path, file: str) -> None:
    expected = opened(tmp_path)
    wanted, fingerprint = rows(expected), expected.fingerprint
    (stored,) = (path for path in (tmp_path / "cache").rglob(f"{file}.np*"))
    os.truncate(stored, stored.stat().st_size - 3)
    again = opened(tmp_path)
    assert rows(again) == wanted
    assert again.fingerprint == fingerprint


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(-5, 5), max_size=9), min_size=1, max_size=12))
def test_what_is_written_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, tokens: list[list[int]]) -> None:
    folder = tmp_path_factory.mktemp("kept")
    samples = [{"tokens": np.array(row, dtype=np.int16), "sum": np.array(sum(row))} for row in tokens]
    write_decoded(folder, samples, np.zeros(len(tokens), dtype=np.int64), None)
    found = load_decoded(folder)
    assert found is not None
    assert found.arrays["tokens_length"].tolist() == [len(row) for row in tokens]
    assert found.arrays["tokens"].shape == (len(tokens), max(1, *map(len, tokens), 0))
    for kept, row, total in zip(found.arrays["tokens"], tokens, found.arrays["sum"], strict=True):
        assert kept[: len(row)].tolist() == row
        assert not kept[len(row) :].any()
        assert total == sum(row)
    assert {path.name for path in folder.iterdir()} == {"tokens.npy", "tokens_length.npy", "sum.npy", "labels.npz"}


# What cannot be kept


def by_text(**made: Any) -> Encode:
    """Something else for one text than a number for each other."""
    return lambda record: made if record["text"] == "two words" else {"a": np.int64(1)}


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda record: {"a": record["txt"]}, "the family's encode looks for 'txt', the record has text"),
        (lambda record: [1, 2], "gives a list, expected named arrays, such as a dict"),
        (lambda record: {}, "gives a dict, expected named arrays"),
        (lambda record: {"a b": 1}, "gives an array called 'a b'; expected a name of letters"),
        (lambda record: {"../a": 1}, "array called '../a'"),
        (lambda record: {3: 1}, "array called 3"),
        (lambda record: {"a_length": 1}, "called 'a_length'; expected .* that does not end with _length"),
        (lambda record: {"a": "text"}, "gives a as <U4, expected bool, float16, "),
        (lambda record: {"a": None}, "gives a as object"),
        (lambda record: {"a": [[1], [1, 2]]}, "gives a as no array"),
        (by_text(a=1.5), "gives a as float64, but int64 for the first sample; .* dtype="),
        (by_text(b=1), "gives b, but a for the first sample"),
        (by_text(a=[1, 2]), r"gives a as \[2\], but \[\] for the first sample; only a one-dimensional"),
    ],
)
def test_what_cannot_be_kept_is_named(tmp_path: Path, made: Encode, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        opened(tmp_path, made)
    assert str(caught.value).startswith(f"{tmp_path / 'split.jsonl'}, line ")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_shapes_of_other_arrays_are_fixed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gives a as \[\d+, 2\], but \[\d+, 2\] for the first sample"):
        opened(tmp_path, lambda record: {"a": np.ones((1 + len(record["text"]), 2))})


def test_errors_of_the_familys_own_code_say_where(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        opened(tmp_path, lambda record: {"a": 1 // len(record["text"])})
    assert caught.value.__notes__ == [f"while encoding {tmp_path / 'split.jsonl'}, line 2"]
    with pytest.raises(KeyError, match=r"while encoding .*, line 6"):
        opened(tmp_path, lambda record: {"a": {}[record["text"]]})


def test_a_file_that_the_familys_encode_misses_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line \d: the family's encode fails \(.*No such file"):
        opened(tmp_path, lambda record: {"a": (tmp_path / "vocabulary").read_text()})


# Images and others


def test_records_for_a_family_of_images(tmp_path: Path) -> None:
    images = image_encoding(Preprocess(None, (0.0,) * 3, (1.0,) * 3, lambda image: image, "images"))
    with pytest.raises(DataError, match=r"line \d: expected an image, found a record with text; .*--fields image="):
        opened(tmp_path, images.encode)


def test_shifts_are_for_images_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not images \(tokens, grid, upper, .* leave it out, or give .*--select"):
        open_shifted(opened(tmp_path), "synthetic", tmp_path / "cache")


def test_images_that_a_family_encodes_its_own_way(tmp_path: Path) -> None:
    np.savez(tmp_path / "split.npz", **make_images(9, seed=0))
    encoding = Encoding(lambda image: {"images": image.transpose(2, 0, 1) / np.float32(255)}, lambda a: a, "planes")
    split = open_split(tmp_path / "split.npz", "test", encoding, classnames=None, cache=tmp_path / "cache")
    assert split.arrays["images"].shape == (9, 3, 16, 16)
    assert split.arrays["images"].dtype == np.float32
    assert split.unit == "sample", "nothing that could be shifted or shown"


def test_a_decoded_copy_of_another_size_is_refused() -> None:
    """Of a family whose size was changed, but not the key."""
    encoding = image_encoding(Preprocess((8, 8), (0.0,) * 3, (1.0,) * 3, lambda image: image, "unchanged"))
    with pytest.raises(DataError, match=r"are \[4, 6\], .* takes \[8, 8\]; give another preprocess another key"):
        encoding.collate({"images": torch.zeros(2, 4, 6, 3, dtype=torch.uint8)})
