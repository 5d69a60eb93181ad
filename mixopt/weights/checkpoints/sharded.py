"""A checkpoint in several safetensors files, with an index beside them, as Hugging Face saves large models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mixopt.errors import CheckpointError, short
from mixopt.files import is_plain_name, natural_key
from mixopt.untrusted.texts import read_json
from mixopt.weights.checkpoints import safetensor_files
from mixopt.weights.checkpoints.layout import Checkpoint

SUFFIXES = (".safetensors.index.json",)
_NUMBERED = re.compile(r"\d+-of-\d+\.safetensors$")


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
    what = "not an index of a sharded checkpoint"
    stored = read_json(index, CheckpointError, found=what, cure="copy it again")
    weight_map = stored.get("weight_map") if isinstance(stored, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: not an index of a sharded checkpoint: no 'weight_map' of tensor names to files"
        )
    stem = index.name.removesuffix(SUFFIXES[0])
    for part in weight_map.values():
        if problem := _problem_of(part, stem):
            raise CheckpointError(f"{index}: lists {short(repr(part))} as a part, {problem}")
    return dict(weight_map)


def _problem_of(part: object, stem: str) -> str:
    """Why a part cannot be one: it must be a file of this checkpoint's own, in the folder of the index."""
    if not isinstance(part, str) or not is_plain_name(part):
        return "expected the plain name of a file in its own folder"
    if not safetensor_files.matches(Path(part)):
        return "expected a .safetensors file"
    if not (part.startswith(stem) or _NUMBERED.search(part)):
        return f"which is a checkpoint of its own; expected names such as {stem}-00001-of-00002.safetensors"
    return ""
