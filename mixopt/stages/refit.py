"""Refit: what a search's start learned by gradient is learned again, from all validation samples.

Held-out samples choose between mixes; once they have, they teach as well. What more samples are worth to a learned
soup is measured in studies/.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mixopt.assemble import Assembly
from mixopt.comparison.requests import Request
from mixopt.comparison.running import run_requests
from mixopt.errors import MixoptError
from mixopt.listener import Listener
from mixopt.scoring.tally import Tally
from mixopt.stages.confirm import Choice
from mixopt.stages.explore import Explored
from mixopt.stages.plan import SearchPlan
from mixopt.stages.start import Start
from mixopt.values.mix import Mix, combine
from mixopt.values.samples import VALIDATION


@dataclass(frozen=True, eq=False)
class Refitted:
    """What came of learning the start again.

    Attributes:
        mix: The mix.
        tally: What it took.
        held_out: What the mix before scored on the held-out samples, by the driving metric: the last number that is
            not of samples learned from.
    """

    mix: Mix
    tally: Tally
    held_out: float


def refit(
    plan: SearchPlan, assembly: Assembly, start: Start, explored: Explored, choice: Choice, listener: Listener
) -> Refitted | None:
    """A search's mix with its learned start replaced by the one that all validation samples teach.

    The mix's step from the start stays as it is. Where learning fails, or the new mix's scores are not finite, a
    warning says so.

    Args:
        plan: Whether to.
        assembly: Gives the gradients.
        start: Says which row learned it.
        explored: Says where the search began.
        choice: What the search chose.
        listener: Told what came of it.

    Returns:
        None where the start was not learned, no samples were held out, or it failed.
    """
    objective, row = assembly.objective, start.row
    if not plan.refit or row is None or not objective.held_out:
        return None
    if plan.surface and choice.candidate is not None:
        return None  # the step was chosen by all samples: it has what they teach in it already
    whole = objective.whole()
    try:
        learned, tally = _learn(row, plan.trials.seed, assembly, listener)
        origin = explored.start
        again = learned if choice.mix == origin else combine([choice.mix, learned, origin], [1, 1, -1])
        whole.score(again)
    except MixoptError as error:
        listener.warn(f"not learned again from all selection samples (--refit): {error}; the mix stays as it was")
        return None
    labels = objective.evaluators[VALIDATION].split.labels[objective.tuning :]
    held = objective.metric.of(labels, whole.score(choice.mix).outcomes.rest(objective.tuning))
    listener.info(
        f"learned again from all {whole.samples:,} selection samples (--refit); before, its {objective.metric.name} on "
        f"the {len(labels):,} held back was {held:.4f}"
    )
    # Learning the start has seconds of its own under the row's name.
    own = {f"{name}, again": seconds for name, seconds in tally.own.items()}
    return Refitted(again, replace(tally, own=own), held)


def _learn(row: Request, seed: int, assembly: Assembly, listener: Listener) -> tuple[Mix, Tally]:
    quiet = Listener(progress=listener.progress)
    entry = run_requests(
        assembly.objective.whole(), {row.name: row}, seed=seed, device=assembly.device, listener=quiet
    )[row.name]
    if entry.error is not None or entry.mix is None:
        raise entry.error or MixoptError(f"{row.name} chose no mix")
    return entry.mix, entry.tally
