"""Checkpoint files to state dicts and back; the only package that reads or writes weights.

Nothing here runs code from a file: safetensors holds none, and pickles are opened with
``torch.load(weights_only=True)`` and torch's own allow-list, or refused. Nothing is read outside the folder of the file
that was named.

A newcomer is one module here that obeys `Layout`; its name goes into `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mixopt.errors import CheckpointError, unknown
from mixopt.files import natural_key
from mixopt.untrusted import open_regular, refusing
from mixopt.weights.checkpoints import pickled, safetensor_files, sharded
from mixopt.weights.checkpoints.checks import check_tensors
from mixopt.weights.checkpoints.hashing import Scan, content_hash, copy, hash_tensors, sample, scan, tensor_hash
from mixopt.weights.checkpoints.layout import Checkpoint, Layout
from mixopt.weights.checkpoints.safetensor_files import metadata_of, write

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "SUFFIXES",
    "Checkpoint",
    "Layout",
    "Scan",
    "content_hash",
    "copy",
    "dtype_of",
    "find",
    "hash_tensors",
    "metadata_of",
    "names_of",
    "read",
    "sample",
    "scan",
    "tensor_hash",
    "write",
]

LAYOUTS: dict[str, Layout] = {"safetensors": safetensor_files, "pickle": pickled, "sharded": sharded}
SUFFIXES = tuple(suffix for layout in LAYOUTS.values() for suffix in layout.SUFFIXES)
PREFIXES = ("module.", "_orig_mod.")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}


def find(directory: Path, patterns: Sequence[str] = ()) -> list[Path]:
    """Checkpoint files of a directory in natural name order.

    Args:
        directory: The folder to look in.
        patterns: Globs relative to it; without any, every checkpoint file at its top. The parts of a sharded
            checkpoint count once, through their index.

    Raises:
        CheckpointError: The directory is missing, or a pattern is not one.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; --models takes the folder with the checkpoints")
    if wrong := [pattern for pattern in patterns if not pattern or Path(pattern).is_absolute()]:
        raise CheckpointError(f"{directory}: expected patterns relative to this folder, got {wrong[0]!r}")
    with refusing(CheckpointError, str(directory), found="cannot be searched", cure="correct --ingredients"):
        found = {path for pattern in patterns or ("*",) for path in directory.glob(pattern) if _is_checkpoint(path)}
        indexes = {path for suffix in sharded.SUFFIXES for path in directory.rglob(f"*{suffix}") if path.is_file()}
    claimed: dict[Path, Path] = {}
    # An index that a pattern missed still claims its parts.
    for index in sorted(indexes):
        parts = set(sharded.parts_of(index))
        if index in found or parts & found:
            found.add(index)
            if twice := parts & claimed.keys():
                part = min(twice)
                raise CheckpointError(f"{index}: lists {part.name}, as {claimed[part]} does; remove one of the two")
            claimed |= dict.fromkeys(parts, index)
    return sorted(found - claimed.keys(), key=lambda path: natural_key(path.relative_to(directory).as_posix()))


def names_of(paths: Sequence[Path], directory: Path) -> list[str]:
    """A name for each checkpoint: its file name without suffix, or its path where two would be alike."""
    stems = [_stem(path.name) for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [(path.relative_to(directory) if path.is_relative_to(directory) else path).as_posix() for path in paths]


def read(path: Path) -> Checkpoint:
    """Open one checkpoint.

    Args:
        path: ``.safetensors``, its ``.safetensors.index.json``, or a ``.pt``, ``.pth`` or ``.bin`` pickle of
            tensors. Common wrappers (``state_dict``, ``model``, ...) and prefixes (``module.``) are removed.

    Raises:
        CheckpointError: Missing, empty, truncated, of an unknown kind, or a pickle that would need to run code.
    """
    with refusing(CheckpointError, str(path), found="not a checkpoint", cure="name the file"):
        if not path.exists():
            raise CheckpointError(f"{path}: no such file")
        with open_regular(path) as stream:
            is_empty = not stream.read(1)
    if is_empty:
        raise CheckpointError(f"{path}: the file is empty (0 bytes); copy it again from where it was trained")
    layout = _layout_of(path)
    if layout is None:
        raise CheckpointError(f"{path}: expected a checkpoint ({', '.join(SUFFIXES[:-1])} or *{SUFFIXES[-1]})")
    opened = layout.read(path)
    check_tensors(path, opened.tensors)
    return _without_prefixes(opened)


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype of a name such as ``fp16``.

    Raises:
        CheckpointError: No such dtype.
    """
    if name not in DTYPES:
        raise CheckpointError(unknown("dtype", name, DTYPES))
    return DTYPES[name]


def _layout_of(path: Path) -> Layout | None:
    return next((layout for layout in LAYOUTS.values() if layout.matches(path)), None)


def _is_checkpoint(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and _layout_of(path) is not None


def _stem(name: str) -> str:
    suffix = next((one for one in SUFFIXES if name.endswith(one)), None)
    return name.rpartition(".")[0] if suffix is None else name.removesuffix(suffix)


def _without_prefixes(opened: Checkpoint) -> Checkpoint:
    """Names as the bare module has them, where every name starts with a wrapper's prefix."""
    tensors, tied = opened.tensors, opened.tied
    while prefix := next((one for one in PREFIXES if tensors and all(name.startswith(one) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        tied = {alias.removeprefix(prefix): name.removeprefix(prefix) for alias, name in tied.items()}
    return replace(opened, tensors=tensors, tied=tied)
