"""What the samples of a fold say of mixes that they did not choose, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mixopt.scoring.outcomes import Outcomes
from mixopt.study.folds import Folds
from mixopt.study.landscape import Landscape
from mixopt.surface.checking import left_out_outcomes
from mixopt.surface.outputs import PredictedOutcomes
from mixopt.values.samples import SYNTHETIC, VALIDATION

Floats = NDArray[np.float64]
# By split, outcomes on all samples or on those that judge.
ByRun = Mapping[str, Outcomes | PredictedOutcomes]

# Mixes, the last ones, by which a surface is checked.
CHECKED = 48


class Judge:
    """Gains of mixes on a landscape, by samples that did not choose them.

    Args:
        landscape: Predicts.
        folds: Who judges whom.
    """

    def __init__(self, landscape: Landscape, folds: Folds) -> None:
        self._landscape = landscape
        self._folds = folds
        self._judging = folds.judging
        self._misjudged = misjudged_by(landscape)

    def outcomes(self, by_fold: Sequence[Floats]) -> list[dict[str, PredictedOutcomes]]:
        """What the samples that judge are predicted to get, each from the mix of its own fold.

        Args:
            by_fold: Of each fold, mixes ``[m, groups, columns]``.

        Returns:
            For each of the m, by split.
        """
        found = [list(self._landscape.outcomes(mixes)) for mixes in by_fold]
        return [self._folds.joined([each[number] for each in found]) for number in range(len(by_fold[0]))]

    def predicting(self, by_fold: Sequence[Floats]) -> Floats:
        """The standard error ``[m]`` of a gain for mixes ``[m, groups, columns]`` being predicted, not scored.

        In proportion to what logits are expected to be off by, see `misjudged_by`. Mixes of the folds lie close to
        each other, and so are misjudged alike. A stepped metric is off by more than that where it is off by one or two
        samples; that is little beside the error of sampling, which every sample makes that changes.
        """
        variances = [self._landscape.surface.expected(mixes) ** 2 for mixes in by_fold]
        return np.asarray(self._misjudged * np.sqrt(np.mean(variances, axis=0)))

    def gain(self, ours: ByRun, theirs: ByRun) -> tuple[float, float]:
        """The mean gain in units of the signal, and its standard error over samples, paired.

        A sample and its shifted image are one; splits count by their weights.

        Args:
            ours: Outcomes of the samples that judge.
            theirs: The same of what they are compared with.
        """
        landscape, gains = self._landscape, {}
        for name, samples in self._judging.items():
            split = landscape.splits[name]
            gains[name] = split.weight * landscape.signal.gains(split.labels[samples], ours[name], theirs[name])
        if SYNTHETIC in gains:
            gains[VALIDATION] = gains[VALIDATION] + gains.pop(SYNTHETIC)
        variance = sum(float(np.var(each, ddof=1)) / len(each) for each in gains.values())
        return sum(float(np.mean(each)) for each in gains.values()), math.sqrt(variance)


def misjudged_by(landscape: Landscape) -> float:
    """How far off the signal of a predicted mix is, by mixes that were scored, each predicted by the others.

    Returns:
        By how much for each nat that its logits are expected to be off, root mean square.
    """
    signal, surface = landscape.signal, landscape.surface
    # The first mix is what the others' changes are of. What was scored before a study, on the validation split alone,
    # stands before its trials: counted from the last, those are the same mixes of every split.
    fewest = min(len(split.surface) for split in landscape.splits.values())
    mixes = surface.parts[-1].mixes[1:]
    mixes = mixes[len(surface) - mixes < fewest][-CHECKED:]
    if not len(mixes):
        return math.inf
    off = np.zeros(len(mixes))
    for split in landscape.splits.values():
        same = mixes - len(surface) + len(split.surface)
        for place, (said, did) in enumerate(left_out_outcomes(split.surface, same, signal.needs)):
            off[place] += split.weight * (signal.of(split.labels, said) - signal.of(split.labels, did))
    expected = np.maximum(surface.left_out.expected[mixes], np.finfo(float).tiny)
    return float(np.sqrt(np.mean((off / expected) ** 2)))
