"""Pool: ingredients and base, checked together, stacked and fingerprinted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import joblib
import torch
from torch import Tensor

from mixopt.errors import CheckpointError, PoolError, listing, names
from mixopt.values.groups import depth_order
from mixopt.weights import checkpoints

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
    """What is kept of a checkpoint while its file is closed; a few bytes a tensor.

    Attributes:
        shapes: Tensor name to shape.
        dtypes: Tensor name to dtype.
        samples: Tensor name to a few of its bytes.
        tied: Alias to name.
        ignored: Entries that are not tensors.
        mapped: Whether opening it left its tensors unread.
        scans: Tensor name to what reading all of it found; filled as the reading goes on.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    samples: dict[str, bytes]
    tied: dict[str, str]
    ignored: tuple[str, ...]
    mapped: bool
    scans: dict[str, checkpoints.Scan] = field(default_factory=dict)

    def hash_of(self, tensor: str) -> str | None:
        """A tensor's SHA-256, once it has been read."""
        return self.scans[tensor].hash if tensor in self.scans else None

    @property
    def hashes(self) -> dict[str, str]:
        """Tensor name to SHA-256, once all have been read."""
        return {name: self.scans[name].hash for name in self.shapes}


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
        reading = _Reading(files, reader, workers, progress)
        facts, problems = reading.look()
        problems += _misfits(facts)
        if problems or len(files) < 2:
            reading.check(facts, lambda tensor: True)
            _refuse(files, facts, problems)
        reading.check(facts, lambda tensor: len({fact.samples[tensor] for fact in facts.values()}) == 1)
        return _stack(reading, facts, None if base is None else base[0], order)


def _refuse(files: Mapping[str, Path], facts: Mapping[str, _Facts], problems: Sequence[str] = ()) -> None:
    """Raise where anything is wrong.

    Raises:
        PoolError: All that is wrong: the problems known, and those that reading the tensors told.
    """
    problems = [*problems, *_duplicates(facts), *_not_finite(facts)]
    if len(files) < 2:
        only = names(files) or "none"
        problems.append(f"mixing needs at least two checkpoints, found {len(files)} ({only})")
    if problems:
        raise PoolError(listing("the checkpoints cannot be mixed", problems))


class _Reading:
    """The passes over a pool's files: opened one by one, in order, with the tensors of two worked on at once."""

    def __init__(self, files: Mapping[str, Path], reader: Reader, workers: Executor, progress: Progress | None) -> None:
        self.files = files
        self._reader = reader
        self._workers = workers
        self._progress = progress
        self._told: Counter[str] = Counter()

    def look(self) -> tuple[dict[str, _Facts], list[str]]:
        """What opening the files tells, and what is wrong with them; all there is where a file is read whole anyway."""
        facts: dict[str, _Facts] = {}
        problems: list[str] = []

        def jobs() -> Iterator[_Job]:
            for name, path in self.files.items():
                try:
                    opened = self._reader(path)
                except CheckpointError as error:
                    problems.append(str(error))
                    yield _Job("checking checkpoints")
                    continue
                facts[name] = _facts_of(opened)
                if not opened.mapped:
                    yield _Job("checking checkpoints", self._scan(facts[name], opened.tensors), alone=True)
                del opened

        self._run(jobs())
        return facts, problems

    def check(self, facts: Mapping[str, _Facts], wanted: Callable[[str], bool]) -> None:
        """Scan the tensors that are wanted, in the files that were not read whole when they were looked at."""

        def jobs() -> Iterator[_Job]:
            for name, fact in facts.items():
                if not fact.mapped:
                    continue
                chosen = [tensor for tensor in fact.shapes if wanted(tensor)]
                opened = self._reader(self.files[name]).tensors if chosen else {}
                yield _Job("checking checkpoints", self._scan(fact, {tensor: opened[tensor] for tensor in chosen}))
                del opened

        self._run(jobs())

    def stack(self, facts: Mapping[str, _Facts], mixed: Sequence[MixedTensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The stack, and the first checkpoint's other tensors; scans what was not scanned before."""
        stack = _empty(len(facts), mixed[-1].stop if mixed else 0)
        fixed: dict[str, Tensor] = {}

        def jobs() -> Iterator[_Job]:
            for row, (name, fact) in enumerate(facts.items()):
                opened = self._reader(self.files[name]).tensors
                places = {place.name: stack[row, place.start : place.stop] for place in mixed}
                yield _Job("stacking checkpoints", self._scan(fact, opened, places), alone=not fact.mapped)
                if row == 0:
                    fixed.update({key: tensor.clone() for key, tensor in opened.items() if key not in places})
                del opened

        self._run(jobs())
        return stack, fixed

    def _scan(
        self, fact: _Facts, tensors: Mapping[str, Tensor], places: Mapping[str, Tensor] | None = None
    ) -> list[Future[None]]:
        """Start work on the tensors, large ones first, so that no core is left with one at the end."""
        into = places or {}
        by_size = sorted(tensors.items(), key=lambda item: -item[1].nbytes)
        return [
            self._workers.submit(_scan_one, fact.scans, name, tensor, into.get(name))
            for name, tensor in by_size
            if name in into or name not in fact.scans
        ]

    def _run(self, jobs: Iterator[_Job]) -> None:
        """Wait for each file's work once the next file's has started, or at once where the work is to be alone."""
        running: _Job | None = None
        for job in jobs:
            self._finish(running)
            running = job
            if job.alone:
                self._finish(job)
                running = None
        self._finish(running)

    def _finish(self, job: _Job | None) -> None:
        if job is None:
            return
        for future in job.futures:
            future.result()
        self._told[job.what] += 1
        if self._progress:
            self._progress(job.what, self._told[job.what], len(self.files))


@dataclass(frozen=True)
class _Job:
    """Work on one file.

    Attributes:
        what: The words that its end is told with.
        futures: Done when it is.
        alone: Whether it must end before the next file is opened: the tensors of a file that was read whole take
            memory of their own.
    """

    what: str
    futures: Sequence[Future[None]] = ()
    alone: bool = False


def _scan_one(scans: dict[str, checkpoints.Scan], name: str, tensor: Tensor, into: Tensor | None) -> None:
    if name not in scans:
        scans[name] = checkpoints.scan(tensor, into)
    elif into is not None:
        checkpoints.copy(tensor, into)


def _empty(rows: int, columns: int) -> Tensor:
    return torch.empty(rows, columns, dtype=torch.float32)


def _facts_of(checkpoint: checkpoints.Checkpoint) -> _Facts:
    tensors = checkpoint.tensors
    return _Facts(
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        dtypes={name: tensor.dtype for name, tensor in tensors.items()},
        samples={name: checkpoints.sample(tensor) for name, tensor in tensors.items()},
        tied=checkpoint.tied,
        ignored=checkpoint.ignored,
        mapped=checkpoint.mapped,
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
        problems += [f"{name}: tensor {tensor} holds NaN" for tensor in fact.shapes if fact.scans[tensor].holds_nan]
        for tensor in fact.shapes:
            if fact.scans[tensor].holds_infinity and not _identical(facts, tensor):
                problems.append(f"{name}: tensor {tensor} holds an infinite value")
    return problems


def _identical(facts: Mapping[str, _Facts], tensor: str) -> bool:
    hashes = {fact.hash_of(tensor) for fact in facts.values()}
    return len(hashes) == 1 and None not in hashes


def _stack(
    reading: _Reading, facts: Mapping[str, _Facts], base: str | None, order: Callable[[Iterable[str]], Sequence[str]]
) -> Pool:
    first_name, first = next(iter(facts.items()))
    differing = [tensor for tensor in first.shapes if not _identical(facts, tensor)]
    floating = [tensor for tensor in differing if first.dtypes[tensor].is_floating_point]
    moving = set(floating)
    mixed = _layout([name for name in order(first.shapes) if name in moving], base, facts)
    stack, fixed = reading.stack(facts, mixed)
    _refuse(reading.files, facts)
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
        hashes={name: fact.hashes for name, fact in facts.items()},
        buffers_from=first_name if len(floating) < len(differing) else None,
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
