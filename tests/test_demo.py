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
from mixopt.demo.digits import IMAGE_SIZE
from mixopt.weights import checkpoints

SHIFTS = {"inverted", "blurred", "noisy", "edges"}  # of the test images; other digits are scanned


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
    assert set(spec["data"]["test"]) == {"test", "scanned"} | SHIFTS
    assert [done for done, _ in seen] == list(range(1, 11))
    assert {total for _, total in seen} == {10}
    rows = [json.loads(line) for line in (folder / "hparams.jsonl").read_text().splitlines()]
    assert len({row["learning_rate"] for row in rows}) == len(list(folder.glob("model_*.safetensors"))) == 8
    with np.load(folder / "val.npz") as val, np.load(folder / "test.npz") as test:
        first, second = ({image.tobytes() for image in arrays["x"]} for arrays in (val, test))
        assert not first & second
        assert len(val["y"]) == 1000
        assert len(test["y"]) >= 2000
        assert set(val["y"]) == set(range(10))
        clean = test["x"]
    for name in SHIFTS:
        with np.load(folder / f"{name}.npz") as shifted:
            assert shifted["x"].shape == clean.shape
            assert not np.array_equal(shifted["x"], clean)
    with np.load(folder / "scanned.npz") as scanned:
        assert scanned["x"].shape == (1797, *clean.shape[1:])
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
    for word in ("individual", "uniform", "greedy", "search", "scanned", *SHIFTS):
        assert word in result.stdout
    monkeypatch.setattr(pool, "make_pool", None)
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"kept")
    with pytest.raises(MixoptError, match=r"mine\.safetensors"):
        demo.make_pool(tmp_path)
    assert (tmp_path / "mine.safetensors").read_bytes() == b"kept"


def test_parts_are_disjoint_and_have_the_shares_of_the_whole() -> None:
    labels = np.repeat(np.arange(10), 50)
    numbers = np.arange(500, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 1, 1, 3), dtype=np.uint8)
    sizes = {"first": 120, "second": 80, "rest": 300}
    parts = demo.draw_parts((numbers, labels), sizes, np.random.default_rng(0))
    assert {name: len(x) for name, (x, _) in parts.items()} == sizes
    for images, found in parts.values():
        counts = np.bincount(found, minlength=10)
        assert counts.max() - counts.min() <= 2
        assert len(images) == len(found)
    assert np.array_equal(np.sort(np.concatenate([y for _, y in parts.values()])), labels)


@pytest.mark.parametrize("source", [demo.mnist, demo.scans, lambda: demo.scans(12)], ids=["mnist", "scans", "small"])
def test_digits_are_grey_on_dark_paper_and_of_ten_classes(source: Callable[[], demo.Part]) -> None:
    images, labels = source()
    assert images.shape == (len(labels), IMAGE_SIZE, IMAGE_SIZE, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images[..., 0], images[..., 2])
    assert np.bincount(labels).min() >= 170
    assert images[:, 6:10, 6:10].mean() > 2 * images[:, 0].mean(), "ink is bright, in the middle"


def test_scans_within_an_image_are_as_large_as_mnists() -> None:
    def spread(images: demo.Pixels) -> float:
        """Standard deviation of ink around the middle, in pixels."""
        ink, places = images[..., 0].mean(axis=0), np.arange(IMAGE_SIZE) - (IMAGE_SIZE - 1) / 2
        return float(np.sqrt((ink * (places[:, None] ** 2 + places**2)).sum() / ink.sum()))

    ours, whole, small = (spread(source[0]) for source in (demo.mnist(), demo.scans(), demo.scans(pool.SCAN_WIDTH)))
    assert abs(small - ours) < abs(whole - ours) / 2


@pytest.mark.parametrize("missing", ["scikit-learn", "mlxtend"])
def test_what_is_missing_is_named_with_the_extra(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in {"scikit-learn": ("sklearn", "sklearn.datasets"), "mlxtend": ("mlxtend", "mlxtend.data")}[missing]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MixoptError, match=rf"needs {missing}: pip install 'mixopt\[demo\]'"):
        demo.make_pool(tmp_path / "pool")
    assert not (tmp_path / "pool").exists()
