"""One ``.safetensors`` file: https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixopt.errors import CheckpointError
from mixopt.files import atomic_write
from mixopt.untrusted import refusing
from mixopt.weights.checkpoints.hashing import bytes_of
from mixopt.weights.checkpoints.layout import Checkpoint
from mixopt.weights.checkpoints.wrappers import AUTO, Weights

SUFFIXES = (".safetensors",)

# What the format calls the dtypes.
_FORMAT_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def matches(path: Path) -> bool:
    """Whether a path has the name of a safetensors file."""
    return path.name.lower().endswith(SUFFIXES)


def read(path: Path, weights: Weights = AUTO) -> Checkpoint:
    """Open one; its tensors stay in the file until they are used.

    Raises:
        CheckpointError: Damaged or truncated.
    """
    tensors, metadata = read_tensors(path)
    tied = {alias: name for alias, name in metadata.items() if name in tensors and alias not in tensors}
    metadata = {key: text for key, text in metadata.items() if key not in tied}
    return Checkpoint(path, tensors, tied, metadata, mapped=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Name to tensor, and the text beside them, as the file has it.

    Raises:
        CheckpointError: Damaged or truncated.
    """
    with _damaged(path), safe_open(path, framework="pt", device="cpu") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        return tensors, dict(opened.metadata() or {})


def metadata_of(path: Path) -> dict[str, str]:
    """The text stored in a safetensors file, without reading its tensors; empty for other kinds."""
    if not matches(path) or not path.is_file():
        return {}
    with _damaged(path), safe_open(path, framework="pt") as opened:
        return dict(opened.metadata() or {})


def _damaged(path: Path) -> AbstractContextManager[None]:
    return refusing(
        CheckpointError,
        str(path),
        found="damaged or truncated safetensors file",
        cure="copy it again from where it was trained",
        also=(SafetensorError,),
    )


def write(path: Path, tensors: Mapping[str, Tensor], *, tied: Mapping[str, str], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with a canonical header: the same tensors give the same bytes, anywhere.

    safetensors' own writer keeps its metadata in a hash map, whose order differs from run to run; so the header
    is written here, by the format's description, and the data streams after it.

    Args:
        path: The target; appears whole or not at all.
        tensors: Name to CPU tensor, each stored once.
        tied: Alias to stored name, kept as safetensors' ``save_model`` does, in the metadata.
        metadata: More text for the header.

    Raises:
        CheckpointError: A dtype that the format does not know.
        RunError: The file cannot be written.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata, **tied}}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _FORMAT_NAMES:
            raise CheckpointError(f"{path}: tensor {name} has dtype {tensor.dtype}, which cannot be saved")
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _FORMAT_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    header = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    header += b" " * (-len(header) % 8)
    with atomic_write(path) as stream:
        stream.write(struct.pack("<Q", len(header)))
        stream.write(header)
        for name in order:
            stream.write(bytes_of(tensors[name]))
