"""The contract of a data source, for every one of them."""

from __future__ import annotations

import importlib
import inspect
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt.data import SOURCES, open_split
from mixopt.data.source import Reading, Source, SourceModule
from mixopt.errors import DataError
from tests.data.examples import CLASSES, ENCODING, EXAMPLES, LABELS, number_of

BOTH = ["path", "reading"]
READING = Reading()


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[SourceModule, Path]:
    module: Any = importlib.import_module(f"mixopt.data.{request.param}")
    assert request.param in EXAMPLES, f"add what writes a {request.param} split to EXAMPLES"
    return module, EXAMPLES[request.param](tmp_path)


def test_every_module_is_listed() -> None:
    folder = Path(inspect.getfile(open_split)).parent
    found = {path.stem for path in folder.glob("*.py") if "def open_source" in path.read_text()} - {
        "__init__",
        "source",
    }
    assert found == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_module_has_the_contracts_functions(name: str) -> None:
    module = importlib.import_module(f"mixopt.data.{name}")
    for member, takes in (("matches", ["path"]), ("files", BOTH), ("open_source", BOTH)):
        assert list(inspect.signature(getattr(module, member)).parameters) == takes
    assert module.__doc__, "says what the source is"


def test_the_module_is_the_first_to_open_it(source: tuple[SourceModule, Path], tmp_path: Path) -> None:
    module, path = source
    found = [name for name in SOURCES if importlib.import_module(f"mixopt.data.{name}").matches(path)]
    assert found[0] == str(vars(module)["__name__"]).rpartition(".")[2]
    assert set(found[1:]) <= {"folder"}, "any other folder is one of class folders"
    assert not module.matches(tmp_path / "nothing")


def test_gives_labels_classes_and_records(source: tuple[SourceModule, Path]) -> None:
    module, path = source
    opened = module.open_source(path, READING)
    assert isinstance(opened, Source)
    assert opened.classes in (CLASSES, None), "None where the files do not say"
    assert opened.labels.dtype == np.int64
    numbers = [number_of(opened.load(place)) for place in range(len(opened.labels))]
    assert sorted(numbers) == list(range(7))
    assert [LABELS[number] for number in numbers] == opened.labels.tolist()
    assert all(isinstance(opened.where(place), str) for place in range(7))


def test_its_files_are_all_that_it_reads(source: tuple[SourceModule, Path], tmp_path: Path) -> None:
    module, path = source
    found = list(module.files(path, READING).files)
    assert found == list(module.files(path, READING).files)
    inside = (tmp_path / "split").rglob("*") if (tmp_path / "split").is_dir() else [path]
    assert sorted(found) == sorted(each for each in inside if each.is_file())


def test_opens_as_samples_whatever_their_order(source: tuple[SourceModule, Path], tmp_path: Path) -> None:
    module, path = source
    names_them = module.open_source(path, READING).classes is not None
    split = open_split(path, "validation", ENCODING, classnames=CLASSES[::-1], cache=tmp_path / "cache")
    numbers = split.arrays["number"]
    assert sorted(numbers.tolist()) == list(range(7))
    # Numbers of classes without names are the model's own.
    model = CLASSES[::-1] if names_them else CLASSES
    assert [CLASSES[LABELS[number]] for number in numbers] == [model[label] for label in split.labels]
    assert split.unit == "sample"
    for each in [path] if path.is_file() else module.files(path, READING).files:
        each.unlink()
    if path.is_dir():
        shutil.rmtree(path)
    with pytest.raises(DataError, match=r"not there|no such file or folder; --data takes \.npz \(x and y\), \.csv"):
        open_split(path, "validation", ENCODING, classnames=CLASSES, cache=tmp_path / "cache")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "split.xml").write_text("a,b")
    with pytest.raises(DataError, match=r"split\.xml: expected \.npz \(x and y\), \.csv"):
        open_split(tmp_path / "split.xml", "validation", ENCODING, classnames=None, cache=tmp_path / "cache")
