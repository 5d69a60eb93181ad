"""Objective: mix to score. A frozen view of a `Scorer` that says what counts: samples, splits and the signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import MixoptError
from mixopt.scoring.cache import Gradient
from mixopt.scoring.looks import Looks, Seen, raced
from mixopt.scoring.outcomes import Outcomes
from mixopt.scoring.racing import LEVEL
from mixopt.scoring.score import Score
from mixopt.scoring.scorer import Scorer
from mixopt.scoring.stopwatch import Stopwatch
from mixopt.scoring.tally import Learned, Tally
from mixopt.scoring.watch import Watch
from mixopt.scoring.work import AnyEvaluator
from mixopt.values.metrics import Metric, shown_metric
from mixopt.values.mix import Mix
from mixopt.values.samples import SYNTHETIC, VALIDATION
from mixopt.weights.pool import Pool


@dataclass(frozen=True, eq=False)
class Objective:
    """Mix to score.

    `counting`, `weighing`, `whole`, `steered_by` and `needing` give views of it that differ in one thing each.

    Attributes:
        scorer: Fuses, runs and caches.
        metric: The driving metric.
        signal: What a search is steered by.
        tuning: How many of the first samples of the validation split tune; those after them are held out.
        weights: What the splits that steer beside the validation split weigh, which has the rest of 1.
        tally: What was asked for; the one thing here that grows.
        watch: Who is told.
        needs: Fields of outcomes without which cached ones are computed again, see `needing`.
    """

    scorer: Scorer
    metric: Metric
    signal: Metric
    tuning: int
    weights: Mapping[str, float] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    watch: Watch = field(default_factory=Watch)
    needs: tuple[str, ...] = ()

    @property
    def pool(self) -> Pool:
        """The checkpoints."""
        return self.scorer.engine.pool

    @property
    def evaluators(self) -> Mapping[str, AnyEvaluator]:
        """Split name to evaluator; ``validation`` is the split that selects."""
        return self.scorer.engine.evaluators

    @property
    def stopwatch(self) -> Stopwatch:
        """Told where time goes."""
        return self.scorer.engine.stopwatch

    @property
    def samples(self) -> int:
        """The number of samples that a score is of, on all splits that weigh in it."""
        return sum(self.count(split) for split in (VALIDATION, *self.weights))

    @property
    def held_out(self) -> int:
        """The number of validation samples that do not tune."""
        return len(self.evaluators[VALIDATION].split) - self.tuning

    @property
    def images(self) -> int:
        """Samples that scoring a mix of several checkpoints runs through a model."""
        recompute = self.scorer.engine.recompute
        return self.samples + (0 if recompute is None else recompute.images * (1 + len(self.weights)))

    @property
    def ahead(self) -> int:
        """How many mixes its workers want to know of in advance; 0 where this process scores."""
        return self.scorer.work.ahead

    @property
    def reused(self) -> float:
        """The share of the forward passes, in segments times samples, that earlier ones spared."""
        return 0.0 if self.scorer.engine.reuse is None else self.scorer.engine.reuse.share

    def counting(
        self, on_score: Callable[[str], None] | None = None, on_batch: Callable[[int], None] | None = None
    ) -> Objective:
        """The same with a tally of its own, to hand to one method; arguments as of `Watch`."""
        return replace(self, tally=Tally(), watch=Watch(on_score, on_batch))

    def weighing(self, weights: Mapping[str, float]) -> Objective:
        """The same with a tally of its own, and a signal that is a weighted mean over several splits.

        Args:
            weights: Split name to weight, together below 1; the validation split has the rest.
        """
        return replace(self.counting(), weights=dict(weights))

    def whole(self) -> Objective:
        """The same with a tally of its own, and all validation samples in its scores: for reports, not for choices."""
        return replace(self.counting(), tuning=len(self.evaluators[VALIDATION].split))

    def steered_by(self, signal: Metric) -> Objective:
        """The same with another signal."""
        return replace(self, signal=signal)

    def needing(self, *fields: str) -> Objective:
        """The same, whose outcomes have these fields, such as ``logits``.

        Outcomes that were cached before these were kept are computed again, where they would be read otherwise. Those
        of a user's own function never have any.
        """
        return replace(self, needs=fields)

    def key(self, mix: Mix, split: str) -> str:
        """What the outcomes of a mix on a split depend on."""
        return self.scorer.key(mix, split)

    def expect(
        self, mixes: Iterable[Mix], split: str = VALIDATION, count: int | None = None, *, unsure: bool = False
    ) -> None:
        """Tell workers, if there are any, of mixes that `score` will be asked for: they begin with all of them at once.

        Args:
            mixes: In the order in which they will be asked for.
            split: As for `score`.
            count: So many of the split's first samples, as for `outcomes`; by default those of a score.
            unsure: They may not be asked for after all; they are begun where nothing else is to be done.
        """
        if self.ahead:
            every = list(mixes)
            for name in (split, *(self.weights if split == VALIDATION and count is None else ())):
                looks = Looks([self.count(name) if count is None else count], needs=self.needs)
                self.scorer.expect(every, name, looks, unsure=unsure)

    def expect_race(self, mixes: Iterable[Mix], incumbent: Score, level: float = LEVEL) -> None:
        """As `expect`, of mixes that `race` will be asked for."""
        if self.ahead:
            self.scorer.expect(mixes, VALIDATION, self._race(incumbent, level))

    def forget(self) -> None:
        """Leave what was expected and has not been asked for."""
        self.scorer.work.forget()

    def score(self, mix: Mix, split: str = VALIDATION) -> Score:
        """Score a mix on the samples of the validation split that tune, or on a whole test split.

        Args:
            mix: Over the pool's columns.
            split: ``validation`` or another split's name; only the former is tallied.

        Raises:
            ScoreError: A loss is not finite; names the layer group held responsible.
            PoolError: The mix is not over this pool.
            RunError: The cache cannot be written.
        """
        score = self._score_mix(mix, split)
        if not self.weights or split != VALIDATION:
            return score
        beside = {name: self._score_mix(mix, name) for name in self.weights}
        found = score.weighed(beside, self.weights)
        self.tally.ask(self.key(mix, VALIDATION), found.images, found.seconds)
        return found

    def race(self, mix: Mix, incumbent: Score, level: float = LEVEL) -> Score:
        """Score a mix on the samples that tune, but give it up once it will not reach the incumbent.

        The outcomes seen are cached, and extended when the mix is scored again. What comes out does not depend on what
        was cached. The validation split alone counts, whatever weighs beside it.

        Args:
            mix: Over the pool's columns.
            incumbent: A mix's whole score on the samples that tune.
            level: Give it up where the chance that it ends as good is below this, see `mixopt.scoring.racing`.

        Raises:
            As `score`.
        """
        seen = self.scorer.see(mix, VALIDATION, self._race(incumbent, level), self.watch.on_batch)
        score = self._tallied(seen, VALIDATION)
        if len(seen.outcomes) == self.count(VALIDATION):
            return score
        value, signal = (
            whole + metric.sign * float(self._gains(metric, incumbent, seen.outcomes).mean())
            for whole, metric in ((incumbent.value, self.metric), (incumbent.signal, self.signal))
        )
        return replace(score, value=value, signal=signal, estimated=True)

    def score_ensemble(self, members: Sequence[Mix], split: str = VALIDATION) -> Score:
        """Score the mean of several models' unnormalised logits; as many forward passes as there are members.

        Args:
            members: Mixes over the pool's columns.
            split: ``validation`` or another split's name; only the former is tallied.

        Raises:
            MixoptError: No members.
            ScoreError: A loss is not finite.
        """
        if not members:
            raise MixoptError("an ensemble needs at least one member")
        count = self.count(split)
        seen = self.scorer.see_ensemble(members, split, count, self.watch.on_batch)
        # Every model's logits are needed once, however many ensembles it is in.
        fresh = {key: mix for mix in members if (key := self.key(mix, split)) not in self.tally.members}
        if split == VALIDATION:
            self.tally.members |= fresh.keys()
        return self._tallied(
            replace(seen, images=sum(count + self.scorer.engine.statistics_images(mix) for mix in fresh.values())),
            split,
        )

    def gradient(self, mix: Mix, samples: NDArray[np.int64], scale: float = 1.0) -> Gradient:
        """The mean cross-entropy on some samples of the validation split, and how it changes with the coefficients.

        BatchNorm statistics are the averaged ones here, and count as constants. Cached like scores.

        Args:
            mix: Over the pool's columns.
            samples: ``[b]``, numbers in the split's fixed order.
            scale: A factor on the logits.

        Raises:
            DataError: The split has no samples of some of the model's classes.
            ScoreError: The loss is not finite.
        """
        found, took = self.scorer.gradient(mix, samples, scale, self.tuning, self.watch.on_batch)
        self.tally.ran(took.key, took.runs)
        self.tally.learned.setdefault(took.key, Learned(took.images, took.seconds, took.images / self.tuning))
        self.scorer.check_gradient(mix, found)
        return found

    def recall(self, mix: Mix, images: int, seconds: float) -> None:
        """Tally a mix that was scored on the validation split before, without scoring it."""
        self.tally.ask(self.key(mix, VALIDATION), images, seconds)

    def outcomes(self, mix: Mix, split: str, count: int) -> Outcomes:
        """What a mix does on the first ``count`` samples of a split, not tallied: for what was scored before.

        Raises:
            ScoreError: A loss is not finite.
        """
        return self.scorer.see(mix, split, Looks([count], needs=self.needs), self.watch.on_batch).outcomes

    def measure(self, outcomes: Outcomes, split: str) -> dict[str, float]:
        """Every metric by name, of the outcomes of a split's first samples."""
        return self.evaluators[split].measure(outcomes, self.metric)

    def _race(self, incumbent: Score, level: float) -> Looks:
        """How far a mix is looked at that is given up once it will not reach the incumbent."""
        gains = partial(self._gains, self.signal, incumbent)
        return raced(self.count(VALIDATION), self.evaluators[VALIDATION].batch_size, gains, level, self.needs)

    def _score_mix(self, mix: Mix, split: str) -> Score:
        seen = self.scorer.see(mix, split, Looks([self.count(split)], needs=self.needs), self.watch.on_batch)
        return self._tallied(seen, split)

    def _tallied(self, seen: Seen, split: str) -> Score:
        """What was seen as a score, tallied where the split selects."""
        self.tally.ran(seen.key, seen.runs)
        if split == VALIDATION:
            self.tally.ask(seen.key, seen.images, seen.seconds)
            if self.watch.on_score:
                self.watch.on_score(seen.key)
        metrics = self.measure(seen.outcomes, split)
        labels = self.evaluators[split].split.labels[: len(seen.outcomes)]
        shown = shown_metric(self.metric.name, metrics)
        return Score(
            value=metrics[shown],
            metrics=metrics,
            outcomes=seen.outcomes,
            seconds=seen.seconds,
            cached=not seen.runs,
            images=seen.images,
            signal=self.signal.of(labels, seen.outcomes) if shown == self.metric.name else math.nan,
        )

    def _gains(self, metric: Metric, incumbent: Score, seen: Outcomes) -> NDArray[np.float64]:
        """How much better than the incumbent on each sample seen."""
        labels = self.evaluators[VALIDATION].split.labels[: len(seen)]
        return metric.gains(labels, seen, incumbent.outcomes.first(len(seen)))

    def count(self, split: str) -> int:
        """Samples of a split that a score is of; shifted ones are held out where those that they were made from are."""
        found = self.evaluators[split].split
        is_cut = split == VALIDATION or (split == SYNTHETIC and found.steers)
        return self.tuning if is_cut else len(found)
