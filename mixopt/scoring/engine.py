"""Engine: the single path by which a mix is computed: fused into the module, and run. Nothing here is cached."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mixopt.errors import DataError, PoolError, ScoreError, names
from mixopt.scoring.activation_reuse import ActivationReuse, Resumed
from mixopt.scoring.batchnorm import Recompute, negative_variance
from mixopt.scoring.evaluator import Predict
from mixopt.scoring.outcomes import Outcomes
from mixopt.scoring.stopwatch import Stopwatch
from mixopt.scoring.work import AnyEvaluator, Compute, OnBatch, Slope, Wanted
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION
from mixopt.weights.builder import FastBuilder
from mixopt.weights.pool import Pool

ADVICE = "Leave the checkpoint that causes it out of the pool, or save in a wider --dtype"
# Samples that a gradient is taken on at a time; those of several parts are added in order, whoever computed them. Every
# part costs a pass over the stack: measured, smaller ones cost a tenth more on a CPU, and on a GPU far more.
GRADIENT_PART = {"cpu": 64, "cuda": 512}


@dataclass(frozen=True, eq=False)
class Engine:
    """Runs mixes of a pool over its splits.

    Attributes:
        pool: The checkpoints.
        builder: Fuses mixes of the pool into its module.
        predict: Called once per mix: gives the function from a batch to logits of the module as it is now.
        evaluators: Split name to evaluator; ``validation`` is the split that selects.
        recompute: Sets the BatchNorm statistics of mixes of several checkpoints; None averages them.
        reuse: Reuses what the first segments gave for an earlier mix; None runs every mix from its samples.
        stopwatch: Told where time goes.
    """

    pool: Pool
    builder: FastBuilder
    predict: Callable[[], Predict]
    evaluators: Mapping[str, AnyEvaluator]
    recompute: Recompute | None = None
    reuse: ActivationReuse | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def ahead(self) -> int:
        """See `Work`: one mix at a time."""
        return 0

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

    def forward(self, mix: Mix, split: str) -> Predict | Resumed:
        """The forward pass over a split of the mix that is fused now."""
        plan = self.reuse.plan(mix, self.evaluators[split].split) if self.reuse else None
        return plan or self.predict()

    @contextmanager
    def scoring(self, wanted: Wanted, on_batch: OnBatch | None) -> Iterator[Compute]:
        """See `Work`; the mix is fused once, when the first outcomes are asked for."""
        mix, evaluator = wanted.mix, self.evaluators[wanted.split]
        forward: Predict | Resumed | None = None

        def compute(start: int, stop: int) -> tuple[Outcomes, float]:
            nonlocal forward
            started = time.perf_counter()
            if forward is None:
                self.fuse(mix)
                forward = self.forward(mix, wanted.split)
            if self.reuse:
                self.reuse.count(stop - start)
            with self.stopwatch("forward"):
                found = evaluator.run(forward, start, stop, on_batch=on_batch)
            return found, time.perf_counter() - started

        yield compute

    def logits(self, mix: Mix, split: str, stop: int, on_batch: OnBatch | None) -> Tensor:
        """See `Work`."""
        self.fuse(mix)
        if self.reuse:
            self.reuse.count(stop)
        with self.stopwatch("forward"):
            return self.evaluators[split].logits(self.forward(mix, split), stop, on_batch=on_batch)

    def slope(self, mix: Mix, samples: NDArray[np.int64], scale: float, tuning: int, on_batch: OnBatch | None) -> Slope:
        """The mean cross-entropy on some samples of the validation split, and how it changes with the coefficients.

        BatchNorm statistics are the averaged ones here, and count as constants.

        Args:
            mix: Over the pool's columns.
            samples: ``[b]``, numbers in the split's fixed order.
            scale: A factor on the logits.
            tuning: How many samples tune; those must hold every class.
            on_batch: Told how many samples each part held.

        Raises:
            DataError: The samples that tune lack classes of the model.
        """
        with self.stopwatch("gradient"):
            self.builder.apply(mix)
            parts = []
            for part in gradient_parts(samples, self.evaluators[VALIDATION]):
                parts.append((len(part), self._slope(part, scale, tuning)))
                if on_batch:
                    on_batch(len(part))
            return added(parts)

    def expect(self, wanted: Iterable[Wanted], *, unsure: bool = False) -> None:
        """See `Work`: what is asked for is computed when it is."""

    def forget(self) -> None:
        """See `Work`."""

    def beside(self, name: str, evaluator: AnyEvaluator) -> Engine:
        """See `Work`."""
        return replace(self, evaluators={**self.evaluators, name: evaluator})

    def why_not_finite(self, mix: Mix, split: str, outcomes: Outcomes) -> ScoreError:
        """The error for outcomes that are no numbers; names the layer group held responsible."""
        evaluator = self.evaluators[split]
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
                f"gives logits that are no numbers (expected finite ones, [batch, classes]). {ADVICE}"
            )
        group = mix.groups.names[mix.groups.index()[tensor]]
        return ScoreError(f"{used}: {found}; tensor {tensor} of layer group {group} {why}. {ADVICE}", group)

    def _slope(self, samples: NDArray[np.int64], scale: float, tuning: int) -> Slope:
        """As `slope`, of the mix that is fused now, on all samples at once."""
        started = time.perf_counter()
        evaluator = self.evaluators[VALIDATION]
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
        return Slope(value, per_tensor, scale_slope, time.perf_counter() - started)

    def _check_all_classes(self, classes: int, tuning: int) -> None:
        split = self.evaluators[VALIDATION].split
        absent = sorted(set(range(classes)) - set(split.labels[:tuning].tolist()))
        if absent:
            shown = names([split.classes[label] if split.classes else str(label) for label in absent])
            raise DataError(
                f"{split.source}: has no samples of {len(absent)} of the model's {classes} classes ({shown}); learning "
                "from its loss would push the mix away from them: add samples of every class, or use another method"
            )


def gradient_parts(samples: NDArray[np.int64], evaluator: AnyEvaluator) -> list[NDArray[np.int64]]:
    """The parts of samples that a gradient is taken on one by one: the same ones, however many workers there are."""
    size = GRADIENT_PART.get(evaluator.device.type, GRADIENT_PART["cuda"])
    return [samples[first : first + size] for first in range(0, len(samples), size)]


def added(parts: list[tuple[int, Slope]]) -> Slope:
    """The mean over several parts of samples, each with how many it was of, added in order."""
    if len(parts) == 1:
        return parts[0][1]
    total = sum(count for count, _ in parts)
    loss = sum(slope.loss * (count / total) for count, slope in parts)
    tensors = sum(slope.tensors * (count / total) for count, slope in parts)
    scale = sum(slope.scale * (count / total) for count, slope in parts)
    return Slope(loss, np.asarray(tensors), scale, sum(slope.seconds for _, slope in parts))
