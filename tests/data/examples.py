"""One small split of every source, written as others write it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

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

ENCODING = Encoding(lambda record: {"number": number_of(record)}, lambda arrays: arrays["number"], "numbers")


def number_of(record: Any) -> int:
    return int(record["number"] if isinstance(record, dict) else record[0, 0, 0])
