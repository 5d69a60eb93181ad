"""A checkpoint fitted to a model by its names: its prefix, its constants, and which names are one weight."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor, nn

from mixopt.errors import CheckpointError, names
from mixopt.weights import checkpoints
from mixopt.weights.checkpoints import Checkpoint, Weights
from mixopt.weights.checkpoints.naming import renamed, without
from mixopt.weights.checkpoints.wrappers import AUTO

# Floating-point constants that some releases of a library store beside the weights, and others compute.
_COMPUTED = re.compile(
    r"(^|\.)(inv_freq|attn_mask|attention_mask|masked_bias|relative_coords_table|freqs_cis|rotary_emb\..*)$"
)
# What a layer's scale and shift were called before.
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}
_AVERAGED = re.compile(r"(^|[._])(ema|averaged|average|avg|swa|teacher)([._]|$)")


def _itself(name: str) -> str:
    return name


@dataclass(frozen=True)
class Signature:
    """What the state dict of a model looks like.

    Attributes:
        names: Of all its tensors, aliases included, in its own order.
        tied: Alias to the name that it shares its memory with.
        constants: Its integer and bool buffers, as they are in a new model.
        rename: From the name that a file may have a tensor under to the model's own, see `mixopt.families.Family`.
    """

    names: frozenset[str]
    tied: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    rename: Callable[[str], str] = _itself


def signature_of(module: nn.Module, rename: Callable[[str], str] = _itself) -> Signature:
    """The signature of a model that was just built, whose library may call tensors otherwise in files."""
    state = module.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    tied = {}
    for name, tensor in state.items():
        known = first.setdefault(id(tensor), name)
        if known != name:
            tied[name] = known
    constants = {
        name: tensor.detach().cpu().clone()
        for name, tensor in state.items()
        if not tensor.is_floating_point() and not tensor.is_complex()
    }
    return Signature(frozenset(state), tied, constants, rename)


@dataclass(frozen=True)
class AlignedReader:
    """Opens checkpoints, fitted to a model; see `align`.

    Attributes:
        signature: The model's.
        weights: Which of several sets of weights in a file.
        opener: Opens a checkpoint as it is.
    """

    signature: Signature
    weights: Weights = AUTO
    opener: Callable[[Path, Weights], Checkpoint] = checkpoints.read

    def __call__(self, path: Path) -> Checkpoint:
        """Open one.

        Raises:
            CheckpointError: It cannot be read, or names one weight of the model twice with different values.
        """
        return align(self.opener(path, self.weights), self.signature, self.weights)


def align(opened: Checkpoint, signature: Signature, weights: Weights = AUTO) -> Checkpoint:
    """A checkpoint under the model's names.

    What does not fit for another reason (weights that are missing, or that the model has no place for) stays as it is,
    to be told with the rest of the pool.

    Args:
        opened: As `mixopt.weights.checkpoints.read` gives it.
        signature: The model's.
        weights: Which set, where the names hold the model's twice, under two prefixes.

    Raises:
        CheckpointError: Several prefixes may be meant, or one weight of the model has two values.
    """
    notices: list[str] = []
    opened = _in_memory(opened, signature)
    opened = _with_old_names(opened, signature, notices)
    opened = _without_prefix(opened, signature, weights, notices)
    opened = _without_constants(opened, signature, notices)
    opened = _tied_as(opened, signature)
    return replace(_completed(opened, signature, notices), notices=(*opened.notices, *notices))


def _in_memory(opened: Checkpoint, signature: Signature) -> Checkpoint:
    """By the names that a library has for tensors in memory, behind whatever prefix all names have in common."""
    every = (*opened.tensors, *opened.tied)
    changed: dict[str, str] = {}
    most = 0
    for prefix in _shared_parts(every):
        new = {name: signature.rename(name.removeprefix(prefix)) for name in every}
        fitting = sum(name in signature.names for name in new.values())
        if fitting > most and len(set(new.values())) == len(new):
            changed = {name: f"{prefix}{each}" for name, each in new.items() if name != f"{prefix}{each}"}
            most = fitting
    return replace(renamed(opened, changed), renamed=changed) if changed else opened


def _shared_parts(every: Iterable[str]) -> list[str]:
    """Nothing, and each leading part of a name that all have in common."""
    first, *others = (name.split(".")[:-1] for name in every)
    shared = list(takewhile(lambda parts: len(set(parts)) == 1, zip(first, *others, strict=False)))
    return ["".join(f"{parts[0]}." for parts in shared[:count]) for count in range(len(shared) + 1)]


def _with_old_names(opened: Checkpoint, signature: Signature, notices: list[str]) -> Checkpoint:
    new = {}
    for name in (*opened.tensors, *opened.tied):
        front, _, last = name.rpartition(".")
        modern = f"{front}.{_OLD_NAMES.get(last, last)}"
        if last in _OLD_NAMES and name not in signature.names and _ends_like_one(modern, signature.names):
            new[name] = modern
    if new:
        notices.append(f"{len(new)} names of an older release are read as the model's ({names(new, 2)})")
    return renamed(opened, new)


def _ends_like_one(name: str, expected: frozenset[str]) -> bool:
    """Whether a name is the model's, but for a prefix of either."""
    return name in expected or any(name.endswith(f".{each}") or each.endswith(f".{name}") for each in expected)


def _without_prefix(opened: Checkpoint, signature: Signature, weights: Weights, notices: list[str]) -> Checkpoint:
    """Take off the prefix under which the names hold all of the model's, or put on the one that they lack."""
    found = {*opened.tensors, *opened.tied}
    needed = _needed(signature)
    if not needed:
        return opened
    prefixes = {"", *_prefixes(found, needed)}
    shorter = {prefix for prefix in prefixes if all(f"{prefix}{name}" in found for name in needed)}
    if shorter == {""}:
        return opened
    if shorter:
        prefix = _chosen(opened.path, shorter, weights, notices)
        others = tuple(shorter - {prefix})
        left = {name for name in found if not name.startswith(prefix) or (not prefix and name.startswith(others))}
        if prefix:
            notices.append(f"names lose the prefix {prefix!r}")
        if left:
            odd = "" if _AVERAGED.search(prefix) else _average_among(left, set(others))
            notices.append(f"{len(left)} tensors that are not the model's are left out ({names(sorted(left))}){odd}")
        kept = without(opened, left)
        return renamed(kept, {name: name.removeprefix(prefix) for name in found - left})
    for prefix in _prefixes(needed, found):
        if needed <= {f"{prefix}{name}" for name in found}:
            notices.append(f"names get the prefix {prefix!r} that the model's have")
            return renamed(opened, {name: f"{prefix}{name}" for name in found})
    return _with_nearest(opened, signature, notices)


def _with_nearest(opened: Checkpoint, signature: Signature, notices: list[str]) -> Checkpoint:
    """Where no prefix makes all names fit: the one that makes most fit, so that the others can be told."""
    found = {*opened.tensors, *opened.tied}
    if found & signature.names:
        return opened
    fitting = {prefix: _count(prefix, found, signature.names) for prefix in _prefixes(found, signature.names)}
    prefix = max(sorted(fitting), key=lambda each: fitting[each], default="")
    if not prefix or any(not name.startswith(prefix) for name in found):
        return opened
    notices.append(f"names lose the prefix {prefix!r}")
    return renamed(opened, {name: name.removeprefix(prefix) for name in found})


def _needed(signature: Signature) -> frozenset[str]:
    """The names without which a checkpoint is not the model's."""
    return signature.names - signature.tied.keys() - set(signature.tied.values()) - signature.constants.keys()


def _prefixes(long: Iterable[str], short: Iterable[str]) -> set[str]:
    """What stands before a dot and one of the short names in long ones; by the longest few, which are the rarest."""
    probes = sorted(short, key=lambda name: (-len(name), name))[:3]
    return {name.removesuffix(probe) for name in long for probe in probes if name.endswith(f".{probe}")}


def _count(prefix: str, found: Iterable[str], expected: frozenset[str]) -> int:
    return sum(name.startswith(prefix) and name.removeprefix(prefix) in expected for name in found)


def _chosen(path: Path, prefixes: set[str], weights: Weights, notices: list[str]) -> str:
    if len(prefixes) == 1:
        return next(iter(prefixes))
    averaged = {prefix for prefix in prefixes if _AVERAGED.search(prefix)}
    wanted = prefixes - averaged if weights == "raw" else averaged
    if len(wanted) != 1 or len(prefixes) > 2:
        raise CheckpointError(
            f"{path}: holds the model's weights under several prefixes ({names(sorted(prefixes))}), and it is not "
            "clear which are meant; save those alone"
        )
    prefix, other = next(iter(wanted)), next(iter(prefixes - wanted))
    kind = "averaged" if prefix in averaged else "as trained"
    hint = f"; --weights {'raw' if prefix in averaged else 'ema'} takes the other" if weights == AUTO else ""
    notices.append(f"of two sets of weights {prefix!r} ({kind}) is taken, and {other!r} left out{hint}")
    return prefix


def _average_among(left: set[str], taken: set[str]) -> str:
    """Says of names left out that an average is among them which is not under the model's names."""
    fronts = {name.partition(".")[0] + "." for name in left} - taken
    averages = sorted(front for front in fronts if _AVERAGED.search(front))
    if not averages:
        return ""
    return f"; those of {names(averages)} seem to be averaged weights, but are not under the model's names"


def _without_constants(opened: Checkpoint, signature: Signature, notices: list[str]) -> Checkpoint:
    """Leave out constants and counters that the model has no place for."""
    extra = [name for name in (*opened.tensors, *opened.tied) if name not in signature.names]
    gone = []
    for name in extra:
        tensor = opened.tensors[opened.tied.get(name, name)]
        if not tensor.is_floating_point() or _COMPUTED.search(name):
            gone.append(name)
    if gone:
        notices.append(f"{len(gone)} constants that the model has no place for are left out ({names(gone)})")
    return without(opened, gone)


def _completed(opened: Checkpoint, signature: Signature, notices: list[str]) -> Checkpoint:
    """Put in the constants that the file lacks and the model has."""
    found = {*opened.tensors, *opened.tied}
    lacking = [name for name in signature.constants if name not in found and name not in signature.tied]
    if not lacking or not found & signature.names:
        return opened
    notices.append(f"{len(lacking)} constants are the model's own, as the file has none ({names(lacking)})")
    made = {name: signature.constants[name] for name in lacking}
    return replace(opened, tensors=opened.tensors | made, added=tuple(lacking))


def _tied_as(opened: Checkpoint, signature: Signature) -> Checkpoint:
    """One tensor for what is one in the model, under the model's first name for it, and two for what are two.

    Raises:
        CheckpointError: A file holds different values for one weight.
    """
    everything = opened.tensors | {alias: opened.tensors[name] for alias, name in opened.tied.items()}
    tied: dict[str, str] = {}
    for alias, name in signature.tied.items():
        if alias not in everything:
            if name in everything:
                tied[alias] = name
            continue
        tensor = everything.pop(alias)
        held = everything.setdefault(name, tensor)
        if held is not tensor and not _equal(held, tensor):
            raise CheckpointError(
                f"{opened.path}: {name} and {alias} are one weight of the model, and the file holds different values "
                "for the two; remove the one that is not meant"
            )
        tied[alias] = name
    # What the model does not know at all stays as the file has it.
    tied |= {alias: name for alias, name in opened.tied.items() if {alias, name}.isdisjoint(signature.names)}
    return replace(opened, tensors={name: each for name, each in everything.items() if name not in tied}, tied=tied)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.to(torch.float64), other.to(torch.float64))
