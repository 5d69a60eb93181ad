"""What `mixopt init` writes, and `mixopt inspect` shows."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mixopt
from mixopt.cli import app
from mixopt.errors import RunError, SpecError


def table(path: Path) -> dict[str, object]:
    return tomllib.loads(path.read_text())


def test_what_can_be_told_is_written(clip_pool: Path) -> None:
    config = table(clip_pool / "pool.toml")
    (clip_pool / "pool.toml").unlink()
    path = mixopt.init(clip_pool)
    found = table(path)
    assert found["family"] == "open_clip"
    assert found["base"] == "base.safetensors"
    assert found["data"] == {"search": "val.npz", "test": {"shift": "shift.npz", "test": "test.npz"}}
    assert "fill in" in path.read_text()
    filled = path.read_text().replace('["...", "..."]', json.dumps(config["classnames"]))
    path.write_text(filled)
    assert mixopt.inspect(clip_pool)["problems"] == []


def test_a_pool_toml_that_is_there_stays(clip_pool: Path) -> None:
    before = (clip_pool / "pool.toml").read_text()
    with pytest.raises(RunError, match=r"pool\.toml: already there; correct it, or --force"):
        mixopt.init(clip_pool)
    assert (clip_pool / "pool.toml").read_text() == before
    mixopt.init(clip_pool, force=True)
    assert (clip_pool / "pool.toml").read_text() != before


def test_splits_of_every_kind_are_found_and_none_is_taken_for_one(tmp_path: Path) -> None:
    for number in range(2):
        torch.save({"stem.weight": torch.randn(2, 2)}, tmp_path / f"m{number}.pt")
    for name in ("dev.jsonl", "test.csv", "hparams.jsonl", "summary.csv", "notes.txt"):
        (tmp_path / name).write_text("x\n")
    np.savez(tmp_path / "shift.npz", x=np.zeros(1))
    (tmp_path / "sketch" / "dog").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "sketch" / "dog" / "1.JPG")
    (tmp_path / "logs" / "a").mkdir(parents=True)
    path = mixopt.init(tmp_path)
    found = table(path)
    assert found["data"] == {
        "search": "dev.jsonl",
        "test": {"shift": "shift.npz", "sketch": "sketch", "test": "test.csv"},
    }
    assert found["family"] == "..."
    assert "fill in: a family, or your own package.module:function" in path.read_text()


def test_a_model_that_only_its_name_tells_is_asked_for(tmp_path: Path) -> None:
    for number in range(2):
        torch.save({"conv_stem.weight": torch.randn(8, 3, 3, 3)}, tmp_path / f"m{number}.pt")
    text = mixopt.init(tmp_path).read_text()
    assert tomllib.loads(text)["family"] == "timm"
    assert 'model = "..."  # fill in' in text
    assert 'model = "mine"' in mixopt.init(tmp_path, force=True, model="mine").read_text()


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nowhere: expected the folder with the checkpoints"):
        mixopt.init(tmp_path / "nowhere")


def test_inspect_shows_the_pool_toml_that_init_writes(clip_pool: Path) -> None:
    (clip_pool / "pool.toml").unlink()
    found = mixopt.inspect(clip_pool)
    assert found["pool_toml"] == mixopt.init(clip_pool).read_text()
    assert "classnames" in found["unrecognised"]


def test_inspect_of_one_file_names_what_it_is(clip_pool: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(clip_pool / "model_0.safetensors")])
    assert result.exit_code == 0
    assert "tensors" in result.stdout
    assert "family open_clip" in result.stdout


def test_the_command_prints_what_it_wrote(clip_pool: Path) -> None:
    result = CliRunner().invoke(app, ["init", str(clip_pool), "--force"])
    assert result.exit_code == 0
    assert (clip_pool / "pool.toml").read_text() in result.stdout
    as_json = CliRunner().invoke(app, ["init", str(clip_pool), "--force", "--json", "--quiet"])
    assert json.loads(as_json.stdout)["content"] == (clip_pool / "pool.toml").read_text()
