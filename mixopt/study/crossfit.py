"""Cross-fitting: the last choice on a landscape, by samples that judge what the others chose, fold by fold in turn.

A surface predicts logits of mixes that were never scored and sees no label, so that choosing by some samples and
judging by the others costs no forward pass. A procedure says how to choose: how freely layer groups may move, and how
much of the step from the start to take. Every procedure is carried out once for each fold, by all samples but those of
the fold, and its mix judged by these; what all of them say is what the procedure gains on samples that did not choose
(Stone, "Cross-validatory choice and assessment of statistical predictions", J. R. Stat. Soc. B 36, 1974). Every sample
steers and judges. The mixes of the folds were chosen by four fifths of the samples; the one chosen by all in the end is
a little better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixopt.spaces import Space
from mixopt.spaces.freedom import freedoms
from mixopt.study.climbing import SHARES, Region, climb, descend
from mixopt.study.folds import Folds
from mixopt.study.judging import ByRun, Judge
from mixopt.study.landscape import Landscape, Samples
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION

Floats = NDArray[np.float64]

# Of the way from a mix to the uniform soup.
TOWARDS = (0.0, 0.25, 0.5)
# Points at which each climb may take the signal.
EVALUATIONS = 200
# Fewer samples judge nothing.
LEAST = 10


@dataclass(frozen=True)
class Procedure:
    """A way to choose.

    Attributes:
        freedom: How freely layer groups may move, see `mixopt.spaces.freedom`.
        pull: How much of the step from the start to the best mix is taken.
        towards: How far it then goes from there to the uniform soup.
    """

    freedom: str
    pull: float
    towards: float = 0.0


@dataclass(frozen=True)
class Judged:
    """What the samples say of a procedure.

    Attributes:
        procedure: Which.
        gain: By how much its mixes are better than the start on samples that did not choose them, in units of the
            signal.
        sampling: The standard error of that for there being few samples.
        predicting: The same for mixes being predicted, not scored.
    """

    procedure: Procedure
    gain: float
    sampling: float
    predicting: float

    @property
    def error(self) -> float:
        """The standard error of the gain."""
        return math.hypot(self.sampling, self.predicting)

    @property
    def sureness(self) -> float:
        """The gain in standard errors."""
        return self.gain / self.error if self.error > 0 else math.copysign(math.inf, self.gain)

    @property
    def share(self) -> float:
        """How much of the step the evidence carries: the positive-part James-Stein factor for one mean."""
        return max(0.0, 1 - (self.error / self.gain) ** 2) if self.gain > 0 else 0.0


@dataclass(frozen=True, eq=False)
class CrossFit:
    """What cross-fitting chose, and why.

    Attributes:
        mix: Chosen by all samples; the start where no step is supported.
        procedure: How, or, where the start stays, the one that came nearest; None where too few samples judge.
        share: How far from the start to the procedure's mix the mix lies, 0 to 1.
        gain: The procedure's; NaN where too few samples judge.
        error: The standard error of the gain; NaN as well.
        table: Every procedure.
        outcomes: By split, what each sample that judges is predicted to get from a mix like the one chosen, but by
            other samples; see `Folds.judging`. Of the start, what it got.
    """

    mix: Mix
    procedure: Procedure | None
    share: float
    gain: float
    error: float
    table: tuple[Judged, ...]
    outcomes: ByRun


@dataclass(frozen=True)
class Promise:
    """What a landscape promises beyond the mixes that were scored.

    Attributes:
        gain: On samples that did not choose, in units of the signal; NaN where too few samples judge.
        error: Its standard error; NaN as well.
    """

    gain: float
    error: float


def regions_of(space: Space, half: float) -> dict[str, Region]:
    """Where to climb with each freedom of a space: around its centre, as far as ``half``."""
    return {name: Region(np.zeros(space.dims), half, basis) for name, basis in freedoms(space).items()}


def threshold(count: int) -> float:
    """How many standard errors a gain must be for its step to be taken, with so many freedoms to choose from.

    The best of n is also the luckiest: ``sqrt(2 ln n)``, the universal threshold (Donoho and Johnstone 1994), of a
    procedure for each freedom and pull. Fewer would do if procedures were as alike as the samples that they share; but
    errors of cross-validation are larger than they seem for the same reason (Bengio and Grandvalet, J. Mach. Learn.
    Res. 5, 2004). In 200 simulated searches with nothing to gain, 3 took a step: studies/surface.
    """
    return math.sqrt(2 * math.log(count * len(SHARES)))


def cross_fit(
    landscape: Landscape,
    regions: Mapping[str, Region],
    reference: ByRun,
    folds: Folds,
    *,
    seed: int,
    evaluations: int = EVALUATIONS,
    uniform: Floats | None = None,
) -> CrossFit:
    """Choose a mix by all samples, in the way that samples which do not choose support best.

    Of the procedures whose gain is `threshold` standard errors or more, the one is taken of which the evidence carries
    most, and its step shrunk by the positive-part James-Stein factor (James and Stein 1961). Where there is none, the
    start stays.

    Args:
        landscape: Predicts.
        regions: Where to climb, by freedom, see `regions_of`.
        reference: What the start did, by split, on all samples.
        folds: Who judges whom.
        seed: Of CMA-ES.
        evaluations: Points at which each climb may take the signal; 0 descends alone.
        uniform: The uniform soup's coefficients ``[groups, columns]`` on the groups of the space's mixes; without, no
            mix is pulled there.
    """
    start = landscape.space.to_mix(np.zeros(landscape.space.dims))
    theirs = {name: reference[name].at(samples) for name, samples in folds.judging.items()}
    if len(folds.judging[VALIDATION]) < LEAST:
        return CrossFit(start, None, 0.0, math.nan, math.nan, (), theirs)
    judge = Judge(landscape, folds)

    def chosen(freedom: str, steers: Mapping[str, Samples] | None) -> Floats:
        best = climb(landscape, regions[freedom], seed=seed, evaluations=evaluations, chosen=steers).best
        return np.asarray(landscape.space.to_mix(best).coefficients)

    def pulled(each: Procedure, mix: Floats) -> Floats:
        rows = start.coefficients + each.pull * (mix - start.coefficients)
        return rows if uniform is None else rows + each.towards * (uniform - rows)

    table: list[Judged] = []
    by_fold: dict[str, list[Floats]] = {}
    for freedom in regions:
        ways = TOWARDS if uniform is not None else TOWARDS[:1]
        every = [Procedure(freedom, pull, towards) for pull in SHARES for towards in ways]
        by_fold[freedom] = [chosen(freedom, steers) for steers in folds.steers]
        mixes = [np.stack([pulled(each, mix) for each in every]) for mix in by_fold[freedom]]
        predicting = judge.predicting(mixes)
        for each, ours, unsure in zip(every, judge.outcomes(mixes), predicting, strict=True):
            table.append(Judged(each, *judge.gain(ours, theirs), float(unsure)))
    least = threshold(len(regions))
    sure = [each for each in table if each.gain > 0 and each.sureness >= least]
    if not sure:
        near = max(table, key=lambda each: each.sureness)
        return CrossFit(start, near.procedure, 0.0, near.gain, near.error, tuple(table), theirs)
    best = max(sure, key=lambda each: each.share * each.gain)

    def shrunk(mix: Floats) -> Floats:
        return start.coefficients + best.share * (pulled(best.procedure, mix) - start.coefficients)

    freedom = best.procedure.freedom
    (outcomes,) = judge.outcomes([shrunk(mix)[None] for mix in by_fold[freedom]])
    mix = Mix(start.groups, start.columns, shrunk(chosen(freedom, None)))
    return CrossFit(mix, best.procedure, best.share, best.gain, best.error, tuple(table), outcomes)


def expected_gain(landscape: Landscape, scored: Floats, half: float, folds: Folds, *, seed: int = 0) -> Promise:
    """What a landscape still promises over the best mix scored, on samples that chose neither.

    Within ``half`` of the best point by the samples that steer, with every dimension moving alone: down the predicted
    loss, and where that promises nothing, up the signal itself, which may gain where the loss does not.

    Args:
        landscape: Predicts.
        scored: Points ``[m, dims]`` that were scored; the start's alone for what is promised over the start.
        half: How far a climb goes in each dimension.
        folds: Who judges whom.
        seed: Of CMA-ES.
    """
    if len(folds.judging[VALIDATION]) < LEAST:
        return Promise(math.nan, math.nan)
    judge = Judge(landscape, folds)
    begins = [scored[int(np.argmax(values))] for values in landscape.values_by(scored, folds.steers)]
    regions = [Region(begin, half) for begin in begins]
    lowest = [descend(landscape, *each) for each in zip(regions, folds.steers, strict=True)]

    def promised(evaluations: int) -> Promise:
        mixes = []
        for region, steers, low in zip(regions, folds.steers, lowest, strict=True):
            climbed = climb(landscape, region, seed=seed, evaluations=evaluations, chosen=steers, lowest=low)
            steps = np.outer((0.0, *SHARES), climbed.best - region.begin)
            mixes.append(landscape.coefficients(region.begin + steps))
        theirs, *every = judge.outcomes(mixes)
        predicting = judge.predicting(mixes)[1:]
        found = [(*judge.gain(ours, theirs), float(unsure)) for ours, unsure in zip(every, predicting, strict=True)]
        gain, sampling, unsure = max(found)
        return Promise(gain, math.hypot(sampling, unsure))

    first = promised(0)
    return first if first.gain > first.error else promised(EVALUATIONS)
