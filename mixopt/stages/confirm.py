"""Confirm: the last choice among the best trials, by samples that tuned nothing, shrunk towards the start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mixopt.errors import ScoreError
from mixopt.scoring.objective import Objective
from mixopt.scoring.score import Score
from mixopt.scoring.tally import Tally
from mixopt.stages.explore import Explored
from mixopt.values.mix import Mix, combine
from mixopt.values.samples import SYNTHETIC, VALIDATION

# One sample more gained, and none lost, is evidence of nothing: its share is 0 but for rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        mix: The mix.
        candidate: Its number among the candidates; None where the start stays.
        share: How far from the start to that candidate the mix lies, 0 to 1.
        gain: The candidate's mean gain over the start per held-out sample, in units of the search's signal; NaN where
            there is nothing to confirm by.
        error: The standard error of that gain; NaN where there is none.
        lost: How many candidates have losses on the held-out samples that are not finite, and so were none.
        trial: The number of the candidate's trial; 0, the start's, where the start stays.
        tally: What it took.
    """

    mix: Mix
    candidate: int | None
    share: float
    gain: float
    error: float
    lost: int = 0
    trial: int = 0
    tally: Tally = field(default_factory=Tally)

    @property
    def evidence(self) -> dict[str, float]:
        """Gain and error as plain JSON values; empty where there is none."""
        return {} if math.isnan(self.error) else {"gain": self.gain, "error": self.error}


def confirm(objective: Objective, explored: Explored) -> Choice:
    """Choose among the best trials; see `choose_candidate`."""
    numbers = list(explored.best)
    choice = choose_candidate(objective, explored.start, list(explored.best.values()))
    return choice if choice.candidate is None else replace(choice, trial=numbers[choice.candidate])


def choose_candidate(objective: Objective, start: Mix, candidates: Sequence[Mix]) -> Choice:
    """Choose among candidates by the held-out samples, paired with the start's.

    The candidate with the largest mean gain is taken as far as the evidence carries: its step from the start is
    multiplied by ``1 - k * (error / gain)**2``, or by 0 where that is negative: the positive-part James-Stein factor
    (James and Stein 1961) for one mean, with ``k`` of 1. The best of n is also the luckiest, so ``k`` is ``2 ln n``
    where that is more, the square of the universal threshold (Donoho and Johnstone 1994). Where there is nothing to
    confirm by, the first candidate is chosen.

    Where the shifted images weigh in the signal, those made from the samples that confirm do so with them, at the
    weights of the two. Other splits steer whole, and confirm nothing.

    Args:
        objective: Whose validation split has held-out samples.
        start: Where the search began.
        candidates: The best trials, best first.
    """
    whole = objective.whole()
    if not objective.held_out:
        return Choice(candidates[0], 0, 1.0, math.nan, math.nan)
    whole.expect([start, *candidates])
    reference = whole.score(start)
    best, lost = Choice(start, None, 0.0, 0.0, math.nan), 0
    luck = max(1.0, 2 * math.log(len(candidates)))
    for number, mix in enumerate(candidates):
        try:
            gains = _gains(objective, whole.score(mix), reference)
        except ScoreError:  # finite where it steered, and not here: no candidate
            lost += 1
            continue
        gain, error = float(gains.mean()), _standard_error(gains)
        if gain > best.gain:
            share = 1 - luck * (error / gain) ** 2
            best = Choice(mix, number, share if share > ROUNDING else 0.0, gain, error)
    if best.share == 0:
        return Choice(start, None, 0.0, best.gain, best.error, lost, tally=whole.tally)
    mix = best.mix if best.share == 1 else combine([start, best.mix], [1 - best.share, best.share])
    return replace(best, mix=mix, lost=lost, tally=whole.tally)


def _standard_error(gains: NDArray[np.float64]) -> float:
    """Of their mean; 0 of one sample, which tells of no spread."""
    return float(stats.sem(gains)) if len(gains) > 1 else 0.0


def _gains(objective: Objective, ours: Score, theirs: Score) -> NDArray[np.float64]:
    """What each held-out sample gains, ``[n]``: a sample and its shifted image are one."""
    tuning, labels = objective.tuning, objective.evaluators[VALIDATION].split.labels

    def of(first: Score, second: Score) -> NDArray[np.float64]:
        rest = (first.outcomes.rest(tuning), second.outcomes.rest(tuning))
        return objective.signal.gains(labels[tuning:], *rest)

    if SYNTHETIC not in objective.weights:
        return of(ours, theirs)
    own, shifted = 1 - sum(objective.weights.values()), objective.weights[SYNTHETIC]
    both = own * of(ours, theirs) + shifted * of(ours.beside[SYNTHETIC], theirs.beside[SYNTHETIC])
    return both / (own + shifted)


def describe(choice: Choice, objective: Objective) -> str:
    """What the last choice was, in words."""
    held = objective.held_out
    if not held:
        return f"trial {choice.trial} is the best; no samples are held back to confirm it (--confirm 0)"
    lost = f"; {choice.lost} of the best have losses there that are not finite" if choice.lost else ""
    if choice.candidate is None:
        stays = f"no trial is confirmed to be better than the start on the {held:,} samples held back: the start stays"
        return stays + lost
    return (
        f"trial {choice.trial} gains {choice.gain:+.4f} ± {choice.error:.4f} over the start on the {held:,} samples "
        f"held back: the mix lies {choice.share:.0%} of the way from the start to it{lost}"
    )
