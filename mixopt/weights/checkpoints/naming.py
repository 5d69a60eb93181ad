"""Names of tensors without what wrappers around a module add to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from mixopt.errors import names as listed
from mixopt.weights.checkpoints.layout import Checkpoint

# Whole parts of a name, anywhere in it: of torch.compile, FSDP and activation checkpointing.
_INSIDE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# In front of all names: of DataParallel, and of torch's AveragedModel with its counter beside.
_FRONT = "module."
COUNTER = "n_averaged"


def without_wrappers(opened: Checkpoint) -> Checkpoint:
    """The names as the bare module has them, where wrappers that are known by their names have been around it."""
    every = [*opened.tensors, *opened.tied]
    inner = {name: ".".join(part for part in name.split(".") if part not in _INSIDE) for name in every}
    notices, front = [], ""
    if any(name != new for name, new in inner.items()) and all(inner.values()) and _distinct(inner):
        gone = sorted(_INSIDE & {part for name in every for part in name.split(".")})
        notices.append(f"names lose {listed(f'{part!r}' for part in gone)}, which a wrapper put there")
        opened = renamed(opened, inner)
    while _is_wrapped(opened.tensors):
        if COUNTER in opened.tensors:
            opened = without(opened, [COUNTER])
            notices.append(f"the counter {COUNTER!r} of an averaged model is left out")
        opened = renamed(opened, {name: name.removeprefix(_FRONT) for name in (*opened.tensors, *opened.tied)})
        front += _FRONT
    if front:
        notices.append(f"names lose the prefix {front!r}")
    return replace(opened, notices=(*opened.notices, *notices))


def renamed(opened: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """The same tensors under other names; each name that is not in ``names`` stays."""
    return replace(
        opened,
        tensors={names.get(name, name): tensor for name, tensor in opened.tensors.items()},
        tied={names.get(alias, alias): names.get(name, name) for alias, name in opened.tied.items()},
    )


def without(opened: Checkpoint, gone: Iterable[str]) -> Checkpoint:
    """The checkpoint without some of its names; a tensor that had another name goes on under that."""
    left = frozenset(gone)
    tensors = {name: tensor for name, tensor in opened.tensors.items() if name not in left}
    tied: dict[str, str] = {}
    heirs: dict[str, str] = {}
    for alias, name in opened.tied.items():
        if alias in left:
            continue
        if name not in left:
            tied[alias] = name
        elif name in heirs:
            tied[alias] = heirs[name]
        else:
            heirs[name] = alias
            tensors[alias] = opened.tensors[name]
    return replace(opened, tensors=tensors, tied=tied)


def _is_wrapped(tensors: Mapping[str, object]) -> bool:
    own = [name for name in tensors if name != COUNTER]
    return bool(own) and all(name.startswith(_FRONT) and name != _FRONT for name in own)


def _distinct(names: Mapping[str, str]) -> bool:
    return len(set(names.values())) == len(names)
