"""Pickles of tensors, as ``torch.save`` writes them: the weights-only reader opens them, or they are refused."""

from __future__ import annotations

import pickle
import reprlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixopt.errors import CheckpointError, short
from mixopt.memory import available_memory, gigabytes
from mixopt.untrusted import READER_ERRORS, is_environment, reason_of
from mixopt.weights.checkpoints import archived
from mixopt.weights.checkpoints.checks import check_tensors
from mixopt.weights.checkpoints.layout import Checkpoint

SUFFIXES = (".pt", ".pth", ".bin")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")


def matches(path: Path) -> bool:
    """Whether a path has the name of a pickle of tensors."""
    return path.name.endswith(SUFFIXES)


def read(path: Path) -> Checkpoint:
    """Open one, and take off common wrappers (``state_dict``, ``model``, ...).

    Raises:
        CheckpointError: Damaged, truncated, without tensors, or a pickle that would need to run code.
    """
    loaded, mapped = _load(path)
    state, ignored = unwrap(path, loaded)
    names_by_memory: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        memory = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
        )
        first = names_by_memory.setdefault(memory, name)
        if first != name and tensor.numel() > 0:
            tied[name] = first
        else:
            tensors[name] = tensor.detach()
    return Checkpoint(path, tensors, tied, {}, ignored, mapped)


def _load(path: Path) -> tuple[Any, bool]:
    """What a pickle holds, and whether its tensors are mapped rather than read."""
    mapped = archived.check(path)
    if not mapped and (free := available_memory()) and (size := path.stat().st_size) > free:
        raise CheckpointError(
            f"{path}: is of a format that is read whole, which takes {gigabytes(size)} of memory, and "
            f"{gigabytes(free)} can be had; save it again with a newer torch, which maps it"
        )
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch explains protocols of pickles; the error below says what matters
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped), mapped
    except READER_ERRORS as error:
        if is_environment(error):
            raise CheckpointError(
                f"{path}: cannot be read ({_reason(error)}); check its permissions, the disk and the free memory"
            ) from error
        if not isinstance(error, pickle.UnpicklingError) or "Unsupported operand" in str(error):
            raise CheckpointError(
                f"{path}: damaged or truncated checkpoint ({_reason(error)}); copy it again from where it was trained"
            ) from error
        raise CheckpointError(
            f"{path}: this pickle holds more than tensors ({_reason(error)}); opening it could run code, so it was "
            "not opened. If you trust where it came from, convert it there: "
            f"m = torch.load({path.name!r}, weights_only=False); torch.save(m.state_dict(), 'converted.pt') where it "
            "is a module, or torch.save(m['state_dict'], 'converted.pt') where it is a dictionary with one inside"
        ) from error


def _numpy_scalars() -> list[Any]:
    """What torch must allow for a NumPy number beside the weights (a best score), as NumPy 2 and 1 pickle it."""
    scalar: Any = np.float64(0).__reduce__()[0]

    def old(*arguments: Any) -> Any:
        return scalar(*arguments)

    old.__module__ = "numpy.core.multiarray"
    old.__name__ = old.__qualname__ = "scalar"
    return [scalar, old, np.dtype, *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "b1"))]


def _reason(error: Exception) -> str:
    """The telling line of torch's long messages."""
    telling = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line]
    return telling[0][:160] if telling else reason_of(error)


def unwrap(path: Path, loaded: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict in what a pickle held, name to tensor, and its entries that are not tensors.

    Raises:
        CheckpointError: There is none, or one of its tensors cannot be worked with.
    """
    state = loaded
    for _ in range(3):
        inner = [state[key] for key in WRAPPERS if isinstance(state, Mapping) and isinstance(state.get(key), Mapping)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: expected a state dict (name to tensor), found a {type(state).__name__}")
    tensors = {
        str(name): value for name, value in state.items() if isinstance(name, (str, int)) and isinstance(value, Tensor)
    }
    # Of anything, however deep: a key may hold itself a thousand times over.
    others = [
        name if isinstance(name, str) else short(reprlib.repr(name))
        for name, value in state.items()
        if not (isinstance(name, (str, int)) and isinstance(value, Tensor))
    ]
    if not tensors:
        found = ", ".join(map(short, others[:5])) or "nothing"
        raise CheckpointError(f"{path}: no tensors found in it; its entries are {found}")
    check_tensors(path, tensors)
    return tensors, tuple(others)
