"""The contract of a data source, for every one of them."""

from __future__ import annotations

import gzip
import importlib
import inspect
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mixopt.data import SOURCES, open_split
from mixopt.data.source import Reading, Source, SourceModule
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


def _csv(folder: Path) -> Path:
    lines = [f'"{number}",{CLASSES[label]}' for number, label in enumerate(LABELS)]
    (folder / "split.csv").write_text("\n".join(["number,label", *lines]))
    return folder / "split.csv"


def _parquet(folder: Path) -> Path:
    columns: dict[str, list[Any]] = {"number": list(range(7)), "label": [CLASSES[label] for label in LABELS]}
    (folder / "split").mkdir()
    for part, rows in enumerate((slice(0, 3), slice(3, 7))):
        table = pa.table({name: values[rows] for name, values in columns.items()})
        pq.write_table(table, folder / "split" / f"train-0000{part}-of-00002.parquet")
    return folder / "split"


def _datasets(folder: Path) -> Path:
    columns = {"number": list(range(7)), "label": LABELS}
    features = datasets.Features({"number": datasets.Value("int64"), "label": datasets.ClassLabel(names=list(CLASSES))})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder / "split")
    return folder / "split"


def _webdataset(folder: Path) -> Path:
    (folder / "split").mkdir()
    for shard, numbers in enumerate((range(4), range(4, 7))):
        with tarfile.open(folder / "split" / f"part-{shard}.tar", "w") as opened:
            for number in numbers:
                for suffix, content in (("png", _png(number)), ("cls", CLASSES[LABELS[number]].encode())):
                    member = tarfile.TarInfo(f"{number:03}.{suffix}")
                    member.size = len(content)
                    opened.addfile(member, io.BytesIO(content))
    return folder / "split" / "part-{0..1}.tar"


def _png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), (level,) * 3).save(stream, "PNG")
    return stream.getvalue()


def _idx(folder: Path) -> Path:
    (folder / "split").mkdir()
    pixels = np.arange(7, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 3), np.uint8)
    for name, array in (("images-idx3", pixels), ("labels-idx1", np.array(LABELS, dtype=np.uint8))):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
        (folder / "split" / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder / "split"


def _cifar(folder: Path) -> Path:
    (folder / "split").mkdir()
    rows = [bytes([label]) + bytes([number]) * 3072 for number, label in enumerate(LABELS)]
    (folder / "split" / "test_batch.bin").write_bytes(b"".join(rows))
    (folder / "split" / "batches.meta.txt").write_text("\n".join([*CLASSES, ""]))
    return folder / "split" / "test_batch.bin"


# A newcomer adds what writes seven samples of these labels, each of which holds its number.
EXAMPLES: dict[str, Callable[[Path], Path]] = {
    "npz": _npz,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
    "datasets": _datasets,
    "webdataset": _webdataset,
    "idx": _idx,
    "cifar": _cifar,
    "folder": _folder,
}
BOTH = ["path", "reading"]
READING = Reading()
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
