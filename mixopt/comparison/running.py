"""Rows of a comparison run: each method chooses its mix, on a tally of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from mixopt.comparison.ensembles import Ensemble
from mixopt.comparison.requests import Request, function_of
from mixopt.errors import MixoptError, RunError, ScoreError, SpecError, names
from mixopt.listener import Listener
from mixopt.methods import Chosen, arguments_of
from mixopt.methods.individual import ranking
from mixopt.scoring.objective import Objective
from mixopt.scoring.tally import Tally
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix, one_hot
from mixopt.weights.memory import peak_memory

BASE = "base"
IMAGES_SHOWN = 1000


@dataclass(frozen=True, eq=False)
class Entry:
    """What became of a request.

    Attributes:
        request: The request.
        choice: What the method chose, or the ensemble; None where it failed.
        tally: All that it takes to come to the choice from nothing, its sources' share included.
        peak_memory: Bytes at its highest; None where nothing was computed or the system does not tell.
        error: Why it failed.
    """

    request: Request
    choice: Chosen | Ensemble | None
    tally: Tally
    peak_memory: int | None = None
    error: MixoptError | None = None

    @property
    def mix(self) -> Mix | None:
        """The mix; None for an ensemble and for a failure."""
        return self.choice.mix if isinstance(self.choice, Chosen) else None


def run_requests(
    objective: Objective,
    requests: Mapping[str, Request],
    *,
    seed: int,
    device: torch.device,
    listener: Listener,
    on_score: Callable[[str], None] | None = None,
) -> dict[str, Entry]:
    """Let every method choose; one that fails leaves its reason, and the others still run.

    Args:
        objective: Scores; each method counts on a tally of its own.
        requests: In an order in which sources come first.
        seed: The run's.
        device: Whose memory is watched.
        listener: Told about progress and failures.
        on_score: Told the content key of every mix scored on the validation split.

    Raises:
        RunError: The cache cannot be written.
    """
    found: dict[str, Entry] = {}
    for number, request in enumerate(requests.values()):
        on_batch = _progress_of(request.name, number, len(requests), listener)
        found[request.name] = entry = _run(objective.counting(on_score, on_batch), request, found, seed, device)
        if entry.error is not None:
            listener.warn(f"{request.name} failed: {entry.error}")
    listener.progress("methods", len(requests), len(requests))
    return found


def _progress_of(name: str, number: int, total: int, listener: Listener) -> Callable[[int], None]:
    """What a method's batches are told: how many images it has seen, and which row of how many it is."""
    listener.progress(name, number, total)
    images = 0

    def on_batch(count: int) -> None:
        nonlocal images
        if images // IMAGES_SHOWN != (images + count) // IMAGES_SHOWN:
            listener.progress(f"{name}, {images + count:,} images", number, total)
        images += count

    return on_batch


def _run(objective: Objective, request: Request, found: Mapping[str, Entry], seed: int, device: torch.device) -> Entry:
    try:
        with peak_memory(device) as peak:
            started = time.perf_counter()
            columns, before = _columns(objective, request, found)
            choose = function_of(request.method)
            own_seed = seed if request.seed is None else request.seed
            choice = choose(objective, columns, seed=own_seed, **arguments_of(choose, request.options))
            own = time.perf_counter() - started - objective.tally.spent
            highest = peak()
    except RunError:
        raise
    except MixoptError as error:
        return Entry(request, None, objective.tally, error=error)
    except (torch.OutOfMemoryError, MemoryError) as error:
        short = ScoreError(f"out of memory ({error}); use a smaller --batch-size, or batch=N for what learns")
        return Entry(request, None, objective.tally, error=short)
    tally = objective.tally
    tally.own[request.name] = max(0.0, own)
    fresh = bool(tally.runs) or not (tally.asked or tally.learned)
    return Entry(request, choice, before.merged(tally), highest if fresh else None)


def _columns(objective: Objective, request: Request, found: Mapping[str, Entry]) -> tuple[dict[str, Mix], Tally]:
    """The mixes that a request works on, and what it took to come to them."""
    columns = ingredient_mixes(objective)
    tally = Tally()
    if request.sources:
        columns = {}
        for name in request.sources:
            if name in objective.pool.columns:
                columns[name] = checkpoint_mix(objective, name)
                continue
            entry = found[name]
            if entry.mix is None:
                raise MixoptError(f"it needs the mix of {name}, which {_why_none(entry)}")
            columns[name] = entry.mix
            tally = tally.merged(entry.tally)
    if request.top is not None:
        if request.top > len(columns):
            raise SpecError(f"top={request.top}: there are only {len(columns)} to choose from: {names(columns)}")
        best = [name for name, _ in ranking(objective, columns)[: request.top]]
        columns = {name: columns[name] for name in best}
    return columns, tally


def ingredient_mixes(objective: Objective) -> dict[str, Mix]:
    """Every ingredient alone, as a one-row mix."""
    return {name: checkpoint_mix(objective, name) for name in objective.pool.ingredients}


def checkpoint_mix(objective: Objective, name: str) -> Mix:
    """One column of the pool alone, as a one-row mix."""
    return one_hot(make_groups("whole", objective.pool.sizes), objective.pool.columns, name)


def _why_none(entry: Entry) -> str:
    return "failed" if entry.error is not None else "is an ensemble and no mix"
