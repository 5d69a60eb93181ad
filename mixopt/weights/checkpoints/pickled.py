"""Pickles of tensors, as ``torch.save`` writes them: the weights-only reader opens them, or they are refused."""

from __future__ import annotations

import pickle
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixopt.errors import CheckpointError, short
from mixopt.memory import available_memory, gigabytes
from mixopt.untrusted import READER_ERRORS, is_environment, reason_of
from mixopt.weights.checkpoints import archived
from mixopt.weights.checkpoints.harmless import harmless
from mixopt.weights.checkpoints.layout import Checkpoint
from mixopt.weights.checkpoints.wrappers import AUTO, Weights, unwrap

# What tells a model, and the trainer that made it.
_NOTED = ("arch", "version", "metric", "best_acc1", "model_name", "pytorch-lightning_version")
_NOTED_OPTIONS = ("model", "arch", "data_path", "num_classes", "img_size")
_LONGEST_NOTE = 200
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar")


def matches(path: Path) -> bool:
    """Whether a path has the name of a pickle of tensors."""
    return path.name.lower().endswith(SUFFIXES)


def read(path: Path, weights: Weights = AUTO) -> Checkpoint:
    """Open one, and take off common wrappers (``state_dict``, ``model``, ...).

    Raises:
        CheckpointError: Damaged, truncated, without tensors, or a pickle that would need to run code.
    """
    loaded, mapped = _load(path)
    state, ignored, notices = unwrap(path, loaded, weights)
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
    return Checkpoint(path, tensors, tied, _notes(loaded), ignored, mapped, notices)


def _notes(loaded: Any) -> dict[str, str]:
    """What a trainer wrote beside the weights of how they were made, as short texts."""
    if not isinstance(loaded, Mapping):
        return {}
    options = loaded.get("args")
    inner = vars(options) if isinstance(options, Namespace) else options if isinstance(options, Mapping) else {}
    every = {**{key: loaded.get(key) for key in _NOTED}, **{f"args.{key}": inner.get(key) for key in _NOTED_OPTIONS}}
    return {key: str(value)[:_LONGEST_NOTE] for key, value in every.items() if isinstance(value, (str, int, float))}


def _load(path: Path) -> tuple[Any, bool]:
    """What a pickle holds, and whether its tensors are mapped rather than read."""
    mapped = archived.check(path)
    if not mapped and (free := available_memory()) and (size := path.stat().st_size) > free:
        raise CheckpointError(
            f"{path}: is of a format that is read whole, which takes {gigabytes(size)} of memory, and "
            f"{gigabytes(free)} can be had; save it again with a newer torch, which maps it"
        )
    try:
        with torch.serialization.safe_globals(harmless()), warnings.catch_warnings():
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
            "is a module; where it is a dictionary, torch.save(m['state_dict'], 'converted.pt'), or "
            "m['model'].state_dict() in its place where that is a module: print(m.keys()) tells"
        ) from error


def _reason(error: Exception) -> str:
    """The telling part of torch's long messages, without its own advice, which would not help here."""
    if found := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
        return f"an object of {short(found[1])}"
    telling = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line]
    return telling[0][:160] if telling else reason_of(error)
