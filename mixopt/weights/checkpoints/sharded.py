"""A checkpoint in several files, with an index beside them, as Hugging Face saves large models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mixopt.errors import CheckpointError, short
from mixopt.files import is_plain_name, natural_key, write_json
from mixopt.untrusted.texts import read_json
from mixopt.weights.checkpoints import pickled, safetensor_files
from mixopt.weights.checkpoints.layout import Checkpoint
from mixopt.weights.checkpoints.wrappers import AUTO, Weights

INDEX = ".index.json"
SUFFIXES = (f".safetensors{INDEX}", f".bin{INDEX}")
_NUMBERED = re.compile(r"(?P<stem>.+?)[-_.]?\d+-of-\d+(?P<suffix>\.(safetensors|bin))$")


def matches(path: Path) -> bool:
    """Whether a path has the name of an index."""
    return path.name.endswith(SUFFIXES)


def index_of(part: Path) -> Path | None:
    """Where the index of a file would be that is named as one of several parts; None for any other name."""
    found = _NUMBERED.match(part.name)
    return None if found is None else part.with_name(f"{found['stem']}{found['suffix']}{INDEX}")


def read(path: Path, weights: Weights = AUTO) -> Checkpoint:
    """Open the parts that an index lists, as one checkpoint.

    Raises:
        CheckpointError: Not an index; a part that is missing or damaged, or lacks tensors that the index lists.
    """
    part_of = _weight_map(path)
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    metadata: dict[str, str] = {}
    mapped = True
    for name in _in_order(part_of):
        part = path.parent / name
        if not part.is_file():
            raise CheckpointError(f"{path}: its part {name} is missing")
        if pickled.matches(part):
            opened = pickled.read(part, weights)
            tensors |= opened.tensors
            tied |= opened.tied
            mapped = mapped and opened.mapped
        else:
            opened = safetensor_files.read(part)
            tensors |= opened.tensors
            tied |= opened.tied
            metadata |= opened.metadata
    if absent := sorted(set(part_of) - tensors.keys() - tied.keys()):
        raise CheckpointError(f"{path}: its parts lack {len(absent)} of the tensors it lists, such as {absent[0]}")
    return Checkpoint(path, tensors, tied, metadata, mapped=mapped)


def write_parts(
    path: Path, tensors: Mapping[str, Tensor], *, tied: Mapping[str, str], metadata: Mapping[str, str], limit: float
) -> Path:
    """Write a checkpoint in one safetensors file, or where it is larger than the limit, in several with an index.

    Args:
        path: The one file; parts are named after it, as transformers names them. What an earlier checkpoint of that
            name left in the other form is removed.
        tensors: Name to CPU tensor, each stored once.
        tied: Alias to stored name.
        metadata: More text for every header.
        limit: Bytes of tensors a file; a larger tensor has a file of its own.

    Returns:
        The file to open: the path, or the index.

    Raises:
        CheckpointError: A dtype that the format does not know.
        RunError: A file cannot be written.
    """
    index = path.with_name(f"{path.name}{INDEX}")
    groups = _groups(tensors, limit)
    count = len(groups)
    names = [f"{path.stem}-{number:05d}-of-{count:05d}{path.suffix}" for number in range(1, count + 1)]
    old = {each for each in path.parent.glob(f"{path.stem}-*-of-*{path.suffix}") if _is_part(each, path)}
    if count == 1:
        safetensor_files.write(path, tensors, tied=tied, metadata=metadata)
        for each in (index, *sorted(old)):
            each.unlink(missing_ok=True)
        return path
    for name, group in zip(names, groups, strict=True):
        own = {alias: stored for alias, stored in tied.items() if stored in group}
        safetensor_files.write(path.with_name(name), group, tied=own, metadata=metadata)
    weight_map = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(index, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    for each in (path, *sorted(old - {path.with_name(name) for name in names})):
        each.unlink(missing_ok=True)
    return index


def _groups(tensors: Mapping[str, Tensor], limit: float) -> list[dict[str, Tensor]]:
    """Tensors in the order of their names, as many to a file as fit."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name in sorted(tensors, key=natural_key):
        own = tensors[name].numel() * tensors[name].element_size()
        if groups[-1] and size + own > limit:
            groups.append({})
            size = 0
        groups[-1][name] = tensors[name]
        size += own
    return groups


def _is_part(path: Path, whole: Path) -> bool:
    found = _NUMBERED.match(path.name)
    return found is not None and found["stem"] == whole.stem


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
    name = index.name.removesuffix(INDEX)
    for part in weight_map.values():
        if problem := _problem_of(part, Path(name)):
            raise CheckpointError(f"{index}: lists {short(repr(part))} as a part, {problem}")
    return dict(weight_map)


def _problem_of(part: object, whole: Path) -> str:
    """Why a part cannot be one: it must be a file of this checkpoint's own, in the folder of the index."""
    if not isinstance(part, str) or not is_plain_name(part):
        return "expected the plain name of a file in its own folder"
    if not part.endswith(whole.suffix):
        return f"expected a {whole.suffix} file"
    if not (part.startswith(whole.stem) or _NUMBERED.match(part)):
        return f"which is a checkpoint of its own; expected names such as {whole.stem}-00001-of-00002{whole.suffix}"
    return ""
