"""Workers: processes that score in place of a run's own, on this machine or on others."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import joblib
import torch
from filelock import FileLock, Timeout

from mixopt.assemble import Assembly, assemble
from mixopt.errors import RunError, SpecError
from mixopt.files import make_folder
from mixopt.listener import Listener
from mixopt.memory import gigabytes
from mixopt.scoring.crew import Crew
from mixopt.scoring.crew.hands import Hands
from mixopt.scoring.objective import Objective
from mixopt.spec import AUTO, StudySpec
from mixopt.workers.conditions import LIBRARIES, facts_of
from mixopt.workers.processes import Processes
from mixopt.workers.shared import POOL_DATA, share_pool, share_spec

if TYPE_CHECKING:
    from distributed import Client

_LOCK = "run.lock"


@contextmanager
def assembled(spec: StudySpec, listener: Listener) -> Iterator[Assembly]:
    """Open a pool and its splits, scored by workers while the block is open where any are asked for.

    With workers the checkpoints' memory is given back here, and lies once in files that all processes map.

    Args:
        spec: The options.
        listener: Told of workers.

    Raises:
        SpecError: No scheduler answers at the address.
        RunError: There is no room for what they share, or a worker of a cluster cannot do what the run would.
        MixoptError: Whatever is wrong with the checkpoints, the model or the data.
    """
    with ExitStack() as kept:
        client = None if spec.scheduler is None else kept.enter_context(_connected(spec.scheduler))
        assembly = assemble(spec, listener)
        if client is not None:
            yield kept.enter_context(_on_cluster(spec, assembly, client, listener))
        elif spec.workers is not None:
            yield kept.enter_context(_on_this_machine(spec, assembly, spec.workers, listener))
        else:
            yield assembly


@contextmanager
def _on_this_machine(spec: StudySpec, assembly: Assembly, workers: str, listener: Listener) -> Iterator[Assembly]:
    with shared_folder(spec, assembly) as folder:
        hands = Processes(folder, devices_of(workers, assembly.device))
        try:
            listener.info(f"workers: {hands.count} on this machine, {assembly.device.type}, one thread each")
            objective = assembly.objective
            yield replace(assembly, objective=scored_by(hands, objective, listener, verbose=spec.verbose))
        finally:
            hands.close()


@contextmanager
def _on_cluster(spec: StudySpec, assembly: Assembly, client: Client, listener: Listener) -> Iterator[Assembly]:
    from mixopt.workers.cluster import Cluster, Terms

    objective = assembly.objective
    with shared_folder(spec, assembly, sealed=True) as folder:
        arrays = [array for each in objective.evaluators.values() for array in each.split.arrays.values()]
        needed = (folder / POOL_DATA).stat().st_size + sum(array.nbytes for array in arrays) + LIBRARIES
        terms = Terms(folder, spec.device, facts_of(assembly.device), needed, spec.mixed_devices)
        hands = Cluster(client, terms, listener)
        try:
            scored = scored_by(hands, objective, listener, verbose=spec.verbose)
            hands.gather()
            listener.info(f"workers: {hands.count} of {spec.scheduler}, {', '.join(sorted(hands.kinds))}")
            if len(hands.kinds) > 1:
                scored = replace(scored, scorer=scored.scorer.among(hands.kinds))
            yield replace(assembly, objective=scored)
        finally:
            hands.close()


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        from mixopt.workers.scheduler import connected
    except ImportError as error:
        raise SpecError(
            f"--scheduler {address} needs Dask ({error}); install it: pip install 'mixopt[dask]'"
        ) from error
    with connected(address) as client:
        yield client


def scored_by(hands: Hands, objective: Objective, listener: Listener, *, verbose: bool = False) -> Objective:
    """The objective, scored by workers, who are told its splits.

    Args:
        hands: The workers.
        objective: Of a pool that they see.
        listener: Told of workers.
        verbose: As for `Crew`.
    """
    for name, evaluator in objective.evaluators.items():
        hands.share(name, evaluator)
    crew = Crew(hands, objective.scorer.engine, listener, verbose=verbose)
    return replace(objective, scorer=replace(objective.scorer, workers=crew))


def devices_of(workers: str, device: torch.device) -> list[str]:
    """The device of each worker.

    Args:
        workers: A number, or ``auto``: one for each GPU or core that this process may use.
        device: The run's own; where it is a GPU, workers take GPUs in turn.
    """
    if device.type == "cuda":
        visible = torch.cuda.device_count()
        number = visible if workers == AUTO else int(workers)
        return [f"cuda:{place % visible}" for place in range(number)]
    return ["cpu"] * (joblib.cpu_count() if workers == AUTO else int(workers))


@contextmanager
def shared_folder(spec: StudySpec, assembly: Assembly, *, sealed: bool = False) -> Iterator[Path]:
    """A folder in the cache that is there while the block is open, with all that workers need but the splits.

    Args:
        spec: The options.
        assembly: The run's own.
        sealed: As for `share_pool`.

    Raises:
        RunError: There is no room for the checkpoints.
    """
    parent = spec.cache / "workers"
    make_folder(parent, spec.cache)
    _remove_leftovers(parent)
    folder = Path(tempfile.mkdtemp(dir=parent))
    lock = FileLock(folder / _LOCK)
    with lock:
        try:
            pool = assembly.objective.pool
            try:
                shared = share_pool(folder, pool, sealed=sealed)
            except OSError as error:
                raise RunError(
                    f"{folder}: {error.strerror or error}; workers share the checkpoints through a file of "
                    f"{gigabytes(pool.stack.nbytes)} there: free space, or choose another folder with --cache"
                ) from error
            # In place: whatever works with the pool's stack goes on with the mapped one, and its memory is free.
            pool.stack.data = shared.stack
            chosen = {**assembly.resolved, "batchnorm": assembly.batchnorm.mode}
            share_spec(folder, spec, chosen)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    """Remove what killed runs shared: folders whose lock nobody holds."""
    for folder in parent.iterdir():
        with suppress(OSError, Timeout), FileLock(folder / _LOCK).acquire(blocking=False):
            shutil.rmtree(folder, ignore_errors=True)
