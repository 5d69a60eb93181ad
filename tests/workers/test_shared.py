"""What a run shares with its workers: the same tensors and samples, mapped from files; nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray

from mixopt import RunError, SpecError, load_spec
from mixopt.assemble import assemble
from mixopt.listener import Listener
from mixopt.scoring.evaluator import Evaluator
from mixopt.values.samples import Encoding, Samples
from mixopt.weights.pool import Pool
from mixopt.workers import devices_of, shared, shared_folder
from mixopt.workers.shared import open_pool, open_split, share_pool, share_split
from tests.conftest import State, random_states


def states_with(count: int) -> list[State]:
    """Checkpoints with tensors of every kind that are the same in all of them."""
    kept = {
        "half": torch.arange(3, dtype=torch.float32).to(torch.bfloat16),
        "flag": torch.tensor([True, False, True]),
        "number": torch.tensor(7),
        "nothing": torch.zeros(0),
    }
    return [{**state, **kept} for state in random_states(count)]


def test_a_pool_is_read_back_as_it_was(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    pool = make_pool(states_with(3))
    stack, fixed = pool.stack.clone(), {name: tensor.clone() for name, tensor in pool.fixed.items()}
    again = share_pool(tmp_path, pool)
    assert torch.equal(again.stack, stack)
    assert {"half", "flag", "number", "nothing"} <= again.fixed.keys()
    for name, tensor in fixed.items():
        assert torch.equal(again.fixed[name], tensor)
        assert again.fixed[name].dtype == tensor.dtype
    opened = open_pool(tmp_path)
    assert (opened.columns, opened.base, opened.mixed, opened.tied) == (pool.columns, pool.base, pool.mixed, pool.tied)
    assert opened.saved_dtypes(None) == pool.saved_dtypes(None)


def samples_of(array: NDArray[Any]) -> Samples:
    count = len(array)
    digests = np.arange(16 * count, dtype=np.uint8).reshape(count, 16)
    labels = np.arange(count) % 3
    return Samples("a split / of: any name", "val.npz", {"x": array}, labels, digests, ("a", "b", "c"), among=(0, 1, 2))


def evaluator_of(split: Samples, cut: int | None) -> Evaluator:
    encoding = Encoding(lambda record: {"x": record}, lambda arrays: arrays["x"], "test")
    return Evaluator(split, encoding, torch.device("cpu"), 5, cut=cut)


@pytest.mark.parametrize("mapped", ["whole", "the first", "rows from within", "in memory"])
@pytest.mark.parametrize("cut", [None, 10])
def test_a_split_is_read_back_from_where_it_lies(mapped: str, cut: int | None, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    lies: NDArray[Any] = np.load(tmp_path / "x.npy", mmap_mode="r")
    taken = {"whole": lies, "the first": lies[:12], "rows from within": lies[4:16], "in memory": array}[mapped]
    split = samples_of(taken)
    folder = tmp_path / "shared"
    folder.mkdir()
    share_split(folder, "validation", evaluator_of(split, cut))
    found = open_split(folder, "validation")
    assert np.array_equal(found.samples.arrays["x"], taken)
    assert isinstance(found.samples.arrays["x"], np.memmap)
    assert found.samples.fingerprint == split.fingerprint
    assert (found.batch_size, found.cut, found.function) == (5, cut, None)
    assert (found.samples.name, found.samples.classes, found.samples.among) == (split.name, split.classes, split.among)
    assert len(list(folder.glob("*.npy"))) == (mapped == "in memory"), "only what lies nowhere is written"


@pytest.mark.parametrize("what", ["pool", "split"])
@pytest.mark.parametrize("sealed", [True, False])
def test_a_worker_that_sees_something_else_is_told(
    what: str, sealed: bool, make_pool: Callable[..., Pool], tmp_path: Path
) -> None:
    if what == "pool":
        share_pool(tmp_path, make_pool(states_with(2)), sealed=sealed)
        path = tmp_path / shared.POOL_DATA
    else:
        path = tmp_path / "x.npy"
        np.save(path, np.ones((20, 3), dtype=np.float32))
        share_split(tmp_path, "test", evaluator_of(samples_of(np.load(path, mmap_mode="r")), None), sealed=sealed)

    def opened() -> None:
        if what == "pool":
            open_pool(tmp_path)
        else:
            open_split(tmp_path, "test")

    opened()
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.unlink()  # what is mapped goes on as it was
    path.write_bytes(content)
    if sealed:
        with pytest.raises(RunError, match=rf"{path}: its content is \w{{32}} here, and \w{{32}} where the run is"):
            opened()
    else:
        opened()


def test_what_runs_share_goes_with_them(clip_pool_template: Path, tmp_path: Path) -> None:
    spec = load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu", "precision": "fp32"})
    killed, alive = tmp_path / "workers" / "killed", tmp_path / "workers" / "alive"
    for folder in (killed, alive):
        folder.mkdir(parents=True)
        (folder / "pool.bin").write_bytes(b"x")
    assembly = assemble(spec, Listener())
    before = assembly.objective.pool.stack.clone()
    with FileLock(alive / "run.lock"), shared_folder(spec, assembly) as folder:
        assert not killed.exists()
        assert alive.exists(), "another run's"
        assert (folder / shared.POOL_DATA).stat().st_size > before.nbytes
        assert torch.equal(assembly.objective.pool.stack, before)
    assert not folder.exists()


def test_no_room_for_what_is_shared(clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu", "precision": "fp32"})
    assembly = assemble(spec, Listener())

    def full(*_: Any, **__: Any) -> Pool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mixopt.workers.share_pool", full)
    with pytest.raises(RunError, match=r"No space left.*share the checkpoints.*--cache"), shared_folder(spec, assembly):
        raise AssertionError("never")
    assert not [each for each in (tmp_path / "workers").iterdir() if each.is_dir()]


def test_one_worker_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of("auto", cpu) == ["cpu"] * 6
    assert devices_of("3", cpu) == ["cpu"] * 3
    assert devices_of("auto", gpu) == ["cuda:0", "cuda:1"]
    assert devices_of("3", gpu) == ["cuda:0", "cuda:1", "cuda:0"]


@pytest.mark.parametrize("value", [0, -1, "0", "many", 2.5, True, "1e3", 99999, ""])
def test_numbers_of_workers_that_are_none(value: Any, clip_pool_template: Path) -> None:
    with pytest.raises(SpecError, match=r"workers.*expected a number from 1 to 1024, or auto"):
        load_spec({"models": clip_pool_template, "workers": value})


@pytest.mark.parametrize(("value", "expected"), [(2, "2"), ("2", "2"), ("auto", "auto"), (None, None), ("007", "7")])
def test_numbers_of_workers(value: Any, expected: str | None, clip_pool_template: Path) -> None:
    assert load_spec({"models": clip_pool_template, "workers": value}).workers == expected


def test_options_are_those_that_the_run_resolved(clip_pool_template: Path, tmp_path: Path) -> None:
    spec = load_spec({"models": clip_pool_template, "cache": tmp_path / "cache", "device": "cpu", "limit": 40})
    shared.share_spec(tmp_path, spec, {"precision": "bf16", "batchnorm": "average"})
    found = shared.open_spec(tmp_path)
    assert (found.precision, found.batchnorm, found.limit) == ("bf16", "average", 40)
    assert found.models.is_absolute()
    assert found.cache == (tmp_path / "cache").absolute()
