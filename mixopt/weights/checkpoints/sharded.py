"""A checkpoint in several safetensors files, with an index beside them, as Hugging Face saves large models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mixopt.errors import CheckpointError
from mixopt.files import natural_key
from mixopt.weights.checkpoints import safetensor_files
from mixopt.weights.checkpoints.layout import Checkpoint

SUFFIXES = (".safetensors.index.json",)


def matches(path: Path) -> bool:
    """Whether a path has the name of an index."""
    return path.name.endswith(SUFFIXES)


def read(path: Path) -> Checkpoint:
    """Open the parts that an index lists, as one checkpoint.

    Raises:
        CheckpointError: Not an index; a part that is missing or damaged, or lacks tensors that the index lists.
    """
    part_of = _weight_map(path)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name in _in_order(part_of):
        part = path.parent / name
        if not part.is_file():
            raise CheckpointError(f"{path}: its part {name} is missing")
        some, texts = safetensor_files.read_tensors(part)
        tensors |= some
        metadata |= texts
    if absent := sorted(set(part_of) - set(tensors)):
        raise CheckpointError(f"{path}: its parts lack {len(absent)} of the tensors it lists, such as {absent[0]}")
    return Checkpoint(path, tensors, {}, metadata, mapped=True)


def parts_of(index: Path) -> list[Path]:
    """The files that an index lists, in natural name order; they are no checkpoints of their own.

    Raises:
        CheckpointError: Not an index.
    """
    return [index.parent / name for name in _in_order(_weight_map(index))]


def _in_order(part_of: Mapping[str, str]) -> list[str]:
    return sorted(set(part_of.values()), key=natural_key)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to the name of the part that holds it."""
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        return {name: _text(part) for name, part in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of a sharded checkpoint: no 'weight_map' ({error})") from error


def _text(part: object) -> str:
    if not isinstance(part, str):
        raise TypeError(f"expected the name of a file, found {part!r}")
    return part
