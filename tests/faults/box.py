"""An example of every kind of file that mixopt reads, small and always the same, put back after each case."""

from __future__ import annotations

import argparse
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from PIL import Image
from safetensors.torch import save_file

import mixopt
from mixopt.scoring.cache import OutcomeCache
from tests.conftest import write_clip_pool
from tests.faults import payloads
from tests.faults.mutations import remove
from tests.faults.studies import chained
from tests.faults.tables import write_tables
from tests.faults.trees import mended
from tests.scoring import batchnorm_pool
from tests.tiny_family import Mlp

CLASSES = ("a", "b", "c", "d")
WORDS = ("sad", "glad", "angry")
IMAGE_SUFFIXES = ("png", "jpg", "gif", "bmp", "webp", "tiff", "ppm")
OPTIONS: dict[str, Any] = {"cache": Path("cache"), "device": "cpu", "precision": "fp32"}
POOL = """\
family = "tests.tiny_family:plain"
ingredients = ["m*.safetensors"]
classnames = ["a", "b", "c", "d"]

[data]
search = "val.npz"

[data.test]
test = "test.npz"
"""
TEXT_POOL = """\
family = "tests.faults.families:texts"
classnames = ["sad", "glad", "angry"]

[data]
search = "val.jsonl"
"""
STUDY = """\
models = "pool"
cache = "cache"
device = "cpu"
precision = "fp32"
trials = 5
seed = 3
radius = 0.5
groups = "groups.toml"
methods = ["uniform", "greedy"]

[select]
steering = "pool/test.npz:0.5"
"""
GROUPS = """\
[groups]
first = "layers\\\\.0"
last = ["layers\\\\.2", "head$"]
"""
# Names of what takes another value in every run.
_TIMES = frozenset({"seconds", "wall_seconds", "time", "peak_memory"})


@dataclass(frozen=True)
class Box:
    """A folder with the examples.

    Attributes:
        folder: Where they lie; cases run in it.
        files: What each file held, its mode, and its time of change.
    """

    folder: Path
    files: dict[Path, tuple[bytes, int, int]]

    def put_back(self) -> list[Path]:
        """Make everything as it was; returns what was not."""
        changed: list[Path] = []
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_symlink() or not path.is_dir():
                if path not in self.files or path.is_symlink() or not path.is_file():
                    changed.append(path)
                    remove(path)
                    continue
                stat, (content, mode, time) = path.stat(), self.files[path]
                if (stat.st_size, stat.st_mode, stat.st_mtime_ns) != (len(content), mode, time):
                    changed.append(path)
                    remove(path)
            elif path in self.files:
                changed.append(path)
                remove(path)
            elif not any(path.iterdir()):
                path.rmdir()
        for path, (content, mode, time) in self.files.items():
            if not path.exists():
                changed.append(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                path.chmod(mode)
                os.utime(path, ns=(time, time))
        return sorted(set(changed))

    def strangers(self) -> list[Path]:
        """What was written around the folder; removed."""
        expected = {self.folder, *self.folder.parents}
        around = [path for parent in list(self.folder.parents)[:3] for path in parent.iterdir()]
        found = [path for path in around if path not in expected and path.name != "around"]
        for path in found:
            remove(path)
        return found


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def make_box(around: Path) -> Box:
    """Make the examples, three folders deep, so that names with ``../`` stay within what a test may write to."""
    folder = around.resolve() / "outer" / "inner" / "box"
    folder.mkdir(parents=True)
    with inside(folder):
        _write_pool(Path("pool"))
        _write_layouts()
        Path("study.toml").write_text(STUDY)
        Path("groups.toml").write_text(GROUPS)
        Path(f"{payloads.MODULE}.py").write_text(payloads.SOURCE)
        _write_runs()
        _write_texts(Path("texts"))
        _write_images(Path("images"))
        write_tables(Path("tables"))
        _write_studies()
        _write_caches()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                _settle(path, folder)
    files = {
        path: (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith((".lock", ".log"))
    }
    box = Box(folder, files)
    box.put_back()
    return box


def _write_pool(folder: Path) -> None:
    folder.mkdir()
    for number in range(3):
        torch.manual_seed(number)
        save_file(Mlp(len(CLASSES)).state_dict(), folder / f"m{number}.safetensors")
    random = np.random.default_rng(0)
    for name, count in (("val", 24), ("test", 16)):
        images = random.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
        labels = np.arange(count) % len(CLASSES)
        np.savez(folder / f"{name}.npz", x=images, y=labels, classes=np.array(CLASSES))
    (folder / "pool.toml").write_text(POOL)


def write_trainers(states: list[dict[str, torch.Tensor]]) -> None:
    """The same weights as trainers leave them: with options and an average beside, and in parts of pickles."""
    for number, state in enumerate(states):
        content = {
            "epoch": number,
            "arch": "mlp",
            "args": argparse.Namespace(lr=0.1, out=Path("runs"), names=["a"]),
            "best": np.float64(0.5),
            "history": np.arange(4.0),
            "state_dict": {f"module.{name}": tensor + 1 for name, tensor in state.items()},
            "state_dict_ema": {f"module.{name}": tensor for name, tensor in state.items()},
        }
        folder = Path("trainers")
        folder.mkdir(exist_ok=True)
        torch.save(content, folder / f"checkpoint-{number}.pth.tar")
        step = Path("steps") / f"checkpoint-{number}"
        step.mkdir(parents=True)
        parts = {name: f"pytorch_model-0000{1 + place % 2}-of-00002.bin" for place, name in enumerate(state)}
        for part in sorted(set(parts.values())):
            torch.save({name: state[name] for name in state if parts[name] == part}, step / part)
        (step / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
        torch.save({"state": {}}, step / "optimizer.pt")


def _write_layouts() -> None:
    states = []
    for number in range(3):
        torch.manual_seed(number)
        states.append(Mlp(len(CLASSES)).state_dict())
    for folder in (Path("sharded"), Path("pickled"), Path("legacy")):
        folder.mkdir()
        for number in (0, 2):
            whole = states[number] | ({"steps": torch.zeros(0)} if folder.name == "legacy" else {})
            save_file(whole, folder / f"m{number}.safetensors")
    names = list(states[1])
    parts = {f"m1-0000{number}-of-00002.safetensors": names[number - 1 :: 2] for number in (1, 2)}
    for part, chosen in parts.items():
        save_file({name: states[1][name] for name in chosen}, Path("sharded") / part)
    weight_map = {name: part for part, chosen in parts.items() for name in chosen}
    index = {"metadata": {"total_size": 4}, "weight_map": weight_map}
    Path("sharded/m1.safetensors.index.json").write_text(json.dumps(index, indent=2))
    write_trainers(states)
    torch.save(states[1], "pickled/m1.pt")
    # One storage: this format lists several in the order of their addresses, which are their names.
    names = [name for name, tensor in states[1].items() if tensor.is_floating_point()]
    flat: Any = torch.cat([states[1][name].flatten() for name in names])
    views = zip(names, flat.split([states[1][name].numel() for name in names]), strict=True)
    state = {name: view.view_as(states[1][name]) for name, view in views} | {"steps": flat[:0]}
    torch.save(state, "legacy/m1.pth", _use_new_zipfile_serialization=False)
    content = Path("legacy/m1.pth").read_bytes()
    Path("legacy/m1.pth").write_bytes(re.sub(rb"\d{10,}", lambda found: b"7" * len(found[0]), content))


def _write_runs() -> None:
    search: dict[str, Any] = {"trials": 6, "start": "individual", **OPTIONS}
    mixopt.search("pool", out="run", **search)
    mixopt.search("pool", out="rundb", storage="sqlite:///rundb.db", **search)
    state = batchnorm_pool.trained(own_statistics=True)
    batchnorm_pool.write_pool(Path("bnpool"), batchnorm_pool.ingredients(state))
    mixopt.compare("bnpool", out="bnrun", methods=("uniform",), batchnorm="recompute", **OPTIONS)
    write_clip_pool(Path("clip"), ingredients=2)
    mixopt.compare("clip", out="cliprun", methods=("uniform",), **OPTIONS)


def _write_texts(folder: Path) -> None:
    from tests.faults.families import BagOfWords

    folder.mkdir()
    random = np.random.default_rng(0)
    lines = []
    for number in range(24):
        words = " ".join(f"word{word}" for word in random.integers(0, 60, number % 7))
        lines.append(json.dumps({"id": number, "text": words, "label": WORDS[number % 3]}))
    (folder / "val.jsonl").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    save_file(BagOfWords(len(WORDS)).state_dict(), folder / "m0.safetensors")
    (folder / "pool.toml").write_text(TEXT_POOL)


def _write_images(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number, suffix in enumerate(IMAGE_SUFFIXES):
        path = folder / CLASSES[number % len(CLASSES)] / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)


def _write_studies() -> None:
    """A journal and a database with one study, of which the database is a copy."""
    from tests.faults.readers import resume

    Path("near").mkdir()
    resume(Path("near/study.journal"), None, 9)
    _settle(Path("near/study.journal"), Path.cwd())
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("near/study.journal"))
    optuna.copy_study(from_study_name="near", from_storage=storage, to_storage="sqlite:///near.db")


def _write_caches() -> None:
    from tests.faults import readers

    readers.read_objective()
    for path in sorted(Path("cache").glob("*/*/*.npz")):
        _timeless_entry(OutcomeCache(Path("cache")), path)
    for fill in (
        readers.read_objective,
        readers.read_ledger,
        readers.read_images_again,
        readers.read_texts_again,
        readers.read_shifted,
    ):
        fill()
    path = readers.precision_file()
    speeds = {"fp32": 900.5, "bf16": 1000.0}
    kept = {"key": path.stem, "mode": "fp32", "images_per_second": speeds, "differing": {}, "images": 24}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(mended({**kept, "checksum": ""}), indent=2))


def _settle(path: Path, folder: Path) -> None:
    """Take times, names of processes and of the test's own folder out of a file, so that it is always the same."""
    if path.suffix == ".toml":
        path.write_text(path.read_text().replace(f"{folder}/", ""))
    elif path.name == "report.json":
        path.write_text(json.dumps(mended(_timeless(json.loads(path.read_text()))), indent=2) + "\n")
    elif path.name == "rundb.db":
        with closing(sqlite3.connect(path)) as base:
            base.execute(
                "UPDATE trials SET datetime_start = '2025-01-02 03:04:05.000006' WHERE datetime_start NOT NULL"
            )
            base.execute("UPDATE trials SET datetime_complete = datetime_start WHERE datetime_complete NOT NULL")
            base.execute("UPDATE trial_user_attributes SET value_json = '0.25' WHERE key = 'seconds'")
            base.commit()
            base.execute("VACUUM")
    elif path.suffix == ".journal":
        text = re.sub(r'"worker_id": ?"[^"]*"', '"worker_id":"a-1"', path.read_text())
        text = re.sub(r'"\d{4}-\d\d-\d\dT[\d:.]*([+\d:]*)"', r'"2025-01-02T03:04:05.000006\1"', text)
        path.write_bytes(chained(re.sub(r'"seconds": ?[-\d.e]+', '"seconds":0.25', text).encode()))


def _timeless_entry(cache: OutcomeCache, path: Path) -> None:
    key = path.stem
    if found := cache.get(key, 10_000) if path.parts[1] == "outcomes" else None:
        cache.put(key, found[0], 0.25)
    for shape in product(range(1, 7), range(1, 5)) if path.parts[1] == "gradients" else ():
        if gradient := cache.get_gradient(key, shape):
            cache.put_gradient(key, gradient[0], 0.25)
            return


def _timeless(value: Any, is_time: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item, is_time or key in _TIMES) for key, item in value.items()}
    if isinstance(value, list):
        return [_timeless(item, is_time) for item in value]
    return 0.5 if is_time and isinstance(value, float) else 7 if is_time and isinstance(value, int) else value
