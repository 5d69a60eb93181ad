"""The last choice of a search: among the best trials, by samples that steered nothing, shrunk towards the start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import ScoreError
from mixopt.scoring.objective import Objective
from mixopt.scoring.score import Score
from mixopt.values.mix import Mix, combine
from mixopt.values.samples import SYNTHETIC, VALIDATION

# One sample more gained, and none lost, is evidence of nothing: its share is 0 but for rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Settled:
    """What was chosen, and why.

    Attributes:
        mix: The mix.
        chosen: Its number among the candidates; None where the start stays.
        share: How far from the start to that candidate the mix lies, 0 to 1.
        gain: The candidate's mean gain over the start per confirming sample, in units of the search's signal.
        error: The standard error of that gain.
        lost: How many candidates have losses on the confirming samples that are not finite, and so were none.
    """

    mix: Mix
    chosen: int | None
    share: float
    gain: float
    error: float
    lost: int = 0

    @property
    def evidence(self) -> dict[str, float]:
        """Gain and error as plain JSON values; empty where there is none."""
        return {} if math.isnan(self.error) else {"gain": self.gain, "error": self.error}


def settle(objective: Objective, start: Mix, candidates: Sequence[Mix]) -> Settled:
    """Choose among candidates by the samples after the steering ones, paired with the start's.

    The candidate with the largest mean gain is taken as far as the evidence carries: its step from the start is
    multiplied by ``1 - k * (error / gain)**2``, or by 0 where that is negative: the positive-part James-Stein factor
    (James and Stein 1961) for one mean, with ``k`` of 1. The best of n is also the luckiest, so ``k`` is ``2 ln n``
    where that is more, the square of the universal threshold (Donoho and Johnstone 1994). Where there is nothing to
    confirm by, the first candidate is chosen.

    Where the shifted images weigh in the signal, those made from the samples that confirm do so with them, at the
    weights of the two. Other splits steer whole, and confirm nothing.

    Args:
        objective: Whose selection split has samples that confirm; their images are tallied.
        start: Where the search began.
        candidates: The best trials, best first.
    """
    whole = objective.whole()
    steering = objective.steering
    if whole.steering == steering:
        return Settled(candidates[0], 0, 1.0, math.nan, math.nan)
    reference = whole.score(start)
    best, lost = Settled(start, None, 0.0, 0.0, math.nan), 0
    luck = max(1.0, 2 * math.log(len(candidates)))
    for number, mix in enumerate(candidates):
        try:
            gains = _gains(objective, whole.score(mix), reference)
        except ScoreError:  # finite where it steered, and not here: no candidate
            lost += 1
            continue
        gain = float(gains.mean())
        error = math.sqrt(float(np.sum(np.square(gains - gain))) / (len(gains) * max(1, len(gains) - 1)))
        if gain > best.gain:
            share = 1 - luck * (error / gain) ** 2
            best = Settled(mix, number, share if share > ROUNDING else 0.0, gain, error)
    objective.tally.asked.update(whole.tally.asked)
    objective.tally.computed += whole.tally.computed
    objective.tally.spent += whole.tally.spent
    if best.share == 0:
        return Settled(start, None, 0.0, best.gain, best.error, lost)
    mix = best.mix if best.share == 1 else combine([start, best.mix], [1 - best.share, best.share])
    return Settled(mix, best.chosen, best.share, best.gain, best.error, lost)


def _gains(objective: Objective, ours: Score, theirs: Score) -> NDArray[np.float64]:
    """What each confirming sample gains, ``[n]``: a sample and its shifted image are one."""
    steering, labels = objective.steering, objective.evaluators[VALIDATION].split.labels

    def of(first: Score, second: Score) -> NDArray[np.float64]:
        rest = (first.outcomes.rest(steering), second.outcomes.rest(steering))
        return objective.signal.gains(labels[steering:], *rest)

    if SYNTHETIC not in objective.weights:
        return of(ours, theirs)
    own, shifted = 1 - sum(objective.weights.values()), objective.weights[SYNTHETIC]
    both = own * of(ours, theirs) + shifted * of(ours.beside[SYNTHETIC], theirs.beside[SYNTHETIC])
    return both / (own + shifted)


def told(settled: Settled, trial: int, objective: Objective) -> str:
    """What the last choice was, in words."""
    held = len(objective.evaluators[VALIDATION].split) - objective.samples
    if not held:
        return f"trial {trial} is the best; no samples are held back to confirm it (--confirm 0)"
    lost = f"; {settled.lost} of the best have losses there that are not finite" if settled.lost else ""
    if settled.chosen is None:
        stays = f"no trial is confirmed to be better than the start on the {held:,} samples held back: the start stays"
        return stays + lost
    return (
        f"trial {trial} gains {settled.gain:+.4f} ± {settled.error:.4f} over the start on the {held:,} samples held "
        f"back: the mix lies {settled.share:.0%} of the way from the start to it{lost}"
    )
