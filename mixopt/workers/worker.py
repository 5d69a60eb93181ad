"""A worker's side: opens what a run shares once, in a process of its own, and then does one job after another."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from mixopt import families
from mixopt.assemble.engine import bare_engine, recomputing
from mixopt.assemble.family import family_of
from mixopt.errors import RunError
from mixopt.listener import Listener
from mixopt.scoring.batchnorm import Recompute, find_layers
from mixopt.scoring.choose_batchnorm import RECOMPUTE
from mixopt.scoring.device import resolve_device
from mixopt.scoring.engine import Engine
from mixopt.scoring.evaluator import Evaluator
from mixopt.scoring.jobs import Answer, Job, Rows, SlopePart
from mixopt.scoring.own_objective import own_evaluator
from mixopt.scoring.work import AnyEvaluator
from mixopt.spec import StudySpec
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION
from mixopt.weights.stack import open_stack
from mixopt.workers.shared import open_pool, open_spec, open_split


class Worker:
    """An engine on what a run shares.

    Args:
        folder: Shared, see `mixopt.workers.shared`.
        device: Where the models run.
        name: What it is called.

    Raises:
        RunError: The folder, or what it names, cannot be seen from here.
        MixoptError: The model cannot be made here.
    """

    def __init__(self, folder: Path, device: str, name: str) -> None:
        self.name = name
        self._warned: list[str] = []
        self._fused: Rows | None = None
        listener = Listener(warn=self._warned.append)
        try:
            spec, pool = open_spec(folder), open_pool(folder)
        except OSError as error:
            raise _unseen(error) from error
        place = resolve_device(device)
        family = family_of(spec, listener)
        bare = bare_engine(spec, family, family.build(), pool, place, open_stack(pool, place, spec.stack))
        splits = _Splits(folder, spec, family, bare, listener)
        recompute = None
        if spec.batchnorm == RECOMPUTE and isinstance(validation := splits[VALIDATION], Evaluator):
            layers = find_layers(pool, bare.builder.module)
            recompute = Recompute(layers, validation, pool.saved_dtypes(bare.builder.dtype))
        engine = recomputing(bare, recompute)
        self.engine = Engine(pool, engine.builder, engine.predict, splits, engine.recompute, engine.reuse)

    def do(self, job: Job) -> Answer:
        """Do a job.

        Raises:
            RunError: It names a split that cannot be seen from here.
            MixoptError: The model fails on its samples.
        """
        started = time.perf_counter()
        if isinstance(job, SlopePart):  # it leaves the mix in the module with averaged statistics
            self._fused = None
        value = job.run(self.engine, self._fuse)
        warned = tuple(self._warned)
        self._warned.clear()
        return Answer(value, time.perf_counter() - started, self.name, os.getpid(), warned)

    def _fuse(self, rows: Rows) -> Mix:
        mix = rows.mix(self.engine.pool)
        if not rows.same(self._fused):
            self._fused = None
            self.engine.fuse(mix)
            self._fused = rows
        return mix


class _Splits(Mapping[str, AnyEvaluator]):
    """Evaluators of the splits that jobs name, each opened when one first does."""

    def __init__(
        self, folder: Path, spec: StudySpec, family: families.Family, engine: Engine, listener: Listener
    ) -> None:
        self._folder, self._spec, self._family, self._engine = folder, spec, family, engine
        self._device = next(iter(engine.builder.module.parameters())).device
        self._listener = listener
        self._opened: dict[str, AnyEvaluator] = {}

    def __getitem__(self, token: str) -> AnyEvaluator:
        if token not in self._opened:
            self._opened[token] = self._open(token)
        return self._opened[token]

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened)

    def __len__(self) -> int:
        return len(self._opened)

    def _open(self, token: str) -> AnyEvaluator:
        device = self._device
        try:
            found = open_split(self._folder, token)
        except OSError as error:
            raise _unseen(error) from error
        if found.function is not None:
            path, metric = found.function
            own = own_evaluator(found.samples.name, path, self._engine.builder.module, device, metric)
            return replace(own, opened=found.samples)
        evaluator = Evaluator(
            found.samples, self._family.encoding, device, found.batch_size, cut=found.cut, listener=self._listener
        )
        return evaluator.at(self._spec.precision, self._spec.compile)


def _unseen(error: OSError) -> RunError:
    return RunError(
        f"{error.filename or 'a file of the run'}: a worker cannot read it ({error.strerror or error}); every worker "
        "must see the pool, the run's cache (--cache) and data under the same paths, as on a shared file system"
    )


def use_one_thread() -> None:
    """One thread for this process: workers share the cores, and one thread gives the same bits everywhere."""
    torch.set_num_threads(1)
