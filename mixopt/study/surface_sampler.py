"""A sampler that searches on a response surface of logits, see `mixopt.surface`: thousands of mixes for each scored.

Trials are real scores, always; the surface only proposes. First come points of a scrambled Sobol sequence around the
start. From then on the surface is fitted to every mix scored, and of what climbing on it within a trust region finds,
half of a batch is what is predicted to be best, by all samples or with a fifth of them left out, and half what the
surface is least sure of. The trust region lies around the best trial; it grows where the last batch gained what was
predicted, and shrinks where it did not (Conn, Gould and Toint, "Trust-Region Methods", 2000, chapter 6).

With several objectives every proposal climbs another weighted mean of them (ParEGO: Knowles, IEEE Trans. Evol. Comput.
10, 2006).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from mixopt.scoring.objective import Objective
from mixopt.spaces import Space
from mixopt.study.climbing import Climbed, Region, climb
from mixopt.study.crossfit import Promise, expected_gain
from mixopt.study.evidence import Evidence
from mixopt.study.folds import make_folds
from mixopt.study.landscape import Landscape
from mixopt.study.records import BATCH
from mixopt.study.samplers import BOX, SURFACE_POPULATION
from mixopt.study.studies import best_trial, signal_of

Floats = NDArray[np.float64]

# Half-widths: of the first design and the first trust region, and the least and the largest, which is the whole box.
BEGIN, LEAST, MOST = 0.5, 0.02, 2.0
# By how much of what was predicted a batch must gain for the trust region to grow, and to shrink if it does not.
GROWS, SHRINKS = 0.75, 0.25
GROWTH, SHRINKAGE = 1.5, 0.5
# Points at which CMA-ES may take the signal, for each batch.
EVALUATIONS = 400
# Of the points of a climb, so many of the best are candidates, with as many drawn from the trust region.
CANDIDATES = 96


@dataclass(frozen=True, eq=False)
class Batch:
    """Points asked together.

    Attributes:
        first: The number of the first of their trials.
        points: ``[k, dims]``.
        expected: ``[k]``, the signal predicted at each; none of a design.
        half: The half-width of the trust region.
    """

    first: int
    points: Floats
    expected: Floats
    half: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; floats keep every bit."""
        return {"points": self.points.tolist(), "expected": self.expected.tolist(), "half": self.half}

    @classmethod
    def of(cls, trial: FrozenTrial) -> Batch | None:
        """The batch that a trial begins, if it does."""
        said = trial.system_attrs.get(BATCH)
        if said is None:
            return None
        return cls(trial.number, np.array(said["points"]), np.array(said["expected"]), float(said["half"]))


class SurfaceSampler(BaseSampler):
    """An ordinary Optuna sampler, for a space's box and an objective.

    What it asks depends on the seed and on what is stored of trials before, so that a study that was killed goes on as
    if it had not been. The objective's cache spares scoring trials again of which only the score is stored.

    Args:
        objective: Scored the study's trials, and gives their logits.
        space: The study's.
        seed: Of everything random.
        population: Trials asked at a time.
        evidence: What else was scored, see `mixopt.study.evidence`; nothing by default.
    """

    def __init__(
        self,
        objective: Objective,
        space: Space,
        seed: int = 0,
        population: int | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        self._space = space
        self._seed = seed
        self._population = population or SURFACE_POPULATION
        self._evidence = evidence or Evidence(objective, space)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole box."""
        return dict.fromkeys(self._space.labels, BOX)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point of the batch that is open, or the first of a new one, which the trial keeps."""
        before = study.get_trials(deepcopy=False)[: trial.number]
        batch = self._open_batch(before)
        if batch is None or trial.number - batch.first >= len(batch.points):
            batch = self._next(study, before)
            study._storage.set_trial_system_attr(trial._trial_id, BATCH, batch.as_dict())
        point = batch.points[trial.number - batch.first]
        return dict(zip(self._space.labels, point.tolist(), strict=True))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Only for parameters that are not the space's."""
        random = np.random.RandomState(self._seed_of(trial.number))
        return optuna.samplers.RandomSampler(seed=random.randint(2**31 - 1)).sample_independent(
            study, trial, param_name, param_distribution
        )

    def landscape(self, study: optuna.Study, before: Sequence[FrozenTrial]) -> Landscape:
        """What the complete ones of some trials of a study tell."""
        return self._evidence.landscape(complete(before))

    def promise(self, before: Sequence[FrozenTrial], judges_from: int = 0) -> Promise | None:
        """What the surface still promises over the best of some trials, on samples that did not choose.

        Args:
            before: The trials of a study so far.
            judges_from: The first validation sample that judges, see `mixopt.study.folds`.

        Returns:
            None where no batch was predicted yet, and a landscape of several objectives promises no one number.
        """
        batches = [batch for trial in before if (batch := Batch.of(trial)) is not None]
        done = complete(before)
        if not any(len(batch.expected) for batch in batches) or len(done[0].values or []) > 1:
            return None
        landscape = self._evidence.landscape(done)
        folds = make_folds(landscape.labels, judges_from)
        points = np.array([[trial.params[label] for label in self._space.labels] for trial in done])
        return expected_gain(landscape, points, batches[-1].half, folds, seed=self._seed_of(len(before)))

    @staticmethod
    def _open_batch(before: Sequence[FrozenTrial]) -> Batch | None:
        return next((batch for trial in reversed(before) if (batch := Batch.of(trial)) is not None), None)

    def _next(self, study: optuna.Study, before: Sequence[FrozenTrial]) -> Batch:
        number, done = len(before), complete(before)
        batches = [batch for trial in before if (batch := Batch.of(trial)) is not None]
        if not batches or len(done) < 2:
            points = design(self._space.dims, self._design_size(), BEGIN, self._seed_of(number))
            return Batch(number, points, np.zeros(0), BEGIN)
        half = next_half(study, batches[-1], before)
        landscape = self.landscape(study, before)
        centre = best_trial(study, done)
        begin = np.array([centre.params[label] for label in self._space.labels])
        weights = [split.weight for split in landscape.splits.values()]
        if len(study.directions) == 1:
            points = propose(landscape, Region(begin, half), self._population, self._seed_of(number))
        else:
            random = np.random.default_rng(self._seed_of(number))
            every = [weights, *random.dirichlet(np.ones(len(weights)), self._population - 1)]
            points = np.vstack([
                propose(landscape.weighted(each), Region(begin, half), 1, self._seed_of(number) + place)
                for place, each in enumerate(every)
            ])  # fmt: skip
        return Batch(number, points, landscape.values(points), half)

    def _design_size(self) -> int:
        """One more than the dimensions, in whole batches, but no more than two: batches explore as well."""
        batches = math.ceil((self._space.dims + 1) / self._population)
        return self._population * min(2, batches)

    def _seed_of(self, number: int) -> int:
        return int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0] % (2**31 - 1))


def complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that were told a value."""
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def design(dims: int, count: int, half: float, seed: int) -> Floats:
    """The first points of a scrambled Sobol sequence in ``[-half, half]``: ``[count, dims]``."""
    sobol = qmc.Sobol(dims, scramble=True, rng=np.random.default_rng(seed))
    return np.asarray(half * (2 * sobol.random_base2(math.ceil(math.log2(count)))[:count] - 1))


def next_half(study: optuna.Study, last: Batch, before: Sequence[FrozenTrial]) -> float:
    """The half-width of the trust region after a batch."""
    told = [trial for trial in before[last.first : last.first + len(last.points)] if trial.state.is_finished()]
    if not len(last.expected) or not told:
        return last.half
    start = signal_of(study, best_trial(study, complete(before[: last.first])))
    predicted = float(np.max(last.expected[: len(told)])) - start
    gained = max((signal_of(study, trial) for trial in complete(told)), default=-np.inf) - start
    if predicted <= 0:
        return last.half
    if gained >= GROWS * predicted:
        return min(MOST, GROWTH * last.half)
    return last.half if gained >= SHRINKS * predicted else max(LEAST, SHRINKAGE * last.half)


def propose(landscape: Landscape, region: Region, count: int, seed: int) -> Floats:
    """Points ``[count, dims]`` within a region that are worth scoring, the best predicted first.

    The region's centre is not: it was scored.
    """
    climbed = climb(landscape, region, seed=seed, evaluations=EVALUATIONS)
    is_new = np.any(climbed.points != region.begin, axis=1)
    climbed = Climbed(climbed.points[is_new], climbed.values[is_new])
    if count == 1:
        return climbed.best[None]
    order = np.argsort(-climbed.values, kind="stable")
    _, first = np.unique(climbed.points[order], axis=0, return_index=True)
    kept = order[np.sort(first)][:CANDIDATES]
    low, high = region.bounds.T
    drawn = region.points(np.random.default_rng(seed).uniform(low, high, (CANDIDATES, len(low))))
    points = np.vstack([climbed.points[kept], drawn])
    chosen = _best_of_folds(landscape, points[: len(kept)], math.ceil(count / 2))
    values = np.r_[climbed.values[kept], landscape.values(drawn)]
    # What is predicted to be in the worse half is not worth knowing better.
    worth = np.flatnonzero(values >= np.median(values))
    places = {int(number): place for place, number in enumerate(worth)}
    taken = [places[number] for number in chosen if number in places]
    unsure = landscape.least_sure(points[worth], count - len(chosen), taken)
    return points[[*chosen, *worth[unsure]]]


def _best_of_folds(landscape: Landscape, points: Floats, count: int) -> list[int]:
    """The best of points by all samples, then by all but a fifth of them in turn; each once."""
    chosen: list[int] = []
    for values in landscape.values_by(points, [None, *make_folds(landscape.labels).steers]):
        order = np.argsort(-values, kind="stable")
        if len(chosen) < count:
            chosen.append(next(int(number) for number in order if int(number) not in chosen))
    rest = [number for number in range(len(points)) if number not in chosen]
    return chosen + rest[: count - len(chosen)]
