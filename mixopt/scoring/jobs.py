"""Jobs: what is given out to workers, and what comes back. A worker runs one on an `Engine` of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mixopt.scoring.cache import arrays_of
from mixopt.scoring.engine import Engine
from mixopt.values.groups import Groups
from mixopt.values.mix import Mix
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool


class Answer(NamedTuple):
    """What a worker gives back.

    Attributes:
        value: What the job says it gives.
        seconds: What it took, opening the worker aside.
        worker: Who did it.
        process: The number of its process: another one has taken its place where that changes.
        warned: What a user should look into.
    """

    value: Any
    seconds: float
    worker: str
    process: int
    warned: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rows:
    """A mix without its names: each row once, and which one every mixed tensor has.

    Attributes:
        distinct: ``[k, n_columns]`` float64.
        places: ``[n_mixed]``, in the pool's order, numbers of rows.
    """

    distinct: NDArray[np.float64]
    places: NDArray[Any]

    @staticmethod
    def of(mix: Mix, pool: Pool) -> Rows:
        """Those of a mix over a pool's columns."""
        rows = tensor_rows(mix, pool)
        known: dict[bytes, int] = {}
        places = [known.setdefault(row.tobytes(), len(known)) for row in rows]
        distinct = np.frombuffer(b"".join(known)).reshape(len(known), rows.shape[1])
        return Rows(distinct, np.array(places, dtype=np.min_scalar_type(len(known))))

    def mix(self, pool: Pool) -> Mix:
        """A mix that fuses to the same bits; its groups have numbers for names."""
        members: list[list[str]] = [[] for _ in self.distinct]
        for place, tensor in zip(self.places.tolist(), pool.mixed, strict=True):
            members[place].append(tensor.name)
        groups = Groups(tuple((str(number), tuple(each)) for number, each in enumerate(members)))
        return Mix(groups, pool.columns, self.distinct)

    def same(self, other: Rows | None) -> bool:
        """Whether both are of one mix."""
        if other is None or self.distinct.shape != other.distinct.shape:
            return False
        return self.distinct.tobytes() == other.distinct.tobytes() and self.places.tobytes() == other.places.tobytes()


class Job(Protocol):
    """A piece of work; is sent by pickle."""

    @property
    def rows(self) -> Rows:
        """The mix."""

    @property
    def count(self) -> int:
        """How many samples it runs."""

    def run(self, engine: Engine, fuse: Callable[[Rows], Mix]) -> Any:
        """Do it; the worker's ``fuse`` writes the mix into the module, unless it is there already."""


@dataclass(frozen=True, eq=False)
class Part:
    """Outcomes of some samples as the cache stores them, or logits ``[k, n_classes]`` float32; in the pass's order.

    Attributes:
        rows: The mix.
        split: The split.
        start: The pass that it is a part of: its first sample.
        stop: One past its last.
        first: The part: its first place in the pass.
        last: One past its last.
        logits: Whether logits are wanted.
    """

    rows: Rows
    split: str
    start: int
    stop: int
    first: int
    last: int
    logits: bool = False

    @property
    def count(self) -> int:
        """See `Job`."""
        return self.last - self.first

    def run(self, engine: Engine, fuse: Callable[[Rows], Mix]) -> Mapping[str, NDArray[Any]] | NDArray[np.float32]:
        """See `Job`."""
        evaluator = engine.evaluators[self.split]
        part = evaluator.batching.between(self.start, self.stop).part(self.first, self.last)
        forward = engine.forward(fuse(self.rows), self.split)
        if self.logits:
            found: NDArray[np.float32] = evaluator.logits_pass(forward, part).numpy()
            return found
        return arrays_of(evaluator.run_pass(forward, part))


@dataclass(frozen=True, eq=False)
class SlopePart:
    """A mean loss on some validation samples and its derivatives, a `Slope`.

    Attributes:
        rows: The mix.
        samples: ``[b]``, their numbers.
        scale: A factor on the logits.
        tuning: How many samples tune.
    """

    rows: Rows
    samples: NDArray[np.int64]
    scale: float
    tuning: int

    @property
    def count(self) -> int:
        """See `Job`."""
        return len(self.samples)

    def run(self, engine: Engine, fuse: Callable[[Rows], Mix]) -> Any:
        """See `Job`; BatchNorm statistics are the averaged ones, so that the mix is not that of other jobs."""
        return engine.slope(self.rows.mix(engine.pool), self.samples, self.scale, self.tuning, None)
