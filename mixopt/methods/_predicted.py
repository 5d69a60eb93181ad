"""What is predicted of mixes before they are scored, from the logits of those that were: an order, never a score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mixopt.errors import SpecError
from mixopt.scoring.objective import Objective
from mixopt.scoring.score import Score
from mixopt.surface.fitting import fit
from mixopt.surface.outputs import columns_of, numbers_of, outputs_of
from mixopt.values.kept_logits import KeptLogits
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION

# A surface is fitted to so many mixes at least.
LEAST = 2


class AveragedLogits:
    """Soups predicted by the mean of their members' logits, as in RADIN, arXiv 2401.17790.

    Where logits are linear in the weights, that mean is what the soup gives.

    Args:
        objective: Its metric and labels.
        scores: Of every column alone.
        option: The option that wants it, for the message.
        instead: What to ask for where there are no logits.

    Raises:
        SpecError: There are no logits: a user's own function scores.
    """

    def __init__(self, objective: Objective, scores: Mapping[str, Score], option: str, instead: str) -> None:
        kept = {name: logits_of(score, option, instead) for name, score in scores.items()}
        self._labels = labels_of(objective, len(next(iter(kept.values()))))
        self._metric = objective.metric
        self._columns = columns_of(list(kept.values()), self._labels)
        self._outputs = {name: torch.from_numpy(outputs_of(each, self._columns)) for name, each in kept.items()}

    def value(self, members: Sequence[str]) -> float:
        """What the metric of the soup of these columns is predicted to be."""
        mean = torch.stack([self._outputs[name] for name in members]).mean(dim=0)
        outcomes = numbers_of(mean[None], self._columns, needs=self._metric.needs).at(0)
        return self._metric.of(self._labels, outcomes)


def worth_scoring(
    objective: Objective, along: Mapping[float, Mix], scores: Mapping[float, Score | None]
) -> Iterator[float]:
    """Where to score along one parameter, one place after another, so that few of them find the best.

    Both ends and the middle come first; then, of a surface fitted to what was scored so far, the best place and those
    beside it, until the best is one that was scored, and so were those beside it.

    Args:
        objective: Its metric and labels.
        along: The parameter's value to the mix there, ascending, over the same layer groups.
        scores: What was scored so far, None where it gave no number; read whenever the next place is asked for.

    Raises:
        SpecError: There are no logits: a user's own function scores.
    """
    places = list(along)
    yield from dict.fromkeys((places[0], places[len(places) // 2], places[-1]))
    while len(scores) < len(along):
        wanted = [place for place in _around_the_best(objective, along, scores) if place not in scores]
        if not wanted:
            return
        yield from wanted


def _around_the_best(
    objective: Objective, along: Mapping[float, Mix], scores: Mapping[float, Score | None]
) -> list[float]:
    """The place that is best by score, or by prediction where it has none, of equals the first; and its neighbours."""
    known = {place: score for place in along if (score := scores.get(place)) is not None}
    open_to = [place for place in along if place in known or place not in scores]
    if len(known) < LEAST:
        return open_to
    middle = (min(along) + max(along)) / 2
    fitted = sorted(known, key=lambda place: abs(place - middle))
    kept = [logits_of(known[place], "points=few", "points=all") for place in fitted]
    labels = labels_of(objective, len(kept[0]))
    surface = fit(np.stack([along[place].coefficients for place in fitted]), kept, labels)
    metric = objective.metric
    predicted = surface.outcomes(np.stack([along[place].coefficients for place in open_to]), metric.needs)
    values = {place: metric.of(labels, each) for place, each in zip(open_to, predicted, strict=True)}
    values |= {place: score.value for place, score in known.items()}
    best = max(open_to, key=lambda place: metric.sign * values[place])
    number = open_to.index(best)
    return open_to[max(0, number - 1) : number + 2]


def logits_of(score: Score, option: str, instead: str) -> KeptLogits:
    """The logits of what was scored by an objective that needs them.

    Args:
        score: The score.
        option: The option that wants them, for the message.
        instead: What to ask for where there are none.

    Raises:
        SpecError: There are none.
    """
    if score.outcomes.logits is None:
        raise SpecError(
            f"{option}: it needs the logits of every sample, and your own function gives none; use {instead}"
        )
    return score.outcomes.logits


def labels_of(objective: Objective, count: int) -> NDArray[np.int64]:
    """The labels ``[count]`` of the first samples of the validation split, those that scores are of."""
    return objective.evaluators[VALIDATION].split.labels[:count]
