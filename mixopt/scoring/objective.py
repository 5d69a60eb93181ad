"""Objective: the single path by which a mix is ever scored."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mixopt.errors import DataError, MixoptError, PoolError, ScoreError, names
from mixopt.scoring.activation_reuse import Prefix, Resumed
from mixopt.scoring.batchnorm import Recompute, negative_variance
from mixopt.scoring.cache import Gradient, OutcomeCache
from mixopt.scoring.evaluator import NO_OUTCOMES, Evaluator, Outcomes, Predict
from mixopt.scoring.keys import Keys
from mixopt.scoring.racing import hopeless, looks
from mixopt.scoring.score import Score, Tally
from mixopt.scoring.stopwatch import Stopwatch
from mixopt.values.metrics import METRICS, Metric
from mixopt.values.mix import Mix
from mixopt.values.samples import SYNTHETIC, VALIDATION
from mixopt.weights.builder import FastBuilder
from mixopt.weights.pool import Pool

_ADVICE = "Leave the checkpoint that causes it out of the pool, or save in a wider --dtype"


class Objective:
    """Mix to score, cached by content.

    Args:
        pool: The checkpoints.
        builder: Fuses mixes of the pool into its module.
        predict: Called once per mix: gives the function from images to logits of the module as it is now.
        evaluators: Split name to evaluator; ``search`` is the split that selects.
        cache: Where outcomes are kept.
        metric: The driving metric's name.
        identity: What else outcomes depend on (family, preprocessing, precision, ...), as plain JSON values.
        recompute: Sets the BatchNorm statistics of mixes of several checkpoints; None averages them.
        stopwatch: Told where time goes.
        prefix: Reuses what the first stages gave for an earlier mix; None runs every mix from its images.
        steering: How many of the first samples of the selection split steer; those after them confirm. All by default.

    Attributes:
        signal: What a search is steered by: the driving metric by default.
        weights: What the splits that steer beside the selection split weigh, see `weighing`; none by default.
    """

    def __init__(
        self,
        pool: Pool,
        builder: FastBuilder,
        predict: Callable[[], Predict],
        evaluators: Mapping[str, Evaluator],
        cache: OutcomeCache,
        metric: str,
        identity: Mapping[str, Any],
        recompute: Recompute | None = None,
        stopwatch: Stopwatch | None = None,
        prefix: Prefix | None = None,
        steering: int | None = None,
    ) -> None:
        self.pool = pool
        self.evaluators = dict(evaluators)
        self.metric: Metric = METRICS[metric]
        self.signal: Metric = self.metric
        self.weights: dict[str, float] = {}
        self.steering = len(self.evaluators[VALIDATION].split) if steering is None else steering
        self.identity = dict(identity)
        self.tally = Tally()
        self.stopwatch = stopwatch or Stopwatch()
        self.prefix = prefix
        self._builder = builder
        self._predict = predict
        self._cache = cache
        self._on_score: Callable[[str], None] | None = None
        self._on_batch: Callable[[int], None] | None = None
        self._recompute = recompute
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._keys = Keys(pool, builder.dtype, identity)

    def counting(
        self, on_score: Callable[[str], None] | None = None, on_batch: Callable[[int], None] | None = None
    ) -> Objective:
        """The same objective with a tally of its own, to hand to one method.

        Args:
            on_score: Told the content key of every mix scored on the selection split.
            on_batch: Told how many images each batch held.
        """
        twin = copy(self)
        twin.tally = Tally()
        twin._on_score, twin._on_batch = on_score, on_batch
        return twin

    def weighing(self, weights: Mapping[str, float]) -> Objective:
        """The same objective with a tally of its own, whose signal is a weighted mean over several splits.

        Args:
            weights: Split name to weight, together below 1; the selection split has the rest.
        """
        twin = self.counting()
        twin.weights = dict(weights)
        return twin

    def whole(self) -> Objective:
        """The same objective with all samples of the selection split in its scores: for reports, not for choices."""
        twin = self.counting()
        twin.steering = len(self.evaluators[VALIDATION].split)
        return twin

    def score(self, mix: Mix, split: str = VALIDATION) -> Score:
        """Score a mix on the steering samples of the selection split, or on a whole test split.

        Args:
            mix: Over the pool's columns.
            split: ``search`` or a test split's name; only the former is tallied.

        Raises:
            ScoreError: A loss is not finite; names the layer group held responsible.
            PoolError: The mix is not over this pool.
            RunError: The cache cannot be written.
        """
        score = self._score_mix(mix, split)
        return self._weighed(mix, score) if self.weights and split == VALIDATION else score

    def _weighed(self, mix: Mix, score: Score) -> Score:
        """A mix's score on the selection split with the other splits that steer in its signal and its cost."""
        beside = {name: self._score_mix(mix, name) for name in self.weights}
        every = [score, *beside.values()]
        signal = (1 - sum(self.weights.values())) * score.signal
        signal += sum(weight * beside[name].signal for name, weight in self.weights.items())
        images, seconds = sum(each.images for each in every), sum(each.seconds for each in every)
        self.tally.asked[self.key(mix, VALIDATION)] = (images, seconds)
        cached = all(each.cached for each in every)
        return replace(score, signal=signal, images=images, seconds=seconds, cached=cached, beside=beside)

    def race(self, mix: Mix, incumbent: Score) -> Score:
        """Score a mix on the steering samples, but give it up once it will not reach the incumbent.

        The outcomes seen are cached, and extended when the mix is scored again. What comes out does not depend on what
        was cached. The selection split alone counts, whatever weighs beside it.

        Args:
            mix: Over the pool's columns.
            incumbent: A mix's whole score on the steering samples.

        Raises:
            As `score`.
        """
        return self._score_mix(mix, VALIDATION, incumbent)

    def _score_mix(self, mix: Mix, split: str, incumbent: Score | None = None) -> Score:
        evaluator = self.evaluators[split]
        forward: Predict | Resumed | None = None

        def compute(start: int, stop: int) -> Outcomes:
            nonlocal forward
            if forward is None:
                self._fuse(mix)
                forward = self._forward(mix, evaluator)
            if self.prefix:
                self.prefix.count(stop - start)
            with self.stopwatch("forward"):
                return evaluator.run(forward, start, stop, on_batch=self._on_batch)

        beside = self._recompute.images if self._recompute is not None and self._recomputes(mix) else 0
        score = self._score(self.key(mix, split), split, compute, beside, incumbent)
        if not np.all(np.isfinite(score.outcomes.losses)):
            raise self._not_finite(mix, evaluator, score.outcomes)
        return score

    def score_ensemble(self, members: Sequence[Mix], split: str = VALIDATION) -> Score:
        """Score the mean of several models' unnormalised logits; as many forward passes as there are members.

        The logits of the last two ensembles are kept, so that one more member costs one more forward pass.

        Args:
            members: Mixes over the pool's columns.
            split: ``search`` or a test split's name; only the former is tallied.

        Raises:
            MixoptError: No members.
            ScoreError: A loss is not finite.
        """
        if not members:
            raise MixoptError("an ensemble needs at least one member")
        evaluator = self.evaluators[split]
        keys = tuple(self.key(mix, split) for mix in members)
        digest = hashlib.sha256(b"ensemble" + "".join(sorted(keys)).encode()).hexdigest()

        def compute(start: int, stop: int) -> Outcomes:
            return evaluator.outcomes_of(self._logit_sum(members, keys, evaluator, stop) / len(members)).rest(start)

        # Every model's logits are needed once, however many ensembles it is in.
        fresh = {key: mix for key, mix in zip(keys, members, strict=True) if key not in self.tally.members}
        images = sum(self._images(mix, split) for mix in fresh.values())
        if split == VALIDATION:
            self.tally.members |= set(fresh)
        score = self._score(digest, split, compute, images - self._count(split))
        if not np.all(np.isfinite(score.outcomes.losses)):
            raise ScoreError(f"an ensemble of {len(members)} has losses on {split} that are not finite. {_ADVICE}")
        return score

    def gradient(self, mix: Mix, samples: NDArray[np.int64], scale: float = 1.0) -> Gradient:
        """The mean cross-entropy on some samples of the selection split, and how it changes with the coefficients.

        BatchNorm statistics are the averaged ones here, and count as constants. Cached like scores.

        Args:
            mix: Over the pool's columns.
            samples: ``[b]``, numbers in the split's fixed order.
            scale: A factor on the logits.

        Raises:
            DataError: The split has no samples of some of the model's classes.
            ScoreError: The loss is not finite.
        """
        evaluator = self.evaluators[VALIDATION]
        key = self._keys.of_gradient(mix, evaluator.split.fingerprint, samples, scale)
        stored = self._cache.get_gradient(key, mix.coefficients.shape)
        if stored is None:
            started = time.perf_counter()
            with self.stopwatch("gradient"):
                found = self._differentiate(mix, samples, scale, evaluator)
            seconds = time.perf_counter() - started
            self._cache.put_gradient(key, found, seconds)
            self.tally.computed += 1
            self.tally.spent += seconds
        else:
            found, seconds = stored
        self.tally.learned.setdefault(key, (len(samples), seconds, len(samples) / self.steering))
        if not (math.isfinite(found.loss) and np.all(np.isfinite(found.coefficients))):
            raise ScoreError(f"the loss or its gradient is not finite for a mix of {names(mix.support())}. {_ADVICE}")
        return found

    def statistics(self, mix: Mix) -> dict[str, Tensor]:
        """The BatchNorm statistics that a mix is scored with, where they are recomputed; empty where they are not.

        Returns:
            Tensor name to CPU tensor, in the dtype it is saved in.
        """
        if self._recompute is None or not self._recomputes(mix):
            return {}
        self._fuse(mix)
        return self._recompute.statistics()

    @property
    def reused(self) -> float:
        """The share of the forward passes, in stages times images, that earlier ones spared."""
        return round(self.prefix.skipped / self.prefix.total, 4) if self.prefix and self.prefix.total else 0.0

    @property
    def samples(self) -> int:
        """The number of samples that steer."""
        return sum(self._count(split) for split in (VALIDATION, *self.weights))

    @property
    def images(self) -> int:
        """Images that scoring a mix of several checkpoints runs through a model, to all samples that steer."""
        beside = 0 if self._recompute is None else self._recompute.images * (1 + len(self.weights))
        return self.samples + beside

    def recall(self, mix: Mix, images: int, seconds: float) -> None:
        """Tally a mix that was scored on the selection split before, without scoring it."""
        self.tally.asked.setdefault(self.key(mix, VALIDATION), (images, seconds))

    def key(self, mix: Mix, split: str) -> str:
        """What the outcomes of a mix on a split depend on, see `mixopt.scoring.keys`; the metric is not among it."""
        statistics = self._recompute.key.encode() if self._recompute is not None and self._recomputes(mix) else b""
        return self._keys.of_mix(mix, self.evaluators[split].split.fingerprint, statistics)

    def _score(
        self,
        key: str,
        split: str,
        compute: Callable[[int, int], Outcomes],
        beside: int,
        incumbent: Score | None = None,
    ) -> Score:
        """A score by key, its outcomes from the cache or computed and put there; tallied where the split selects.

        Args:
            key: What the outcomes depend on.
            split: Whose.
            compute: Gives the outcomes of the samples from one number to another.
            beside: Images that computing runs through a model beside those of the split.
            incumbent: Give up where this will not be reached.
        """
        evaluator, count = self.evaluators[split], self._count(split)
        labels = evaluator.split.labels
        gains: NDArray[np.float64] = np.zeros(0)

        def enough(seen: Outcomes) -> bool:
            nonlocal gains
            if incumbent is None:
                return False
            gains = self.signal.gains(labels[: len(seen)], seen, incumbent.outcomes.first(len(seen)))
            return hopeless(gains, count)

        stops = [count] if incumbent is None else looks(count, evaluator.batch_size)
        found, seconds, computed = self._look(key, evaluator, compute, stops, enough)
        images = len(found) + beside
        if split == VALIDATION:
            before = self.tally.asked.get(key, (0, 0.0))
            self.tally.asked[key] = max(before, (images, seconds))
            self.tally.computed += computed
            if self._on_score:
                self._on_score(key)
        metrics = measure(evaluator, found)
        value, signal = metrics[self.metric.name], self.signal.of(labels[: len(found)], found)
        estimated = incumbent is not None and len(found) < count
        if incumbent is not None and estimated:
            of_metric = self.metric.gains(labels[: len(found)], found, incumbent.outcomes.first(len(found)))
            value = incumbent.value + self.metric.sign * float(of_metric.mean())
            signal = incumbent.signal + self.signal.sign * float(gains.mean())
        return Score(value, metrics, found, seconds, not computed, images, signal, estimated)

    def _look(
        self,
        key: str,
        evaluator: Evaluator,
        compute: Callable[[int, int], Outcomes],
        stops: Sequence[int],
        enough: Callable[[Outcomes], bool],
    ) -> tuple[Outcomes, float, bool]:
        """Outcomes of the first samples, up to the first stop that is enough, or the last.

        Returns:
            The outcomes, the seconds that they took now or before, and whether any were computed now.
        """
        with self.stopwatch("cache"):
            stored = self._cache.get(key, len(evaluator.split))
        known, seconds = stored or (NO_OUTCOMES, 0.0)
        cached = len(known)
        for stop in stops:
            if len(known) < stop:
                started = time.perf_counter()
                known = known.then(compute(len(known), stop))
                took = time.perf_counter() - started
                seconds += took
                self.tally.spent += took
            if stop < stops[-1] and enough(known.first(stop)):
                break
        if len(known) > cached:
            with self.stopwatch("cache"):
                self._cache.put(key, known, seconds)
        found = known.first(stop)
        return found, seconds * len(found) / len(known), len(known) > cached

    def _count(self, split: str) -> int:
        """Samples that a score is of; the shifted images confirm where those that they were made from do."""
        found = self.evaluators[split].split
        held_back = split == VALIDATION or (split == SYNTHETIC and found.steers)
        return self.steering if held_back else len(found)

    def _images(self, mix: Mix, split: str) -> int:
        """Images that scoring a mix runs through the model."""
        extra = self._recompute.images if self._recompute is not None and self._recomputes(mix) else 0
        return self._count(split) + extra

    def _fuse(self, mix: Mix) -> None:
        with self.stopwatch("fuse"):
            self._builder.apply(mix)
        if self._recompute is not None and self._recomputes(mix):
            with self.stopwatch("batchnorm"):
                self._recompute(self._predict())

    def _recomputes(self, mix: Mix) -> bool:
        """Whether this mix's BatchNorm statistics are set anew; a checkpoint alone keeps its own."""
        return self._recompute is not None and len(mix.support()) > 1

    def _forward(self, mix: Mix, evaluator: Evaluator) -> Predict | Resumed:
        """The forward pass of the mix that is fused now."""
        plan = self.prefix.plan(mix, evaluator.split) if self.prefix else None
        return plan or self._predict()

    def _logit_sum(self, members: Sequence[Mix], keys: tuple[str, ...], evaluator: Evaluator, stop: int) -> Tensor:
        """The sum of the members' logits, from the longest kept sum of the first of them."""
        known = max((size for size in range(len(keys) + 1) if keys[:size] in self._sums), default=0)
        total = self._sums.pop(keys[:known]) if known else None
        if total is not None:
            self._sums[keys[:known]] = total  # the latest used stands last
        if total is not None and len(total) < stop:
            known, total = 0, None  # of fewer samples than are wanted now
        for size, mix in enumerate(members[known:], start=known + 1):
            self._fuse(mix)
            if self.prefix:
                self.prefix.count(stop)
            with self.stopwatch("forward"):
                logits = evaluator.logits(self._forward(mix, evaluator), stop, on_batch=self._on_batch)
            total = logits if total is None else total + logits
            self._sums[keys[:size]] = total
            for old in list(self._sums)[:-2]:
                del self._sums[old]
        return torch.as_tensor(total)[:stop]

    def _differentiate(self, mix: Mix, samples: NDArray[np.int64], scale: float, evaluator: Evaluator) -> Gradient:
        self._builder.apply(mix)
        images, labels = evaluator.take(samples)
        factor = torch.tensor(scale, dtype=torch.float32, device=evaluator.device, requires_grad=True)

        def loss() -> Tensor:
            logits = self._predict()(images).float()
            if logits.is_inference() or not logits.requires_grad:
                raise PoolError(
                    "the family's predict gives logits without gradients (does it run under no_grad or "
                    "inference_mode?); methods that learn coefficients need them"
                )
            evaluator.check_classes(logits)
            self._check_all_classes(logits.shape[1])
            return F.cross_entropy(factor * logits, labels)

        value, per_tensor, (scale_slope,) = self._builder.gradient(loss, factor)
        if self._on_batch:
            self._on_batch(len(samples))
        rows = np.zeros_like(mix.coefficients)
        group_of = mix.groups.index()
        np.add.at(rows, [group_of[place.name] for place in self.pool.mixed], per_tensor)
        return Gradient(value, rows, scale_slope)

    def _check_all_classes(self, classes: int) -> None:
        split = self.evaluators[VALIDATION].split
        absent = sorted(set(range(classes)) - set(split.labels[: self.steering].tolist()))
        if absent:
            told = names([split.classes[label] if split.classes else str(label) for label in absent])
            raise DataError(
                f"{split.source}: has no samples of {len(absent)} of the model's {classes} classes ({told}); learning "
                "from its loss would push the mix away from them: add samples of every class, or use another method"
            )

    def _not_finite(self, mix: Mix, evaluator: Evaluator, outcomes: Outcomes) -> ScoreError:
        self._builder.apply(mix)
        tensor, why = self._builder.nonfinite_tensor(), "overflows when fused"
        if tensor is None and not self._recomputes(mix):
            tensor, why = negative_variance(self.pool, self._builder.module), "is negative when fused"
        bad = int(np.sum(~np.isfinite(outcomes.losses)))
        found = f"{bad} of {len(outcomes)} losses on {evaluator.split.name} are not finite"
        used = f"mix of {names(mix.support())}"
        if tensor is None and evaluator.precision == "fp16":
            return ScoreError(f"{used}: {found}; the forward pass overflows in fp16; use --precision fp32 or bf16")
        if tensor is None:
            return ScoreError(f"{used}: {found}; the fused weights are finite, the forward pass overflows. {_ADVICE}")
        group = mix.groups.names[mix.groups.index()[tensor]]
        return ScoreError(f"{used}: {found}; tensor {tensor} of layer group {group} {why}. {_ADVICE}", group)


def measure(evaluator: Evaluator, outcomes: Outcomes) -> dict[str, float]:
    """Every metric by name, on the first samples, of which these are the outcomes."""
    labels = evaluator.split.labels[: len(outcomes)]
    return {name: metric.of(labels, outcomes) for name, metric in METRICS.items()}
