"""What a search can start from: the baselines, the mixes of ``--from``, and the start among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.assemble import Assembly
from mixopt.comparison.rows import Entry, Request, checkpoint_mix, requests_of, run_requests, source_names
from mixopt.errors import PoolError
from mixopt.listener import Listener
from mixopt.scoring.objective import Objective
from mixopt.spec import StudySpec
from mixopt.values.groups import Groups
from mixopt.values.mix import Mix
from mixopt.weights import saving
from mixopt.weights.pool import Pool

BASELINES = ("individual", "uniform", "greedy")
# Of the gradient-learned soups, the one that generalises best: see studies/.
LEARNED = "learned_by_layer:affine:groups=block:cosine"


def search_requests(spec: StudySpec, pool: Pool) -> dict[str, Request]:
    """The rows that every search is compared with, and those that it is told to mix.

    Raises:
        SpecError: ``--from`` names rows that cannot be made.
    """
    defaults = greedy_defaults(spec)
    requests = requests_of([], pool.columns, spec.from_, defaults)
    return requests_of((*BASELINES, LEARNED), pool.columns, defaults=defaults) | requests


def greedy_defaults(spec: StudySpec) -> dict[str, dict[str, Any]]:
    """The run's rule for greedy rows that name none."""
    return {name: {"rule": spec.greedy_rule} for name in ("greedy", "greedy_ensemble")}


def run_baselines(spec: StudySpec, assembly: Assembly, listener: Listener) -> dict[str, Entry]:
    """The recipes that a search is compared with; their evaluations come from the cache where they can.

    Raises:
        MixoptError: One of them cannot be made, or its score is not finite.
    """
    objective = assembly.objective
    requests = search_requests(spec, objective.pool)
    scored: set[str] = set()
    usual = 2 * len(objective.pool.ingredients)

    def on_score(key: str) -> None:
        scored.add(key)
        listener.progress("baselines", len(scored), max(usual, len(scored)))

    quiet = Listener(info=listener.info, warn=listener.warn)
    found = run_requests(objective, requests, seed=spec.seed, device=assembly.device, listener=quiet, on_score=on_score)
    values = {}
    for name, entry in found.items():
        if entry.error is not None and (name != LEARNED or spec.start == "learned" or spec.refine):
            raise entry.error
        if entry.error is not None:
            listener.warn(f"{name} is left out: {entry.error}")
        if entry.mix is not None:
            values[name] = objective.counting(on_score).score(entry.mix).value
    listener.info("baselines: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
    return found


def sources_of(spec: StudySpec, pool: Pool) -> tuple[str, ...]:
    """The names of the rows and checkpoints that ``--from`` lists."""
    return source_names(spec.from_, pool.columns, greedy_defaults(spec))


def source_mixes(spec: StudySpec, objective: Objective, baselines: Mapping[str, Entry]) -> dict[str, Mix]:
    """The mixes that ``--from`` names."""
    pool = objective.pool
    wanted = {name: None if name in pool.columns else baselines[name].mix for name in sources_of(spec, pool)}
    return {name: mix or checkpoint_mix(objective, name) for name, mix in wanted.items()}


def start_mix(spec: StudySpec, objective: Objective, baselines: Mapping[str, Entry]) -> Mix:
    """The mix at the centre of the space: the best baseline, one by name, or a recipe's.

    Raises:
        PoolError: The recipe uses a checkpoint that the pool does not hold, or other tensors.
    """
    name = start_name(spec, objective, baselines)
    if name in baselines:
        mix = baselines[name].mix
        if mix is not None:
            return mix
    recipe = saving.load_recipe(Path(spec.start))
    pool = objective.pool
    by_hash = {digest: column for column, digest in pool.fingerprints.items()}
    rows = np.zeros((len(recipe.mix.groups), len(pool.columns)))
    for column in recipe.mix.support():
        own = by_hash.get(recipe.ingredients[column])
        if own is None:
            raise PoolError(f"--start {spec.start}: its checkpoint {column} is not in the pool {spec.models}")
        rows[:, pool.columns.index(own)] += recipe.mix.coefficients[:, recipe.mix.columns.index(column)]
    mixed = set(pool.sizes)
    kept = [(name, tuple(tensor for tensor in tensors if tensor in mixed)) for name, tensors in recipe.mix.groups.items]
    if {tensor for _, tensors in kept for tensor in tensors} != mixed:
        raise PoolError(f"--start {spec.start}: it has no coefficients for some tensors that this pool mixes")
    filled = [number for number, (_, tensors) in enumerate(kept) if tensors]
    groups = Groups(tuple(kept[number] for number in filled))
    return Mix(groups, pool.columns, rows[filled])


def learned_start(spec: StudySpec, objective: Objective, baselines: Mapping[str, Entry]) -> Request | None:
    """The row that the search starts from, where the gradient learned it."""
    started = not spec.from_ and start_name(spec, objective, baselines) == LEARNED
    return baselines[LEARNED].request if started else None


def start_name(spec: StudySpec, objective: Objective, baselines: Mapping[str, Entry]) -> str:
    """The name of what ``--start`` says, the best baseline's for ``best``."""
    name = best_baseline(objective, baselines) if spec.start == "best" else spec.start
    return LEARNED if name == "learned" else name


def best_baseline(objective: Objective, baselines: Mapping[str, Entry]) -> str:
    """The name of the best; of equals, the last in the table, which is the richer mix."""
    values = {name: objective.score(entry.mix).value for name, entry in baselines.items() if entry.mix is not None}
    best = next(iter(values))
    for name, value in values.items():
        if objective.metric.at_least(value, values[best]):
            best = name
    return best
