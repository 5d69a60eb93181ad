"""Pool: ingredients and base, checked together, stacked and fingerprinted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import joblib
import torch
from torch import Tensor

from mixopt.errors import PoolError, listing, names
from mixopt.memory import available_memory, gigabytes
from mixopt.values.groups import depth_order
from mixopt.weights import checkpoints
from mixopt.weights.checks import identical, likely_twins, misfits, not_finite, of_the_rest, twins, unmixable
from mixopt.weights.reading import Contents, Progress, Reader, Reading


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
        added: Fixed tensors that some checkpoint lacks, and the model had of its own.
        left_out: Weights of some checkpoint that the family leaves out.
        renamed: Name in a file to the library's own in memory, where these differ.
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
    added: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)

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


def open_pool(
    ingredients: Mapping[str, Path],
    base: tuple[str, Path] | None = None,
    *,
    order: Callable[[Iterable[str]], Sequence[str]] = depth_order,
    reader: Reader = checkpoints.read,
    progress: Progress | None = None,
) -> Pool:
    """Check every checkpoint, and stack what differs.

    A few bytes of each tensor tell most of those that differ; the others are hashed first, and so the stack's layout
    is known. Then every tensor is hashed, checked and copied in one pass over its bytes, one tensor for each core at a
    time. Files that cannot be mapped into memory (pickles older than torch 1.6) are read whole, and a second time for
    the copy. At most two files are held at once, so the peak memory is the stack and two checkpoints.

    Args:
        ingredients: Column name to file, in the order of the columns.
        base: Name and file of the pretrained checkpoint.
        order: Puts tensor names in depth order.
        reader: Opens a checkpoint; a family's own where its files need more than reading. Called for one file at a
            time, several times for each.
        progress: Told ``(what, done, total)`` after each file.

    Raises:
        PoolError: Everything that is wrong with the pool, in one message.
    """
    files = dict(ingredients)
    if base is not None:
        files[base[0]] = base[1]
    with ThreadPoolExecutor(max_workers=joblib.cpu_count()) as workers:
        reading = Reading(files, reader, workers, progress)
        contents, problems = reading.look()
        problems += misfits(contents)
        if problems:
            reading.check(contents, lambda tensor: True)
            _refuse(files, contents, problems, base)
        same = _counted_once(reading, contents, None if base is None else base[0])
        if len(contents) < 2:
            reading.check(contents, lambda tensor: True)
            _refuse(reading.files, contents, same, base)

        def alike(tensor: str) -> bool:
            return len({content.samples[tensor] for content in contents.values()}) == 1

        reading.check(contents, alike)
        reading.compare_values(
            contents, lambda each: alike(each) and len({content.dtypes[each] for content in contents.values()}) > 1
        )
        return _stack(reading, contents, None if base is None else base[0], order, same)


def _counted_once(reading: Reading, contents: dict[str, Contents], base: str | None) -> list[str]:
    """Leave out checkpoints that hold the same weights as another one, and say so."""
    for alike in likely_twins(contents):
        reading.check({name: contents[name] for name in alike}, lambda tensor: True)
    read = {name: content for name, content in contents.items() if len(content.scans) == len(content.shapes)}
    told = []
    for name, kept in twins(read, base).items():
        told.append(f"{name}: the same weights as {kept}; counted once")
        del contents[name]
        reading.drop(name)
    return told


def _refuse(
    files: Mapping[str, Path],
    contents: Mapping[str, Contents],
    problems: Sequence[str] = (),
    base: tuple[str, Path] | None = None,
) -> None:
    """Raise where anything is wrong.

    Raises:
        PoolError: All that is wrong: the problems known, and those that reading the tensors told.
    """
    problems = [*problems, *not_finite(contents)]
    if len(files) < 2:
        only = names(files) or "none"
        problems.append(f"mixing needs at least two checkpoints, found {len(files)} ({only})")
    if problems:
        rest = of_the_rest(files, contents, problems, None if base is None else base[0])
        opened = "".join(f"\nOn opening, {told}" for told in _of_files(contents))
        raise PoolError(listing("the checkpoints cannot be mixed", problems) + opened + rest)


def _stack(
    reading: Reading,
    contents: Mapping[str, Contents],
    base: str | None,
    order: Callable[[Iterable[str]], Sequence[str]],
    same: Sequence[str],
) -> Pool:
    first_name, first = next(iter(contents.items()))
    differing = [tensor for tensor in first.shapes if not identical(contents, tensor)]
    floating = [tensor for tensor in differing if first.dtypes[tensor].is_floating_point]
    moving = set(floating)
    mixed = _layout([name for name in order(first.shapes) if name in moving], base, contents)
    _check_memory(len(contents), mixed)
    if problems := unmixable(contents, differing):
        reading.check(contents, lambda tensor: True)
        _refuse(reading.files, contents, problems)
    stack, fixed = reading.stack(contents, {place.name: slice(place.start, place.stop) for place in mixed})
    _refuse(reading.files, contents, (), None if base is None else (base, reading.files[base]))
    if not mixed:
        raise PoolError("the checkpoints differ in no floating-point tensor; there is nothing to mix")
    return Pool(
        columns=tuple(reading.files),
        base=base,
        paths=dict(reading.files),
        mixed=mixed,
        stack=stack,
        fixed=fixed,
        tied=dict(first.tied),
        hashes={name: content.hashes for name, content in contents.items()},
        buffers_from=first_name if len(floating) < len(differing) else None,
        added=frozenset(name for content in contents.values() for name in content.added),
        left_out=frozenset(name for content in contents.values() for name in content.left_out),
        renamed={old: new for content in contents.values() for old, new in content.renamed.items()},
        notices=(*same, *_of_files(contents), *_notices(contents, base, differing, floating)),
    )


def _check_memory(columns: int, mixed: Sequence[MixedTensor]) -> None:
    """Tell a pool that does not fit before any of it is stacked.

    Raises:
        PoolError: It does not.
    """
    one = 4 * max((place.stop for place in mixed), default=0)
    free = available_memory()
    if free and columns * one > free:
        fitting = free // one
        few = f"at most {fitting} of them fit: choose some with --ingredients" if fitting > 1 else "not even two fit"
        raise PoolError(
            f"{columns} checkpoints with {one // 4:,} parameters that differ need {gigabytes(columns * one)} of "
            f"memory, and {gigabytes(free)} can be had; {few}, or use a machine with more"
        )


def _layout(ordered: Sequence[str], base: str | None, contents: Mapping[str, Contents]) -> tuple[MixedTensor, ...]:
    first = next(iter(contents.values()))
    places = []
    start = 0
    for name in ordered:
        shape = first.shapes[name]
        stop = start + torch.Size(shape).numel()
        dtypes = {content.dtypes[name] for column, content in contents.items() if column != base}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        places.append(MixedTensor(name, shape, dtype, start, stop))
        start = stop
    return tuple(places)


def _of_files(contents: Mapping[str, Contents]) -> Iterable[str]:
    """What was told of each file while it was opened, once for all that it holds for."""
    told: dict[str, list[str]] = {}
    for name, content in contents.items():
        for notice in content.notices:
            told.setdefault(notice, []).append(name)
    for notice, holders in told.items():
        yield f"{'every checkpoint' if len(holders) == len(contents) else names(holders)}: {notice}"


def _notices(
    contents: Mapping[str, Contents], base: str | None, differing: Sequence[str], floating: Sequence[str]
) -> Iterable[str]:
    first_name, first = next(iter(contents.items()))
    by_dtype = {
        name: Counter(str(dtype).removeprefix("torch.") for dtype in content.dtypes.values() if dtype.is_floating_point)
        for name, content in contents.items()
    }
    kinds = {name: tuple(sorted(count)) for name, count in by_dtype.items()}
    if len(set(kinds.values())) > 1:
        spread = Counter(" and ".join(kind) for kind in kinds.values())
        shares = ", ".join(f"{count} in {kind}" for kind, count in spread.items())
        saved = "mixed in fp32; tensors whose dtypes differ are saved in fp32"
        yield f"checkpoints of different dtypes ({shares}): {saved}"
    if any("float64" in kind for kind in kinds.values()):
        yield "float64 tensors are searched in fp32; the saved model is made from the float64 values"
    if whole := [tensor for tensor in differing if tensor not in set(floating)]:
        yield f"{len(whole)} counters differ ({names(whole)}): taken from {first_name}"
    if statistics := [tensor for tensor in floating if tensor.endswith(("running_mean", "running_var"))]:
        yield f"BatchNorm statistics differ between checkpoints in {len(statistics)} buffers"
    if first.tied:
        yield f"{len(first.tied)} tied tensors stay tied and are saved once ({names(first.tied)})"
    if ignored := sorted({entry for content in contents.values() for entry in content.ignored}):
        yield f"entries that are not tensors are left out: {names(ignored)}"
    if base is not None and contents[base].dtypes != first.dtypes:
        yield f"the base {base} is stored in other dtypes than the ingredients; they decide the saved dtype"
