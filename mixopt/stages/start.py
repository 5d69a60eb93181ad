"""Start: the baselines, what a search begins at among them, and what it took to find that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mixopt.assemble import Assembly
from mixopt.comparison.requests import Request
from mixopt.comparison.running import Entry, checkpoint_mix, run_requests
from mixopt.listener import Listener
from mixopt.scoring.objective import Objective
from mixopt.scoring.tally import Tally
from mixopt.stages.helpful import helpful
from mixopt.stages.plan import BEST, LEARNED, SearchPlan
from mixopt.values.mix import Mix


@dataclass(frozen=True, eq=False)
class Start:
    """Where a search begins.

    Attributes:
        name: The row, checkpoint or recipe that gave it.
        mix: The mix.
        row: The row that learned it by gradient, where one did.
        baselines: Every row that the search is compared with, by name.
        mixes: The mixes that the space lies between: those of ``--from``, or the baselines'.
        preferred: The ingredients to search over, where the gradient says which.
        tally: What it took to find all this, from nothing.
    """

    name: str
    mix: Mix
    row: Request | None
    baselines: Mapping[str, Entry]
    mixes: Mapping[str, Mix]
    preferred: tuple[str, ...]
    tally: Tally


def find_start(plan: SearchPlan, assembly: Assembly, listener: Listener) -> Start:
    """Run the baselines and find the start among them.

    Raises:
        MixoptError: A baseline that is needed cannot be made, or its score is not finite.
    """
    baselines = run_baselines(plan, assembly, listener)
    counting = assembly.objective.counting()
    made = {name: entry.mix for name, entry in baselines.items() if entry.mix is not None}
    mixes = _source_mixes(plan, counting, baselines) if plan.sources else made
    name = plan.start
    if plan.start == BEST:
        name = _best(counting, mixes if plan.space.kind == "composed" else made)
    elif name in made or name in mixes:
        counting.score(made.get(name) or mixes[name])  # counted where choosing it asked for nothing
    used = {name} if plan.space.kind not in ("residual", "composed") and plan.start != BEST else set(mixes)
    if plan.start == BEST and plan.space.kind == "residual":
        used |= made.keys()
    tally = counting.tally
    if not plan.sources:  # the ingredients to search over are those that rank first
        tally = baselines["individual"].tally.merged(tally)
    for entry in (entry for row, entry in baselines.items() if row in used):
        tally = tally.merged(entry.tally)
    preferred: tuple[str, ...] = ()
    if plan.space.by_gradient:
        screening = assembly.objective.counting()
        preferred = helpful(screening)
        tally = tally.merged(screening.tally)
    mix = plan.recipe or made.get(name) or mixes[name]
    row = baselines[LEARNED].request if name == LEARNED and not plan.sources else None
    return Start(name, mix, row, baselines, mixes, preferred, tally)


def run_baselines(plan: SearchPlan, assembly: Assembly, listener: Listener) -> dict[str, Entry]:
    """The recipes that a search is compared with; their evaluations come from the cache where they can.

    Raises:
        MixoptError: One of them cannot be made, or its score is not finite.
    """
    objective = assembly.objective
    scored: set[str] = set()
    usual = 2 * len(objective.pool.ingredients)

    def on_score(key: str) -> None:
        scored.add(key)
        listener.progress("baselines", len(scored), max(usual, len(scored)))

    quiet = Listener(info=listener.info, warn=listener.warn)
    entries = run_requests(
        objective, plan.requests, seed=plan.trials.seed, device=assembly.device, listener=quiet, on_score=on_score
    )
    values = {}
    for name, entry in entries.items():
        if entry.error is not None and (name != LEARNED or plan.start == LEARNED or plan.refine):
            raise entry.error
        if entry.error is not None:
            listener.warn(f"{name} is left out: {entry.error}")
        if entry.mix is not None:
            values[name] = objective.counting(on_score).score(entry.mix).value
    listener.info("baselines: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
    return entries


def _source_mixes(plan: SearchPlan, objective: Objective, baselines: Mapping[str, Entry]) -> dict[str, Mix]:
    """The mixes that ``--from`` names."""
    columns = objective.pool.columns
    wanted = {name: None if name in columns else baselines[name].mix for name in plan.sources}
    return {name: mix or checkpoint_mix(objective, name) for name, mix in wanted.items()}


def _best(objective: Objective, mixes: Mapping[str, Mix]) -> str:
    """The name of the best mix by what steers; of equals, the last in the table, which is the richer one."""
    objective.expect(mixes.values())
    values = {name: objective.score(mix).signal for name, mix in mixes.items()}
    best = next(iter(values))
    for name, value in values.items():
        if objective.signal.at_least(value, values[best]):
            best = name
    return best
