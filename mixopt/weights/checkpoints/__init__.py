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
from mixopt.untrusted import refusing
from mixopt.weights.checkpoints import finding, folders, pickled, safetensor_files, sharded, strange
from mixopt.weights.checkpoints.checks import check_tensors
from mixopt.weights.checkpoints.finding import Found, others_in
from mixopt.weights.checkpoints.folders import adapter_file, base_of_adapter, is_adapter, is_checkpoint_folder
from mixopt.weights.checkpoints.hashing import (
    Scan,
    content_hash,
    copy,
    hash_tensors,
    sample,
    scan,
    tensor_hash,
    value_hash,
)
from mixopt.weights.checkpoints.layout import Checkpoint, Layout
from mixopt.weights.checkpoints.naming import without_wrappers
from mixopt.weights.checkpoints.quantised import dequantised
from mixopt.weights.checkpoints.safetensor_files import metadata_of, write
from mixopt.weights.checkpoints.sharded import write_parts
from mixopt.weights.checkpoints.wrappers import AUTO, Weights

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "SUFFIXES",
    "Checkpoint",
    "Found",
    "Layout",
    "Scan",
    "Weights",
    "adapter_file",
    "base_of_adapter",
    "content_hash",
    "copy",
    "dtype_of",
    "file_of",
    "find",
    "find_below",
    "find_noted",
    "hash_tensors",
    "is_adapter",
    "is_checkpoint_folder",
    "metadata_of",
    "names_of",
    "others_in",
    "read",
    "sample",
    "scan",
    "size_of",
    "tensor_hash",
    "value_hash",
    "write",
    "write_parts",
]

LAYOUTS: dict[str, Layout] = {"safetensors": safetensor_files, "pickle": pickled, "sharded": sharded}
SUFFIXES = tuple(suffix for layout in LAYOUTS.values() for suffix in layout.SUFFIXES)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}


def find(directory: Path, patterns: Sequence[str] = (), besides: Path | None = None) -> list[Path]:
    """The checkpoints of a directory, see `find_noted`, without what is to say of them."""
    return list(find_noted(directory, patterns, besides).paths)


def find_noted(directory: Path, patterns: Sequence[str] = (), besides: Path | None = None) -> Found:
    """Checkpoint files of a directory, and folders that are one, in natural name order.

    Args:
        directory: The folder to look in.
        patterns: Globs or names relative to it, each of which must match. Without any, every checkpoint at its top, or
            where there is none, those of the first level below that has some. The parts of a sharded checkpoint count
            once, through their index, and so do several names of one file.
        besides: A checkpoint that is not looked for, the base.

    Raises:
        CheckpointError: The directory is missing, or a pattern is not one or matches no checkpoint.
    """
    return finding.find(directory, patterns, besides, lambda path: _layout_of(path) is not None)


def find_below(directory: Path) -> list[Path]:
    """Every checkpoint file in a folder and all folders below it, in natural name order."""
    return finding.everything_below(directory, lambda path: _layout_of(path) is not None)


def names_of(paths: Sequence[Path], directory: Path) -> list[str]:
    """A name for each checkpoint: its file name without suffix, or its path where two would be alike."""
    stems = [path.name if path.is_dir() else _stem(path.name) for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [(path.relative_to(directory) if path.is_relative_to(directory) else path).as_posix() for path in paths]


def file_of(path: Path) -> Path:
    """The file that holds a checkpoint's weights, or their index: the path itself, or for a folder one in it.

    Raises:
        CheckpointError: A folder without one, or with several.
    """
    if not path.is_dir():
        return path
    with refusing(CheckpointError, str(path), found="cannot be searched", cure="name the file"):
        files = [each for each in sorted(path.iterdir()) if _is_checkpoint(each)]
    return folders.weights_in(path, files)


def size_of(path: Path) -> int:
    """The bytes of a checkpoint's file, or its index; of an adapter those of its own weights."""
    return (adapter_file(path) if is_adapter(path) else file_of(path)).stat().st_size


def read(path: Path, weights: Weights = AUTO) -> Checkpoint:
    """Open one checkpoint.

    Args:
        path: ``.safetensors``, a ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` or ``.pth.tar`` pickle of tensors, the
            ``.index.json`` of one in several files, or a folder with one of these. Common wrappers (``state_dict``,
            ``model``, ...) and prefixes (``module.``) are removed.
        weights: Which weights, where a file holds averaged ones beside those as trained: ``auto`` takes the averaged
            ones and says so.

    Raises:
        CheckpointError: Missing, empty, truncated, of an unknown kind, or a pickle that would need to run code.
    """
    with refusing(CheckpointError, str(path), found="not a checkpoint", cure="name the file"):
        if not path.exists():
            raise CheckpointError(f"{path}: {'a link to nothing' if path.is_symlink() else 'no such file'}")
        file = file_of(path)
        head = strange.head_of(file)
    if not head:
        raise CheckpointError(f"{file}: the file is empty (0 bytes); copy it again from where it was trained")
    layout = _layout_of(file)
    if layout is None:
        raise CheckpointError(f"{file}: expected a checkpoint ({', '.join(SUFFIXES[:-1])} or *{SUFFIXES[-1]})")
    strange.check_kind(file, head)
    opened = layout.read(file, weights)
    check_tensors(file, opened.tensors)
    return replace(without_wrappers(dequantised(opened)), path=path)


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
    is_one = path.is_file() and not path.name.startswith(".") and not folders.is_side_file(path)
    return is_one and _layout_of(path) is not None


def _stem(name: str) -> str:
    suffix = max((one for one in SUFFIXES if name.lower().endswith(one)), key=len, default=None)
    return name.rpartition(".")[0] if suffix is None else name[: -len(suffix)]
