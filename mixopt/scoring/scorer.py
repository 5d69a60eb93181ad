"""Scorer: the single path by which a mix is scored: fused, run, cached. What varies is in the `Objective` that asks."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mixopt.errors import DataError, PoolError, ScoreError, names
from mixopt.scoring.activation_reuse import ActivationReuse, Resumed
from mixopt.scoring.batchnorm import Recompute, negative_variance
from mixopt.scoring.cache import Gradient, OutcomeCache
from mixopt.scoring.evaluator import Evaluator, Predict
from mixopt.scoring.keys import Keys
from mixopt.scoring.ledger import Ledger
from mixopt.scoring.looks import Looks, Seen
from mixopt.scoring.outcomes import NO_OUTCOMES, Outcomes
from mixopt.scoring.own_objective import OwnEvaluator
from mixopt.scoring.stopwatch import Stopwatch
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION
from mixopt.weights.builder import FastBuilder
from mixopt.weights.pool import Pool

_ADVICE = "Leave the checkpoint that causes it out of the pool, or save in a wider --dtype"
# Ensembles whose logits are kept: the one that is grown, and the one before.
_KEPT_SUMS = 2

OnBatch = Callable[[int], None]
AnyEvaluator = Evaluator | OwnEvaluator


@dataclass(frozen=True, eq=False)
class Scorer:
    """Runs mixes of a pool over its splits, cached by content.

    Attributes:
        pool: The checkpoints.
        builder: Fuses mixes of the pool into its module.
        predict: Called once per mix: gives the function from a batch to logits of the module as it is now.
        evaluators: Split name to evaluator; ``validation`` is the split that selects.
        cache: Where outcomes are kept.
        keys: What outcomes depend on.
        recompute: Sets the BatchNorm statistics of mixes of several checkpoints; None averages them.
        reuse: Reuses what the first segments gave for an earlier mix; None runs every mix from its samples.
        stopwatch: Told where time goes.
        ran: Content keys of what was computed rather than found in the cache; grows.
        ledger: Told which mixes are scored; None keeps no record of them.
    """

    pool: Pool
    builder: FastBuilder
    predict: Callable[[], Predict]
    evaluators: Mapping[str, AnyEvaluator]
    cache: OutcomeCache
    keys: Keys
    recompute: Recompute | None = None
    reuse: ActivationReuse | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    ran: set[str] = field(default_factory=set)
    ledger: Ledger | None = None
    _sums: dict[tuple[str, ...], Tensor] = field(default_factory=dict, repr=False)

    def key(self, mix: Mix, split: str) -> str:
        """What the outcomes of a mix on a split depend on, see `mixopt.scoring.keys`; the metric is not among it."""
        return self.keys.of_mix(mix, *self._condition(split, self.recomputes(mix)))

    def known_mixes(self, split: str) -> list[Mix]:
        """The mixes of these checkpoints whose outcomes on a split the cache holds, of all of its samples or the first.

        They were scored by this run or another one under the same conditions; what those are is in
        `mixopt.scoring.ledger`. In the order in which they were first scored, those of one checkpoint before the others
        where BatchNorm statistics are recomputed.
        """
        if self.ledger is None:
            return []
        known: dict[str, Mix] = {}
        for recomputed in (False, True) if self.recompute is not None else (False,):
            for key, mix in self.ledger.read(*self._condition(split, recomputed)):
                if self.recomputes(mix) == recomputed and self.cache.holds(key):
                    known[key] = mix
        return list(known.values())

    def stored(self, mix: Mix, split: str, needs: Sequence[str] = ()) -> Outcomes | None:
        """What the cache holds of a mix's outcomes on a split, of all samples or the first; nothing is computed."""
        found = self.cache.get(self.key(mix, split), len(self.evaluators[split].split), needs)
        return None if found is None else found[0]

    def recomputes(self, mix: Mix) -> bool:
        """Whether this mix's BatchNorm statistics are set anew; a checkpoint alone keeps its own."""
        return self.recompute is not None and len(mix.support()) > 1

    def statistics_images(self, mix: Mix) -> int:
        """Samples that scoring a mix runs through the model beside those of the split."""
        return self.recompute.images if self.recompute is not None and self.recomputes(mix) else 0

    def statistics(self, mix: Mix) -> dict[str, Tensor]:
        """The BatchNorm statistics that a mix is scored with, where they are recomputed; empty where they are not.

        Returns:
            Tensor name to CPU tensor, in the dtype it is saved in.
        """
        if self.recompute is None or not self.recomputes(mix):
            return {}
        self.fuse(mix)
        return self.recompute.statistics()

    def fuse(self, mix: Mix) -> None:
        """Write a mix into the module."""
        with self.stopwatch("fuse"):
            self.builder.apply(mix)
        if self.recompute is not None and self.recomputes(mix):
            with self.stopwatch("batchnorm"):
                self.recompute(self.predict())

    def see(self, mix: Mix, split: str, looks: Looks, on_batch: OnBatch | None) -> Seen:
        """A mix's outcomes on the first samples of a split.

        Raises:
            ScoreError: A loss is not finite; names the layer group held responsible.
        """
        evaluator, key = self.evaluators[split], self.key(mix, split)
        forward: Predict | Resumed | None = None

        def compute(start: int, stop: int) -> Outcomes:
            nonlocal forward
            if forward is None:
                if self.ledger is not None:
                    with self.stopwatch("cache"):
                        self.ledger.enter(key, mix, *self._condition(split, self.recomputes(mix)))
                self.fuse(mix)
                forward = self._forward(mix, evaluator)
            if self.reuse:
                self.reuse.count(stop - start)
            with self.stopwatch("forward"):
                return evaluator.run(forward, start, stop, on_batch=on_batch)

        seen = self._look(key, evaluator, compute, looks, self.statistics_images(mix))
        if not seen.outcomes.is_finite:
            raise self._not_finite(mix, evaluator, seen.outcomes)
        return seen

    def see_ensemble(self, members: Sequence[Mix], split: str, count: int, on_batch: OnBatch | None) -> Seen:
        """The outcomes of the mean of several models' unnormalised logits.

        The logits of the last two ensembles are kept, so that one more member costs one more forward pass.

        Raises:
            ScoreError: A loss is not finite.
        """
        evaluator = self.evaluators[split]
        keys = tuple(self.key(mix, split) for mix in members)
        digest = hashlib.sha256(b"ensemble" + "".join(sorted(keys)).encode()).hexdigest()

        def compute(start: int, stop: int) -> Outcomes:
            total = self._logit_sum(members, keys, evaluator, stop, on_batch)
            return evaluator.outcomes_of(total / len(members)).rest(start)

        seen = self._look(digest, evaluator, compute, Looks([count]), 0)
        if not seen.outcomes.is_finite:
            raise ScoreError(f"an ensemble of {len(members)} has losses on {split} that are not finite. {_ADVICE}")
        return seen

    def gradient(
        self, mix: Mix, samples: NDArray[np.int64], scale: float, tuning: int, on_batch: OnBatch | None
    ) -> tuple[Gradient, Seen]:
        """The mean cross-entropy on some samples of the validation split, and its gradient; see `Objective.gradient`.

        Args:
            mix: Over the pool's columns.
            samples: ``[b]``, numbers in the split's fixed order.
            scale: A factor on the logits.
            tuning: How many samples tune; those must hold every class.
            on_batch: Told how many samples the batch held.

        Returns:
            The gradient, and what it took.
        """
        evaluator = self.evaluators[VALIDATION]
        key = self.keys.of_gradient(mix, evaluator.split.fingerprint, samples, scale)
        stored = self.cache.get_gradient(key, mix.coefficients.shape)
        runs: dict[int, float] = {}
        if stored is None:
            started = time.perf_counter()
            with self.stopwatch("gradient"):
                found = self._differentiate(mix, samples, scale, tuning)
            if on_batch:
                on_batch(len(samples))
            seconds = runs[0] = time.perf_counter() - started
            self.ran.add(key)
            self.cache.put_gradient(key, found, seconds)
        else:
            found, seconds = stored
        return found, Seen(key, NO_OUTCOMES, seconds, len(samples), runs)

    def check_gradient(self, mix: Mix, found: Gradient) -> None:
        """Refuse a gradient that is no number.

        Raises:
            ScoreError: The loss or its gradient is not finite.
        """
        if not (math.isfinite(found.loss) and np.all(np.isfinite(found.coefficients))):
            raise ScoreError(f"the loss or its gradient is not finite for a mix of {names(mix.support())}. {_ADVICE}")

    def _look(
        self, key: str, evaluator: AnyEvaluator, compute: Callable[[int, int], Outcomes], looks: Looks, extra: int
    ) -> Seen:
        """Outcomes by key, up to the first stop that is enough, or the last; from the cache, or computed and put there.

        Args:
            key: What they depend on.
            evaluator: Of the split.
            compute: Gives the outcomes of the samples from one number to another, or more.
            looks: How far to look.
            extra: Samples that computing runs through a model beside those of the split.
        """
        with self.stopwatch("cache"):
            stored = self.cache.get(key, len(evaluator.split), looks.needs)
        known, seconds = stored or (NO_OUTCOMES, 0.0)
        runs: dict[int, float] = {}
        for stop in looks.stops:
            if (seen := len(known)) < stop:
                started = time.perf_counter()
                known = known.then(compute(seen, stop))
                runs[seen] = time.perf_counter() - started
                seconds += runs[seen]
            if stop < looks.stops[-1] and looks.enough(known.first(stop)):
                break
        if runs:
            self.ran.add(key)
            with self.stopwatch("cache"):
                self.cache.put(key, known, seconds)
        found = known.first(stop)
        return Seen(key, found, seconds * len(found) / len(known), len(found) + extra, runs)

    def _condition(self, split: str, recomputed: bool) -> tuple[str, bytes]:
        """What the outcomes of every mix depend on, as `Keys.of_mix` takes it: the split, and what is done to it."""
        evaluator = self.evaluators[split]
        statistics = self.recompute.key.encode() if self.recompute is not None and recomputed else b""
        return evaluator.split.fingerprint, statistics + evaluator.batching.key.encode()

    def _forward(self, mix: Mix, evaluator: AnyEvaluator) -> Predict | Resumed:
        """The forward pass of the mix that is fused now."""
        plan = self.reuse.plan(mix, evaluator.split) if self.reuse else None
        return plan or self.predict()

    def _logit_sum(
        self,
        members: Sequence[Mix],
        keys: tuple[str, ...],
        evaluator: AnyEvaluator,
        stop: int,
        on_batch: OnBatch | None,
    ) -> Tensor:
        """The sum of the members' logits, from the longest kept sum of the first of them."""
        known = max((size for size in range(len(keys) + 1) if keys[:size] in self._sums), default=0)
        total = self._sums.pop(keys[:known]) if known else None
        if total is not None:
            self._sums[keys[:known]] = total  # the latest used stands last
        if total is not None and len(total) < stop:
            known, total = 0, None  # of fewer samples than are wanted now
        for size, mix in enumerate(members[known:], start=known + 1):
            self.fuse(mix)
            if self.reuse:
                self.reuse.count(stop)
            with self.stopwatch("forward"):
                logits = evaluator.logits(self._forward(mix, evaluator), stop, on_batch=on_batch)
            total = logits if total is None else total + logits
            self._sums[keys[:size]] = total
            for old in list(self._sums)[:-_KEPT_SUMS]:
                del self._sums[old]
        return torch.as_tensor(total)[:stop]

    def _differentiate(self, mix: Mix, samples: NDArray[np.int64], scale: float, tuning: int) -> Gradient:
        evaluator = self.evaluators[VALIDATION]
        self.builder.apply(mix)
        inputs, labels = evaluator.take(samples)
        factor = torch.tensor(scale, dtype=torch.float32, device=evaluator.device, requires_grad=True)

        def loss() -> Tensor:
            logits = evaluator.logits_of(self.predict()(inputs), len(samples))
            if logits.is_inference() or not logits.requires_grad:
                raise PoolError(
                    "the family's predict gives logits without gradients (does it run under no_grad or "
                    "inference_mode?); methods that learn coefficients need them"
                )
            self._check_all_classes(logits.shape[1], tuning)
            return F.cross_entropy(factor * logits, labels)

        value, per_tensor, (scale_slope,) = self.builder.gradient(loss, factor)
        rows = np.zeros_like(mix.coefficients)
        group_of = mix.groups.index()
        np.add.at(rows, [group_of[place.name] for place in self.pool.mixed], per_tensor)
        return Gradient(value, rows, scale_slope)

    def _check_all_classes(self, classes: int, tuning: int) -> None:
        split = self.evaluators[VALIDATION].split
        absent = sorted(set(range(classes)) - set(split.labels[:tuning].tolist()))
        if absent:
            shown = names([split.classes[label] if split.classes else str(label) for label in absent])
            raise DataError(
                f"{split.source}: has no samples of {len(absent)} of the model's {classes} classes ({shown}); learning "
                "from its loss would push the mix away from them: add samples of every class, or use another method"
            )

    def _not_finite(self, mix: Mix, evaluator: AnyEvaluator, outcomes: Outcomes) -> ScoreError:
        self.builder.apply(mix)
        tensor, why = self.builder.nonfinite_tensor(), "overflows when fused"
        if tensor is None and not self.recomputes(mix):
            tensor, why = negative_variance(self.pool, self.builder.module), "is negative when fused"
        bad = int(np.sum(~np.isfinite(outcomes.losses)))
        found = f"{bad} of {len(outcomes)} losses on {evaluator.split.name} are not finite"
        used = f"mix of {names(mix.support())}"
        if tensor is None and evaluator.precision == "fp16":
            return ScoreError(f"{used}: {found}; the forward pass overflows in fp16; use --precision fp32 or bf16")
        if tensor is None:
            return ScoreError(
                f"{used}: {found}; the fused weights are finite: the forward pass overflows, or predict of --family "
                f"gives logits that are no numbers (expected finite ones, [batch, classes]). {_ADVICE}"
            )
        group = mix.groups.names[mix.groups.index()[tensor]]
        return ScoreError(f"{used}: {found}; tensor {tensor} of layer group {group} {why}. {_ADVICE}", group)
