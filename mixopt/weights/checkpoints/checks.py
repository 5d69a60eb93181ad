"""Whether tensors from a file can be worked with at all, told before anything is done with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mixopt.errors import CheckpointError, short
from mixopt.memory import available_memory, gigabytes

_LONGEST_NAME = 2000
# Exactly other floating-point numbers, of which they are made when a checkpoint is read.
FLOAT8 = frozenset(
    found
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if isinstance(found := getattr(torch, name, None), torch.dtype)
)
# What torch can look through for NaN, compare and mix; complex ones are told with the rest of the pool.
_KINDS = frozenset(
    {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.complex64,
        torch.complex128,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint64,
        torch.uint32,
        torch.uint16,
        torch.uint8,
        torch.bool,
    }
)


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors without values, of kinds that cannot be mixed, or that blow up beyond the memory there is.

    Raises:
        CheckpointError: Names the file and the tensor.
    """
    for name, tensor in tensors.items():
        if problem := _problem_of_name(name):
            raise CheckpointError(f"{path}: a tensor is called {short(repr(name))}, {problem}")
        if problem := _problem_of(tensor):
            raise CheckpointError(f"{path}: tensor {short(name)} {problem}")


def _problem_of_name(name: str) -> str:
    if len(name) > _LONGEST_NAME:
        return f"in {len(name):,} letters; expected at most {_LONGEST_NAME:,}"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "which is no Unicode text"
    return ""


def _problem_of(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "is on the meta device and has no values; save the model again once its weights are loaded"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return "is sparse or quantized; only dense tensors can be mixed"
    if tensor.dtype not in _KINDS | FLOAT8:
        kind = str(tensor.dtype).removeprefix("torch.")
        return f"is stored as {kind}, which cannot be mixed; convert the checkpoint to bfloat16 or float32 first"
    size = tensor.numel() * tensor.element_size()
    # A view may repeat the few bytes that are in the file without end.
    if size > tensor.untyped_storage().nbytes() and (free := available_memory()) and size > free:
        return (
            f"of shape {list(tensor.shape)} asks for {gigabytes(size)} of memory, and {gigabytes(free)} can be had; "
            "its file holds a repeated view, save it with .contiguous() or correct the shape"
        )
    return ""
