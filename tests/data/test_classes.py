"""A split's classes and the model's: by name, by code, some of them or all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt.data.class_map import read_class_map
from mixopt.data.classes import Matched, match_classes
from mixopt.data.source import Reading
from mixopt.errors import DataError
from tests.listening import Recorder

MODEL = ("tench", "goldfish", "great white shark", "hen")
HERE = Path("split")


def matched(
    classes: Sequence[str] | None,
    labels: Sequence[int] | None = None,
    wanted: Sequence[str] | None = MODEL,
    heard: Recorder | None = None,
    **reading: Any,
) -> Matched:
    numbers = np.array(range(len(classes or ())) if labels is None else labels, dtype=np.int64)
    return match_classes(HERE, numbers, classes, wanted, Reading(**reading), (heard or Recorder()).listener)


def test_some_of_the_classes_are_scored_among_these() -> None:
    heard = Recorder()
    found = matched(["Hen", "goldfish"], [0, 1, 1], heard=heard, takes_some=True)
    assert found.labels.tolist() == [3, 1, 1]
    assert found.among == (1, 3)
    assert found.classes == MODEL
    assert heard.infos == [
        "split: has 2 of the model's 4 classes; logits are restricted to these (--all-classes scores over all)"
    ]


def test_names_that_differ_by_case_alone_are_two_classes() -> None:
    found = matched(["red", "Red"], wanted=["Red", "blue", "red"], takes_some=True)
    assert found.among == (0, 2)
    assert found.labels.tolist() == [2, 0]


def test_all_classes_on_demand() -> None:
    heard = Recorder()
    found = matched(["hen", "goldfish"], heard=heard, takes_some=True, restricts=False)
    assert (found.labels.tolist(), found.among) == ([3, 1], None)
    assert heard.infos == ["split: has 2 of the model's 4 classes; scored over all 4 (--all-classes)"]


def test_the_split_that_selects_needs_all() -> None:
    with pytest.raises(
        DataError, match=r"expected tench, .*; found hen, goldfish \(missing: tench, great white shark\)"
    ):
        matched(["hen", "goldfish"])


@pytest.mark.parametrize("takes_some", [False, True])
def test_a_class_unknown_to_the_model_is_an_error(takes_some: bool) -> None:
    with pytest.raises(DataError, match=r"\(unknown: wolf\)\. Correct classnames .*: --class-map FILE"):
        matched([*MODEL, "wolf"], takes_some=takes_some)


def test_one_class_alone_tells_nothing() -> None:
    with pytest.raises(
        DataError, match="has 1 of the model's 4 classes, among which every answer is right; --all-classes"
    ):
        matched(["hen"], takes_some=True)
    assert matched(["hen"], takes_some=True, restricts=False).labels.tolist() == [3]


def test_classes_that_are_declared_without_samples_count() -> None:
    assert matched(MODEL[::-1], [0, 0, 1]).labels.tolist() == [3, 3, 2]
    assert matched(MODEL[::-1], [0, 0, 1], takes_some=True).among is None


def test_names_of_which_the_model_has_only_the_first() -> None:
    names = ("tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark, white shark", "hen")
    assert matched(names[::-1]).labels.tolist() == [3, 2, 1, 0]
    assert matched(MODEL[::-1], wanted=names).labels.tolist() == [3, 2, 1, 0]
    with pytest.raises(DataError, match="two of which are one of the model's"):
        matched(["hen", "hen, female", *MODEL[:3]])


# Numbers for names


def test_numbers_of_all_classes_are_taken_as_such_and_told() -> None:
    heard = Recorder()
    assert matched(["0", "1", "2", "3"], [3, 0], heard=heard).labels.tolist() == [3, 0]
    assert heard.infos == ["split: its classes are called by the numbers of the model's, 0, 1, 2, 3"]
    names = tuple(f"class {number}" for number in range(12))
    padded = [f"{number:02}" for number in range(12)]
    assert matched(padded, wanted=names).labels.tolist() == list(range(12))


@pytest.mark.parametrize(
    "classes",
    [
        ["1", "2", "3", "4"],
        ["0", "1", "3"],
        sorted(map(str, range(12))),  # models trained on such folders have them in this order
    ],
)
def test_numbers_in_doubt_need_a_map(classes: list[str]) -> None:
    wanted = MODEL if len(classes) < 5 else tuple(f"class {number}" for number in range(12))
    with pytest.raises(DataError, match=r"unknown: .*--class-map FILE"):
        matched(classes, wanted=wanted, takes_some=True)
    codes = {name: int(name) for name in classes if int(name) < len(wanted)}
    if len(codes) == len(classes):
        assert matched(classes, wanted=wanted, codes=codes, takes_some=True).labels.tolist() == [*map(int, classes)]


def test_codes_stand_for_names_or_numbers() -> None:
    codes = {"n01": "tench", "n02": 1, "n03": "great white shark", "n04": 3, "n99": "wolf"}
    assert matched(["n04", "n03", "n02", "n01"], codes=codes).labels.tolist() == [3, 2, 1, 0]
    assert matched(["n04", "n02"], codes=codes, takes_some=True).among == (1, 3)
    with pytest.raises(DataError, match="unknown: wolf"):
        matched(["n01", "n99"], codes=codes, takes_some=True)
    with pytest.raises(DataError, match="unknown: 7"):
        matched(["n01", "n02"], codes={**codes, "n02": 7}, takes_some=True)


def test_codes_tell_names_apart_that_the_model_has_twice() -> None:
    wanted = ("crane", "crane", "wren")
    with pytest.raises(DataError, match="the model has crane twice"):
        matched(["crane", "wren"], wanted=wanted, takes_some=True)
    codes = {"n1": 0, "n2": 1, "n3": 2}
    assert matched(["n3", "n2", "n1"], wanted=wanted, codes=codes).labels.tolist() == [2, 1, 0]


def test_codes_where_nobody_knows_the_models_classes() -> None:
    assert matched(["a", "b"], wanted=None, codes={"a": "hen", "b": "owl"}).classes == ("hen", "owl")
    assert matched(["a", "b"], wanted=None, codes={"a": 5, "b": 2}).labels.tolist() == [5, 2]
    with pytest.raises(DataError, match="gives no number for b"):
        matched(["a", "b"], wanted=None, codes={"a": 5})


# The file


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("map.txt", "\ufeffn01 tench, Tinca\r\n\nn02\ta hen\n", {"n01": "tench, Tinca", "n02": "a hen"}),
        ("map.txt", "n01 0\nn02 1\n", {"n01": 0, "n02": 1}),
        ("map.csv", 'n01,"tench, Tinca"\nn02,hen, a bird\n', {"n01": "tench, Tinca", "n02": "hen, a bird"}),
        ("map.tsv", "n01\ttench\n", {"n01": "tench"}),
        ("map.json", json.dumps({"n01": "tench", "n02": "hen"}), {"n01": "tench", "n02": "hen"}),
        ("map.json", json.dumps({"0": ["n01", "tench"], "1": ["n02", "hen"]}), {"n01": 0, "n02": 1}),
        ("map.json", json.dumps(["tench", "hen"]), {"0": "tench", "1": "hen"}),
        ("config.json", json.dumps({"model_type": "vit", "id2label": {"0": "tench"}}), {"0": "tench"}),
        ("map.json", json.dumps({"label2id": {"n01": 4}}), {"n01": 4}),
    ],
)
def test_class_maps_of_every_form(tmp_path: Path, name: str, text: str, expected: dict[str, Any]) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_class_map(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("map.txt", "", "names no class"),
        ("map.txt", "n01 tench\nn02\n", "line 2: n02 stands for nothing"),
        ("map.txt", "n01 tench\nn01 hen\n", "n01 stands for both tench and hen"),
        ("map.csv", 'n01,"tench', "cells cannot be told apart"),
        ("map.json", "7", "found a int"),
        ("map.json", "{", "not JSON"),
        ("map.json", '{"n01": null}', "n01 stands for None"),
        ("map.json", '{"n01": -1}', "n01 stands for -1"),
        ("map.json", '{"0": [1, 2]}', r"0 stands for \[1, 2\]"),
    ],
)
def test_class_maps_that_are_none(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}.*{says}"):
        read_class_map(tmp_path / name)
