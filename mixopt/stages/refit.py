"""The last step of a search: what its start learned by gradient is learned again, from all selection samples.

Samples held back choose between mixes; once they have, they teach as well. What more samples are worth to a learned
soup is measured in studies/.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mixopt.assemble import Assembly
from mixopt.comparison.rows import Request, run_requests
from mixopt.errors import MixoptError
from mixopt.listener import Listener
from mixopt.scoring.score import Tally
from mixopt.values.mix import Mix, combine
from mixopt.values.samples import VALIDATION


@dataclass(frozen=True, eq=False)
class Refitted:
    """What came of learning the start again.

    Attributes:
        mix: The mix.
        tally: What it took.
        held_back: What the mix before scored on the samples held back, by the driving metric: the last number that is
            not of samples learned from.
    """

    mix: Mix
    tally: Tally
    held_back: float


def refit(assembly: Assembly, learned: Request, start: Mix, mix: Mix, seed: int, listener: Listener) -> Refitted | None:
    """A search's mix with its learned start replaced by the one that all selection samples teach.

    The mix's step from the start stays as it is. Where learning fails, or the new mix's scores are not finite, a
    warning says so.

    Args:
        assembly: Gives the gradients.
        learned: The row that the search started from.
        start: Its mix.
        mix: What the search chose.
        seed: The run's.
        listener: Told what came of it.

    Returns:
        None where no samples were held back, and where it failed.
    """
    objective = assembly.objective
    whole = objective.whole()
    if whole.samples == objective.samples:
        return None
    quiet = Listener(progress=listener.progress)
    entry = run_requests(whole, {learned.name: learned}, seed=seed, device=assembly.device, listener=quiet)[
        learned.name
    ]
    try:
        if entry.error is not None or entry.mix is None:
            raise entry.error or MixoptError(f"{learned.name} chose no mix")
        again = entry.mix if mix == start else combine([mix, entry.mix, start], [1, 1, -1])
        whole.score(again)
    except MixoptError as error:
        listener.warn(f"not learned again from all selection samples (--refit): {error}; the mix stays as it was")
        return None
    labels = objective.evaluators[VALIDATION].split.labels[objective.steering :]
    held = objective.metric.of(labels, whole.score(mix).outcomes.rest(objective.steering))
    listener.info(
        f"learned again from all {whole.samples:,} selection samples (--refit); before, its {objective.metric.name} on "
        f"the {len(labels):,} held back was {held:.4f}",
    )
    # Learning the start has seconds of its own under the row's name.
    own = {f"{name}, again": seconds for name, seconds in entry.tally.own.items()}
    return Refitted(again, replace(entry.tally, own=own), held)
