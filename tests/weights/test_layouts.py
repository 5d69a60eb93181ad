"""The contract of checkpoint layouts; every name in `LAYOUTS` is tested here by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mixopt.errors import CheckpointError
from mixopt.weights import checkpoints
from mixopt.weights.checkpoints import LAYOUTS, SUFFIXES, Layout

STATE = {
    "stem.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "stem.bias": torch.tensor([0.5, -2.0], dtype=torch.float16),
    "head.weight": torch.tensor([[1.0, 3.0]], dtype=torch.bfloat16),
    "scale": torch.tensor(1.5, dtype=torch.float64),
    "steps": torch.tensor(7),
    "mask": torch.tensor([True, False]),
}
Write = Callable[[dict[str, Tensor], Path], None]


def write_parts(state: dict[str, Tensor], index: Path) -> None:
    """Every tensor in a file of its own."""
    stem, suffix, *_ = index.name.split(".")[0], f".{index.name.split('.')[-3]}"
    part_of = {name: f"{stem}-{number}{suffix}" for number, name in enumerate(state)}
    for name, part in part_of.items():
        (torch.save if suffix == ".bin" else save_file)({name: state[name]}, index.parent / part)
    index.write_text(json.dumps({"weight_map": part_of}))


# How a checkpoint of each layout comes about; a newcomer's line goes here.
WRITERS: dict[str, Write] = {"safetensors": save_file, "pickle": torch.save, "sharded": write_parts}
CASES = [pytest.param(name, suffix, id=suffix) for name, layout in LAYOUTS.items() for suffix in layout.SUFFIXES]


def test_every_layout_can_be_written_here() -> None:
    assert WRITERS.keys() == LAYOUTS.keys()


def test_no_two_layouts_claim_one_suffix() -> None:
    assert len(set(SUFFIXES)) == len(SUFFIXES)


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_a_layout_matches_its_own_files_and_no_other(name: str, suffix: str) -> None:
    layout: Layout = LAYOUTS[name]
    assert layout.matches(Path("folder") / f"model.v1{suffix}")
    assert not layout.matches(Path(f"folder{suffix}") / "model.txt")
    assert not any(other.matches(Path(f"model{suffix}")) for key, other in LAYOUTS.items() if key != name)


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_a_checkpoint_is_found_named_and_read_bit_for_bit(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"model_1{suffix}"
    WRITERS[name](STATE, path)
    before = path.read_bytes()
    assert checkpoints.find(tmp_path) == [path]
    assert checkpoints.names_of([path], tmp_path) == ["model_1"]
    for opened in (LAYOUTS[name].read(path), checkpoints.read(path)):
        assert opened.path == path
        assert (opened.tied, opened.ignored) == ({}, ())
        assert opened.tensors.keys() == STATE.keys()
        for key, tensor in STATE.items():
            assert opened.tensors[key].device.type == "cpu"
            assert checkpoints.tensor_hash(opened.tensors[key]) == checkpoints.tensor_hash(tensor), key
    assert path.read_bytes() == before


@pytest.mark.parametrize(("name", "suffix"), CASES)
@given(content=st.binary(min_size=1, max_size=80))
def test_damage_is_a_checkpoint_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, name: str, suffix: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        LAYOUTS[name].read(path)


TIED = {"head.bias": "stem.bias"}


@pytest.mark.parametrize("limit", [1, 30, 60])
def test_a_large_checkpoint_is_written_in_parts_and_read_as_one(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "model.safetensors"
    assert checkpoints.write_parts(path, STATE, tied=TIED, metadata={"note": "x"}, limit=math.inf) == path
    index = checkpoints.write_parts(path, STATE, tied=TIED, metadata={"note": "x"}, limit=limit)
    assert index == tmp_path / "model.safetensors.index.json"
    assert not path.exists()
    parts = sorted(tmp_path.glob("model-*"))
    assert len(parts) > 1
    for part in parts:
        held = checkpoints.read(part).tensors
        assert len(held) == 1 or sum(each.nbytes for each in held.values()) <= limit
    for opened in (checkpoints.read(index), checkpoints.read(tmp_path)):
        assert checkpoints.hash_tensors(opened.tensors) == checkpoints.hash_tensors(STATE)
        assert opened.tied == TIED
        assert opened.metadata["note"] == "x"
    assert checkpoints.write_parts(path, STATE, tied=TIED, metadata={}, limit=math.inf) == path
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]
