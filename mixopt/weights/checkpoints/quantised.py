"""Weights of 8 bits and fewer: read exactly where a number stands for itself, refused where it needs a scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from mixopt.errors import CheckpointError, names
from mixopt.weights.checkpoints.checks import FLOAT8
from mixopt.weights.checkpoints.layout import Checkpoint

# How names end that a library adds beside quantised weights.
_SCHEMES = {
    "bitsandbytes in 8 bits": (".SCB", ".weight_format"),
    "bitsandbytes in 4 bits": (
        ".absmax",
        ".quant_map",
        ".quant_state.bitsandbytes__nf4",
        ".quant_state.bitsandbytes__fp4",
    ),
    "GPTQ or AWQ": (".qweight", ".qzeros"),
    "float8 with scales": (".weight_scale_inv",),
}
_SCALES = ("_scale", ".scale", "_scale_inv", "scale_weight")


def dequantised(opened: Checkpoint) -> Checkpoint:
    """The checkpoint with float8 as float32, which holds the same numbers.

    Raises:
        CheckpointError: The numbers stand for others, by a scale beside them; names the scheme.
    """
    _refuse_scaled(opened.path, opened.tensors)
    short = [name for name, tensor in opened.tensors.items() if tensor.dtype in FLOAT8]
    if not short:
        return opened
    if scales := [name for name in opened.tensors if name.endswith(_SCALES)]:
        raise _refusal(opened.path, "float8 with scales", [*short[:1], *scales])
    tensors = {name: each.float() if each.dtype in FLOAT8 else each for name, each in opened.tensors.items()}
    notice = f"{len(short)} float8 tensors are read as float32, which holds the same numbers"
    return replace(opened, tensors=tensors, notices=(*opened.notices, notice))


def _refuse_scaled(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for scheme, endings in _SCHEMES.items():
        if found := [name for name in tensors if name.endswith(endings)]:
            raise _refusal(path, scheme, found)


def _refusal(path: Path, scheme: str, found: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{path}: quantised by {scheme} ({names(found, 3)}); its numbers fit its own scales alone and cannot be mixed. "
        "Save it in floating point first, such as with model.dequantize() and save_pretrained"
    )
