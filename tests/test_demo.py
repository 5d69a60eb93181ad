"""The demo's pool: real digits, complete, repeatable, refused where something is in the way."""

from __future__ import annotations

import dataclasses
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mixopt import MixoptError, demo
from mixopt.cli import app
from mixopt.demo import pool, tiny_clip
from mixopt.weights import checkpoints

SHIFTS = {"inverted", "blurred", "noisy", "edges"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pool with two epochs for the base and eight ingredients of one epoch."""
    real = demo.draw_hyperparameters
    monkeypatch.setattr(pool, "BASE", dataclasses.replace(demo.BASE, epochs=2))
    monkeypatch.setattr(tiny_clip, "LEARNED", 0.0)
    monkeypatch.setattr(pool, "INGREDIENTS", 8)
    monkeypatch.setattr(pool, "draw_hyperparameters", lambda rng: dataclasses.replace(real(rng), epochs=1))


@pytest.mark.usefixtures("quick")
def test_pool_is_complete_and_its_parts_are_disjoint(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = demo.make_pool(tmp_path / "pool", progress=lambda _, done, total: seen.append((done, total)))
    spec = tomllib.loads((folder / "pool.toml").read_text())
    assert set(spec["data"]["test"]) == {"test"} | SHIFTS
    assert [done for done, _ in seen] == list(range(1, 11))
    assert {total for _, total in seen} == {10}
    rows = [json.loads(line) for line in (folder / "hparams.jsonl").read_text().splitlines()]
    assert len({row["learning_rate"] for row in rows}) == len(list(folder.glob("model_*.safetensors"))) == 8
    with np.load(folder / "val.npz") as val, np.load(folder / "test.npz") as test:
        first, second = ({image.tobytes() for image in arrays["x"]} for arrays in (val, test))
        assert len(first & second) <= 2  # two writers' scans may be alike, pixel by pixel
        assert set(val["y"]) == set(range(10))
        clean = test["x"]
    for name in SHIFTS:
        with np.load(folder / f"{name}.npz") as shifted:
            assert shifted["x"].shape == clean.shape
            assert not np.array_equal(shifted["x"], clean)
    base = checkpoints.read(folder / "base.safetensors").tensors
    tuned = checkpoints.read(folder / "model_00.safetensors").tensors
    assert all(name.startswith("visual.") for name in base if not base[name].equal(tuned[name]))


@pytest.mark.usefixtures("quick")
def test_a_base_that_does_not_learn_is_trained_from_other_seeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, seeds = demo.train_base, []

    def train_base(part: demo.Part, recipe: demo.Hyperparameters, tick: Callable[[], None]) -> demo.State:
        seeds.append(recipe.seed)
        return real(part, recipe, tick)

    monkeypatch.setattr(tiny_clip, "train_base", train_base)
    monkeypatch.setattr(tiny_clip, "LEARNED", 1.0)
    with pytest.raises(MixoptError, match="did not learn from 3 seeds; give another --seed"):
        demo.make_pool(tmp_path / "pool")
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]
    assert not (tmp_path / "pool").exists()


@pytest.mark.usefixtures("quick")
def test_one_seed_gives_one_pool(tmp_path: Path) -> None:
    for name in ("one", "two"):
        demo.make_pool(tmp_path / name, seed=3)
    for path in (tmp_path / "one").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.usefixtures("quick")
def test_the_command_makes_searches_and_reuses_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["demo", "--out", str(tmp_path / "demo"), "--cache", str(tmp_path / "cache"), "--trials", "5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for word in ("individual", "uniform", "greedy", "search", *SHIFTS):
        assert word in result.stdout
    monkeypatch.setattr(pool, "make_pool", None)
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"kept")
    with pytest.raises(MixoptError, match=r"mine\.safetensors"):
        demo.make_pool(tmp_path)
    assert (tmp_path / "mine.safetensors").read_bytes() == b"kept"


def test_without_scikit_learn_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MixoptError, match=r"mixopt\[demo\]"):
        demo.make_pool(tmp_path / "pool")
