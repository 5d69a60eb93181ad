"""What torch's weights-only reader may make beside tensors: values that run no code, whatever a pickle says of them.

Trainers keep their options and scores beside the weights. A class on this list is either one whose instances only hold
what they are given, or it is not looked up at all: a plain holder is made in its place. Nothing is imported.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np
import torch


class _Held:
    """Stands in for an object of a class that is not needed: takes whatever it is made of, and keeps none of it."""

    def __new__(cls, *arguments: Any, **options: Any) -> _Held:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """A dictionary of a class that is not needed, empty at first; a pickle fills it."""
    return {}


def _sequence(*arguments: Any) -> list[Any]:
    """A list of a class that is not needed, empty at first; a pickle fills it."""
    return []


# Options of Lightning and Hydra: only their names are known here.
_MAPPINGS = (
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
)
_OBJECTS = (
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.StringNode",
    "omegaconf.nodes.BooleanNode",
    "typing.Any",
)


_VALUES = (
    "functools.partial",
    "types.SimpleNamespace",
    "decimal.Decimal",
    "uuid.UUID",
    "uuid.SafeUUID",
    "datetime.datetime",
    "datetime.date",
    "datetime.timedelta",
    "datetime.timezone",
    "builtins.slice",
)


def _settings_of_torch() -> list[str]:
    """Optimizers, schedules and losses, which trainers keep as options: ``functools.partial(torch.optim.AdamW)``."""
    places = (vars(torch.optim), vars(torch.optim.lr_scheduler), vars(torch.nn.modules.loss))
    kinds = {kind for place in places for kind in place.values() if isinstance(kind, type)}
    return sorted(
        f"{kind.__module__}.{kind.__name__}"
        for kind in kinds
        if kind.__module__.startswith(("torch.optim.", "torch.nn.modules.loss"))
    )


def harmless() -> list[Any]:
    """For ``torch.serialization.safe_globals``."""
    paths = [f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS]
    held = [(_Held, name) for name in (*_OBJECTS, *_VALUES, *paths, *_settings_of_torch())]
    containers = [(_mapping, "collections.defaultdict"), (_sequence, "collections.deque")]
    mappings = [(dict, name) for name in _MAPPINGS]
    plain = [(kind, f"builtins.{kind.__name__}") for kind in (list, dict, set, frozenset, int, float, str, bool)]
    return [*_numpy_values(), *plain, argparse.Namespace, *containers, *mappings, *held]


_PATHS = tuple(each.__name__ for each in (pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath))


def _numpy_values() -> list[Any]:
    """A NumPy number or array beside the weights (a best score, a history), as NumPy 2 and 1 pickle them."""
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.zeros(0).__reduce__()[0]
    kinds = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1", "U1")
    return [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        array,
        (array, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in kinds),
    ]
