"""The contract of a data source, for every one of them."""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mixopt.data import SOURCES, Source, SourceModule, open_split
from mixopt.errors import DataError
from mixopt.values.samples import Encoding

CLASSES = ("blue", "green", "red")
LABELS = [2, 0, 1, 0, 2, 2, 1]


def _npz(folder: Path) -> Path:
    images = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    np.savez(folder / "split.npz", x=images, y=LABELS, classes=np.array(CLASSES))
    return folder / "split.npz"


def _folder(folder: Path) -> Path:
    for number, label in enumerate(LABELS):
        (folder / "split" / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (number,) * 3).save(folder / "split" / CLASSES[label] / f"{number}.png")
    return folder / "split"


def _jsonl(folder: Path) -> Path:
    lines = [json.dumps({"number": number, "label": CLASSES[label]}) for number, label in enumerate(LABELS)]
    (folder / "split.jsonl").write_text("\n".join(lines))
    return folder / "split.jsonl"


# A newcomer adds what writes seven samples of these labels, each of which holds its number.
EXAMPLES: dict[str, Callable[[Path], Path]] = {"npz": _npz, "jsonl": _jsonl, "folder": _folder}
ENCODING = Encoding(lambda record: {"number": number_of(record)}, lambda arrays: arrays["number"], "numbers")


def number_of(record: Any) -> int:
    return int(record["number"] if isinstance(record, dict) else record[0, 0, 0])


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[SourceModule, Path]:
    module: Any = importlib.import_module(f"mixopt.data.{request.param}")
    assert request.param in EXAMPLES, f"add what writes a {request.param} split to EXAMPLES"
    return module, EXAMPLES[request.param](tmp_path)


def test_every_module_is_listed() -> None:
    folder = Path(inspect.getfile(open_split)).parent
    found = {path.stem for path in folder.glob("*.py") if "def open_source" in path.read_text()} - {"__init__"}
    assert found == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_module_has_the_contracts_functions(name: str) -> None:
    module = importlib.import_module(f"mixopt.data.{name}")
    for member in ("matches", "files", "open_source"):
        assert list(inspect.signature(getattr(module, member)).parameters) == ["path"]
    assert module.__doc__, "says what the source is"


def test_one_module_alone_opens_a_path(source: tuple[SourceModule, Path], tmp_path: Path) -> None:
    module, path = source
    assert [name for name in SOURCES if importlib.import_module(f"mixopt.data.{name}").matches(path)] == [
        str(vars(module)["__name__"]).rpartition(".")[2]
    ]
    assert not module.matches(tmp_path / "nothing")


def test_gives_labels_classes_and_records(source: tuple[SourceModule, Path]) -> None:
    module, path = source
    opened = module.open_source(path)
    assert isinstance(opened, Source)
    assert opened.classes == CLASSES
    assert opened.labels.dtype == np.int64
    numbers = [number_of(opened.load(place)) for place in range(len(opened.labels))]
    assert sorted(numbers) == list(range(7))
    assert [LABELS[number] for number in numbers] == opened.labels.tolist()
    assert all(isinstance(opened.where(place), str) for place in range(7))


def test_its_files_are_all_that_it_reads(source: tuple[SourceModule, Path]) -> None:
    module, path = source
    found = list(module.files(path).files)
    assert found == list(module.files(path).files)
    everything = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    assert sorted(found) == sorted(everything)


def test_opens_as_samples_whatever_their_order(source: tuple[SourceModule, Path], tmp_path: Path) -> None:
    _, path = source
    split = open_split(path, "validation", ENCODING, classnames=CLASSES[::-1], cache=tmp_path / "cache")
    numbers = split.arrays["number"]
    assert sorted(numbers.tolist()) == list(range(7))
    assert [CLASSES[LABELS[number]] for number in numbers] == [CLASSES[::-1][label] for label in split.labels]
    assert split.unit == "sample"
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"no such file or folder; --data takes an \.npz file, a \.jsonl file or"):
        open_split(path, "validation", ENCODING, classnames=CLASSES, cache=tmp_path / "cache")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"split\.csv: expected an \.npz file with x and y, a \.jsonl file"):
        open_split(tmp_path / "split.csv", "validation", ENCODING, classnames=None, cache=tmp_path / "cache")
