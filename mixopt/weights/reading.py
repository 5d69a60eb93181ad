"""The passes over a pool's checkpoint files: what they hold, what their tensors hash to, and the stack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mixopt.errors import CheckpointError
from mixopt.weights import checkpoints

Progress = Callable[[str, int, int], None]
Reader = Callable[[Path], checkpoints.Checkpoint]


@dataclass(frozen=True)
class Contents:
    """What is kept of a checkpoint while its file is closed; a few bytes a tensor.

    Attributes:
        shapes: Tensor name to shape.
        dtypes: Tensor name to dtype.
        samples: Tensor name to a few of its bytes.
        tied: Alias to name.
        ignored: Entries that are not tensors.
        mapped: Whether opening it left its tensors unread.
        notices: What was taken, left out or renamed while it was opened.
        added: Constants that are the model's own.
        left_out: Weights that the family leaves out.
        renamed: Name in the file to that in memory, where these differ.
        scans: Tensor name to what reading all of it found; filled as the reading goes on.
        values: Tensor name to a hash of its values, where checkpoints store it in several dtypes; filled likewise.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    samples: dict[str, bytes]
    tied: dict[str, str]
    ignored: tuple[str, ...]
    mapped: bool
    notices: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    scans: dict[str, checkpoints.Scan] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)

    def hash_of(self, tensor: str) -> str | None:
        """A tensor's SHA-256, once it has been read; of its values where the checkpoints' dtypes differ."""
        if tensor in self.values:
            return self.values[tensor]
        return self.scans[tensor].hash if tensor in self.scans else None

    @property
    def hashes(self) -> dict[str, str]:
        """Tensor name to SHA-256, once all have been read."""
        return {name: self.scans[name].hash for name in self.shapes}


class Reading:
    """The passes over a pool's files: opened one by one, in order, with the tensors of two worked on at once.

    Args:
        files: Column name to file, in the order of the columns.
        reader: Opens a checkpoint.
        workers: Works on the tensors.
        progress: Told ``(what, done, total)`` after each file of a pass.
    """

    def __init__(self, files: Mapping[str, Path], reader: Reader, workers: Executor, progress: Progress | None) -> None:
        self.files = dict(files)
        self._reader = reader
        self._workers = workers
        self._progress = progress
        self._done: Counter[str] = Counter()

    def look(self) -> tuple[dict[str, Contents], list[str]]:
        """What opening the files tells, and what is wrong with them; all there is where a file is read whole anyway."""
        contents: dict[str, Contents] = {}
        problems: list[str] = []

        def jobs() -> Iterator[_Job]:
            for name, path in self.files.items():
                try:
                    opened = self._reader(path)
                except CheckpointError as error:
                    problems.append(str(error))
                    yield _Job("checking checkpoints")
                    continue
                contents[name] = _contents_of(opened)
                if not opened.mapped:
                    yield _Job("checking checkpoints", self._scan(contents[name], opened.tensors), alone=True)
                del opened

        self._run(jobs())
        return contents, problems

    def check(self, contents: Mapping[str, Contents], wanted: Callable[[str], bool]) -> None:
        """Scan the tensors that are wanted, in the files that were not read whole when they were looked at."""

        def jobs() -> Iterator[_Job]:
            for name, content in contents.items():
                if not content.mapped:
                    continue
                chosen = [tensor for tensor in content.shapes if wanted(tensor)]
                opened = self._reader(self.files[name]).tensors if chosen else {}
                yield _Job("checking checkpoints", self._scan(content, {tensor: opened[tensor] for tensor in chosen}))
                del opened

        self._run(jobs())

    def compare_values(self, contents: Mapping[str, Contents], wanted: Callable[[str], bool]) -> None:
        """Hash the values of the tensors that are wanted, in every file."""

        def jobs() -> Iterator[_Job]:
            for name, content in contents.items():
                chosen = [tensor for tensor in content.shapes if wanted(tensor)]
                if chosen:
                    opened = self._reader(self.files[name]).tensors
                    hashing = [self._workers.submit(_hash_values, content, each, opened[each]) for each in chosen]
                    yield _Job("comparing dtypes", hashing)
                    del opened

        self._run(jobs())

    def drop(self, name: str) -> None:
        """Forget a file that is no column."""
        del self.files[name]

    def stack(self, contents: Mapping[str, Contents], mixed: Mapping[str, slice]) -> tuple[Tensor, dict[str, Tensor]]:
        """The stack, and the first checkpoint's other tensors; scans what was not scanned before.

        Args:
            contents: Of every column.
            mixed: Name of each tensor that goes into the stack, and its place along the second axis, in order.

        Returns:
            ``[n_columns, n_params]`` float32; name to tensor.
        """
        width = max((place.stop for place in mixed.values()), default=0)
        stack = torch.empty(len(contents), width, dtype=torch.float32)
        fixed: dict[str, Tensor] = {}

        def jobs() -> Iterator[_Job]:
            for row, (name, content) in enumerate(contents.items()):
                opened = self._reader(self.files[name]).tensors
                places = {key: stack[row, place] for key, place in mixed.items()}
                yield _Job("stacking checkpoints", self._scan(content, opened, places), alone=not content.mapped)
                if row == 0:
                    fixed.update({key: tensor.clone() for key, tensor in opened.items() if key not in places})
                del opened

        self._run(jobs())
        return stack, fixed

    def _scan(
        self, content: Contents, tensors: Mapping[str, Tensor], places: Mapping[str, Tensor] | None = None
    ) -> list[Future[None]]:
        """Start work on the tensors, large ones first, so that no core is left with one at the end."""
        into = places or {}
        by_size = sorted(tensors.items(), key=lambda item: -item[1].nbytes)
        return [
            self._workers.submit(_scan_one, content.scans, name, tensor, into.get(name))
            for name, tensor in by_size
            if name in into or name not in content.scans
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
        self._done[job.what] += 1
        if self._progress:
            self._progress(job.what, self._done[job.what], len(self.files))


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


def _hash_values(content: Contents, name: str, tensor: Tensor) -> None:
    content.values[name] = checkpoints.value_hash(tensor)


def _contents_of(checkpoint: checkpoints.Checkpoint) -> Contents:
    tensors = checkpoint.tensors
    return Contents(
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        dtypes={name: tensor.dtype for name, tensor in tensors.items()},
        samples={name: checkpoints.sample(tensor) for name, tensor in tensors.items()},
        tied=checkpoint.tied,
        ignored=checkpoint.ignored,
        mapped=checkpoint.mapped,
        notices=checkpoint.notices,
        added=checkpoint.added,
        left_out=checkpoint.left_out,
        renamed=checkpoint.renamed,
    )
