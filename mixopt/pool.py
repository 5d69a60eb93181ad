"""Pool: ingredients and base, checked together, stacked and fingerprinted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixopt import checkpoints
from mixopt.errors import CheckpointError, PoolError, listing, names
from mixopt.groups import depth_order

Progress = Callable[[str, int, int], None]
Reader = Callable[[Path], checkpoints.Checkpoint]


@dataclass(frozen=True)
class MixedTensor:
    """One tensor that differs between columns, and its place in the stack.

    Attributes:
        name: Its name in the state dict.
        shape: Its shape.
        dtype: The dtype that the ingredients agree on; fp32 where they differ.
        start: Its first place along the stack's second axis.
        stop: One past its last.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Pool:
    """Ingredients and base, ready to mix.

    Attributes:
        columns: Ingredients in natural name order, then the base where there is one.
        base: The base's column name, or None.
        paths: Column name to file.
        mixed: The tensors that are mixed, in depth order.
        stack: ``[n_columns, n_params]`` float32 on the CPU: the mixed tensors, laid out as ``mixed`` says.
        fixed: Tensors kept once and never mixed: identical in all columns, or not floating-point.
        tied: Alias to the tensor it shares its memory with.
        hashes: Column name to tensor name to SHA-256.
        buffers_from: The column whose integer buffers are kept, where they differ between columns.
        notices: What a user should know about the pool.
    """

    columns: tuple[str, ...]
    base: str | None
    paths: dict[str, Path]
    mixed: tuple[MixedTensor, ...]
    stack: Tensor
    fixed: dict[str, Tensor]
    tied: dict[str, str]
    hashes: dict[str, dict[str, str]]
    buffers_from: str | None
    notices: tuple[str, ...]

    def saved_dtypes(self, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
        """Floating-point tensor name to the dtype it is saved in: ``dtype``, or that of the ingredients."""
        own = {place.name: place.dtype for place in self.mixed}
        own |= {name: tensor.dtype for name, tensor in self.fixed.items() if tensor.is_floating_point()}
        return own if dtype is None else dict.fromkeys(own, dtype)

    @property
    def ingredients(self) -> tuple[str, ...]:
        """The columns without the base."""
        return tuple(name for name in self.columns if name != self.base)

    @property
    def sizes(self) -> dict[str, int]:
        """Mixed tensor name to number of parameters, in depth order."""
        return {tensor.name: tensor.stop - tensor.start for tensor in self.mixed}

    @property
    def fingerprints(self) -> dict[str, str]:
        """Column name to the content hash of its checkpoint."""
        return {name: checkpoints.content_hash(hashes) for name, hashes in self.hashes.items()}


@dataclass(frozen=True)
class _Facts:
    """What the first pass keeps of a checkpoint; a few bytes a tensor."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    hashes: dict[str, str]
    not_a_number: tuple[str, ...]
    infinite: tuple[str, ...]
    tied: dict[str, str]
    ignored: tuple[str, ...]


def open_pool(
    ingredients: Mapping[str, Path],
    base: tuple[str, Path] | None = None,
    *,
    order: Callable[[Iterable[str]], Sequence[str]] = depth_order,
    reader: Reader = checkpoints.read,
    progress: Progress | None = None,
) -> Pool:
    """Check every checkpoint, then stack what differs.

    Each file is read twice and one at a time: once to check and hash it, once to fill its row. So the peak memory
    is the stack and one checkpoint (files that can be mapped into memory cost nothing of their own).

    Args:
        ingredients: Column name to file, in the order of the columns.
        base: Name and file of the pretrained checkpoint.
        order: Puts tensor names in depth order.
        reader: Opens a checkpoint; a family's own where its files need more than reading.
        progress: Told ``(what, done, total)`` after each file.

    Raises:
        PoolError: Everything that is wrong with the pool, in one message.
    """
    files = dict(ingredients)
    if base is not None:
        files[base[0]] = base[1]
    facts, problems = _inspect(files, reader, progress)
    problems += _misfits(facts)
    problems += _duplicates(facts)
    problems += _not_finite(facts)
    if len(files) < 2:
        only = names(files) or "none"
        problems.append(f"mixing needs at least two checkpoints, found {len(files)} ({only})")
    if problems:
        raise PoolError(listing("the checkpoints cannot be mixed", problems))
    return _stack(files, None if base is None else base[0], facts, order, reader, progress)


def _inspect(
    files: Mapping[str, Path], reader: Reader, progress: Progress | None
) -> tuple[dict[str, _Facts], list[str]]:
    facts: dict[str, _Facts] = {}
    problems = []
    for number, (name, path) in enumerate(files.items(), start=1):
        try:
            facts[name] = _facts_of(reader(path))
        except CheckpointError as error:
            problems.append(str(error))
        if progress:
            progress("checking checkpoints", number, len(files))
    return facts, problems


def _facts_of(checkpoint: checkpoints.Checkpoint) -> _Facts:
    tensors = checkpoint.tensors
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    suspect = [name for name, tensor in floating.items() if not bool(torch.isfinite(tensor).all())]
    broken = tuple(name for name in suspect if bool(torch.isnan(floating[name]).any()))
    return _Facts(
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        dtypes={name: tensor.dtype for name, tensor in tensors.items()},
        hashes=checkpoints.hash_tensors(tensors),
        not_a_number=broken,
        infinite=tuple(name for name in suspect if name not in broken),
        tied=checkpoint.tied,
        ignored=checkpoint.ignored,
    )


def _misfits(facts: Mapping[str, _Facts]) -> list[str]:
    """Keys, shapes, kinds and ties that differ from the first checkpoint's."""
    problems: list[str] = []
    if not facts:
        return problems
    first_name, first = next(iter(facts.items()))
    for name, other in facts.items():
        if missing := [tensor for tensor in first.shapes if tensor not in other.shapes]:
            problems.append(f"{name}: lacks {len(missing)} tensors that {first_name} has: {names(missing)}")
        if extra := [tensor for tensor in other.shapes if tensor not in first.shapes]:
            problems.append(f"{name}: has {len(extra)} tensors that {first_name} lacks: {names(extra)}")
        if other.tied != first.tied:
            problems.append(f"{name}: ties other tensors than {first_name} ({other.tied} and {first.tied})")
        for tensor in (each for each in first.shapes if each in other.shapes):
            if other.shapes[tensor] != first.shapes[tensor]:
                problems.append(
                    f"{name}: {tensor} has shape {list(other.shapes[tensor])}, "
                    f"expected {list(first.shapes[tensor])} as in {first_name}"
                )
            elif other.dtypes[tensor].is_floating_point != first.dtypes[tensor].is_floating_point:
                problems.append(
                    f"{name}: {tensor} is {other.dtypes[tensor]}, but {first.dtypes[tensor]} in {first_name}"
                )
            elif other.dtypes[tensor].is_complex:
                problems.append(f"{name}: {tensor} is complex; only real tensors can be mixed")
    return problems


def _duplicates(facts: Mapping[str, _Facts]) -> list[str]:
    seen: dict[str, str] = {}
    problems = []
    for name, fact in facts.items():
        twin = seen.setdefault(checkpoints.content_hash(fact.hashes), name)
        if twin != name:
            problems.append(f"{name}: the same weights as {twin}; remove one of the two")
    return problems


def _not_finite(facts: Mapping[str, _Facts]) -> list[str]:
    """NaN anywhere; an infinity is legal only where all agree on it (an attention mask)."""
    problems = []
    for name, fact in facts.items():
        problems += [f"{name}: tensor {tensor} holds NaN" for tensor in fact.not_a_number]
        for tensor in fact.infinite:
            if not _identical(facts, tensor):
                problems.append(f"{name}: tensor {tensor} holds an infinite value")
    return problems


def _identical(facts: Mapping[str, _Facts], tensor: str) -> bool:
    return len({fact.hashes.get(tensor) for fact in facts.values()}) == 1


def _stack(
    files: Mapping[str, Path],
    base: str | None,
    facts: Mapping[str, _Facts],
    order: Callable[[Iterable[str]], Sequence[str]],
    reader: Reader,
    progress: Progress | None,
) -> Pool:
    first = next(iter(facts.values()))
    differing = [tensor for tensor in first.shapes if not _identical(facts, tensor)]
    floating = [tensor for tensor in differing if first.dtypes[tensor].is_floating_point]
    mixed = _layout([name for name in order(first.shapes) if name in set(floating)], base, facts)
    n_params = mixed[-1].stop if mixed else 0
    stack = torch.empty(len(files), n_params, dtype=torch.float32)
    fixed: dict[str, Tensor] = {}
    for row, path in enumerate(files.values()):
        tensors = reader(path).tensors
        for place in mixed:
            stack[row, place.start : place.stop].copy_(tensors[place.name].reshape(-1))
        if row == 0:
            moving = {place.name for place in mixed}
            fixed = {key: tensor.clone() for key, tensor in tensors.items() if key not in moving}
        del tensors  # before the next file is read, so that one at a time is held
        if progress:
            progress("stacking checkpoints", row + 1, len(files))
    if not mixed:
        raise PoolError("the checkpoints differ in no floating-point tensor; there is nothing to mix")
    return Pool(
        columns=tuple(files),
        base=base,
        paths=dict(files),
        mixed=mixed,
        stack=stack,
        fixed=fixed,
        tied=dict(first.tied),
        hashes={name: fact.hashes for name, fact in facts.items()},
        buffers_from=next(iter(files)) if len(floating) < len(differing) else None,
        notices=tuple(_notices(facts, base, differing, floating)),
    )


def _layout(ordered: Sequence[str], base: str | None, facts: Mapping[str, _Facts]) -> tuple[MixedTensor, ...]:
    first = next(iter(facts.values()))
    places = []
    start = 0
    for name in ordered:
        shape = first.shapes[name]
        stop = start + torch.Size(shape).numel()
        dtypes = {fact.dtypes[name] for column, fact in facts.items() if column != base}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        places.append(MixedTensor(name, shape, dtype, start, stop))
        start = stop
    return tuple(places)


def _notices(
    facts: Mapping[str, _Facts], base: str | None, differing: Sequence[str], floating: Sequence[str]
) -> Iterable[str]:
    by_dtype = {
        name: Counter(str(dtype).removeprefix("torch.") for dtype in fact.dtypes.values() if dtype.is_floating_point)
        for name, fact in facts.items()
    }
    kinds = {name: tuple(sorted(count)) for name, count in by_dtype.items()}
    if len(set(kinds.values())) > 1:
        spread = Counter(" and ".join(kind) for kind in kinds.values())
        told = ", ".join(f"{count} in {kind}" for kind, count in spread.items())
        yield f"checkpoints of different dtypes ({told}): mixed in fp32; tensors whose dtypes differ are saved in fp32"
    if any("float64" in kind for kind in kinds.values()):
        yield "float64 tensors are searched in fp32; the saved model is made from the float64 values"
    if whole := [tensor for tensor in differing if tensor not in set(floating)]:
        first = next(iter(facts))
        yield f"{len(whole)} integer or bool buffers differ ({names(whole)}): taken from {first}"
    first_facts = next(iter(facts.values()))
    if statistics := [tensor for tensor in floating if tensor.endswith(("running_mean", "running_var"))]:
        yield f"BatchNorm statistics differ between checkpoints in {len(statistics)} buffers"
    if first_facts.tied:
        yield f"{len(first_facts.tied)} tied tensors stay tied and are saved once ({names(first_facts.tied)})"
    if ignored := sorted({entry for fact in facts.values() for entry in fact.ignored}):
        yield f"entries that are not tensors are left out: {names(ignored)}"
    if base is not None and facts[base].dtypes != first_facts.dtypes:
        yield f"the base {base} is stored in other dtypes than the ingredients; they decide the saved dtype"
