"""Evaluator: a resident split to per-sample outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from traceback import extract_tb
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixopt.errors import DataError, MixoptError, unknown
from mixopt.listener import Listener
from mixopt.memory import is_out_of_memory
from mixopt.scoring.activation_reuse import Resumed
from mixopt.scoring.batches import Numbers, Pass, batches_of, plain_batches
from mixopt.scoring.compiled import compiled_pass, filled
from mixopt.scoring.feed import Feed
from mixopt.scoring.logits import logits_of, outcomes_of, restricted, told
from mixopt.scoring.outcomes import Outcomes
from mixopt.untrusted import reason_of
from mixopt.values.metrics import Metric, measured
from mixopt.values.samples import Encoding, Samples

# From what an encoding collates to logits [b, n_classes], or what holds them, see `mixopt.scoring.logits`.
Predict = Callable[[Any], Any]

EVALUATION_VERSION = 3  # raise it whenever the same weights and samples could give other outcomes than before

# Measured for small and base-size vision transformers; on a CPU, larger batches fall out of its caches.
BATCH_SIZES = {"cpu": 100, "cuda": 500}

FP32 = "fp32"
# What matrix products and convolutions are computed in; everything else stays float32.
PRECISIONS = {FP32: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Evaluator:
    """Runs a split through a model, in batches, and gives what comes out in the split's fixed order.

    Where samples are padded, batches hold those of like lengths, see `mixopt.scoring.batches`; else they are in order.

    Samples stay as they were encoded and are collated batch by batch on the device, see `Feed` for where they lie.

    Args:
        split: The samples.
        encoding: Collates them.
        device: Where the model runs.
        batch_size: Samples per forward pass; by default what suits the device. Where so many do not fit in memory, it
            is halved until they do.
        precision: Of the forward passes, a name of `PRECISIONS`; below fp32 they run under ``torch.autocast``.
        cut: No batch spans this sample and the one before, so that a pass up to here and one from here on give the same
            bits as a pass over both; none by default.
        listener: Told when the batch size is halved, and once where logits are found in what is no tensor.

    Attributes:
        batch_size: Samples per forward pass as asked for; fewer are used where they do not fit.
        feed: Brings the samples.
        cut: As given.
        batching: Which samples are run together.

    Raises:
        MixoptError: An unknown precision.
    """

    def __init__(
        self,
        split: Samples,
        encoding: Encoding,
        device: torch.device,
        batch_size: int | None = None,
        *,
        precision: str = FP32,
        cut: int | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.split = split
        self.device = device
        self.batch_size = batch_size or BATCH_SIZES.get(device.type, BATCH_SIZES["cuda"])
        self.precision = _known(precision)
        self._compiled: Callable[[Predict, Any], Any] | None = None
        self._listener = (listener or Listener()).once()
        # One cell for this evaluator and its twins.
        self._fitting = [self.batch_size]
        self._collate = encoding.collate
        self._labels = torch.from_numpy(split.labels).to(device)
        self._highest = max(int(split.labels.max(initial=0)), *(split.among or (0,)))
        self.feed = Feed(split.arrays, device)
        self.cut = cut
        self.batching = self._by_length = batches_of(split.arrays, len(split), cut, self.batch_size)

    def at(self, precision: str, compiled: bool = False) -> Evaluator:
        """The same evaluator, its resident samples included, with forward passes in another precision, or compiled.

        Raises:
            MixoptError: An unknown precision.
        """
        twin = copy(self)
        twin.precision = _known(precision)
        twin._compiled = compiled_pass(self.device) if compiled else None
        # What is compiled has batches of one shape, whoever is in them: full ones are the fewest.
        end = len(self.split) if self.cut is None else self.cut
        twin.batching = plain_batches(len(self.split), end) if compiled else self._by_length
        return twin

    def on(self, module: nn.Module) -> Evaluator:
        """The same: `run` is given what runs the module."""
        return self

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Any, Tensor]]:
        """What the model takes and labels ``[b]``, in order."""
        end = len(self.split) if stop is None else stop
        for first in range(start, end, self.batch_size):
            yield self.take(slice(first, min(first + self.batch_size, end)))

    def take(self, samples: slice | NDArray[np.int64]) -> tuple[Any, Tensor]:
        """What the model takes, for images ``[b, 3, h, w]`` float32, and labels ``[b]`` of some samples."""
        return self._collate(self.feed.take(samples)), self._labels[samples]

    def run(
        self,
        predict: Predict | Resumed,
        start: int = 0,
        stop: int | None = None,
        *,
        on_batch: Callable[[int], None] | None = None,
    ) -> Outcomes:
        """Score samples ``start`` to ``stop`` of the fixed order.

        Args:
            predict: What is collated to logits ``[b, n_classes]``, or a pass that starts from what is kept.
            start: First sample.
            stop: One past the last; the end of the split by default.
            on_batch: Told how many samples each batch held.

        Raises:
            DataError: A label lies beyond the model's classes.
            MixoptError: Not even one sample fits in memory.
        """
        through = self.batching.between(start, len(self.split) if stop is None else stop)
        found, places = self.run_pass(predict, through, on_batch), through.in_order()
        return found if places is None else found.at(places)

    def run_pass(
        self, predict: Predict | Resumed, through: Pass, on_batch: Callable[[int], None] | None = None
    ) -> Outcomes:
        """As `run`, over a pass or a part of one, in its order."""
        with torch.inference_mode():
            return outcomes_of([told(*batch) for batch in self._forward(predict, through, on_batch)])

    def logits(
        self, predict: Predict | Resumed, stop: int | None = None, *, on_batch: Callable[[int], None] | None = None
    ) -> Tensor:
        """The logits of the samples of the fixed order up to ``stop``, ``[n, n_classes]`` float32 on the CPU.

        Raises:
            MixoptError: As for `run`.
        """
        through = self.batching.between(0, len(self.split) if stop is None else stop)
        found, places = self.logits_pass(predict, through, on_batch), through.in_order()
        return found if places is None else found[torch.from_numpy(places)]

    def logits_pass(
        self, predict: Predict | Resumed, through: Pass, on_batch: Callable[[int], None] | None = None
    ) -> Tensor:
        """As `logits`, over a pass or a part of one, in its order."""
        with torch.inference_mode():
            return torch.cat([logits.cpu() for logits, _ in self._forward(predict, through, on_batch)])

    def outcomes_of(self, logits: Tensor) -> Outcomes:
        """What logits ``[n, n_classes]`` predict and lose on the first samples."""
        return outcomes_of([told(logits, torch.from_numpy(self.split.labels[: len(logits)]))])

    def measure(self, outcomes: Outcomes, driving: Metric | None = None) -> dict[str, float]:
        """Every metric that there is for the split, the driving one too, of the outcomes of the first samples."""
        return measured(self.split.labels[: len(outcomes)], outcomes, self.split.class_count, driving)

    def _forward(
        self, predict: Predict | Resumed, through: Pass, on_batch: Callable[[int], None] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits ``[b, n_classes]`` float32 and labels ``[b]``, batch by batch."""
        place = 0
        while place < len(through):
            logits, labels = self._fit(predict, through, place)
            yield logits, labels
            place += len(labels)
            if on_batch:
                on_batch(len(labels))

    def _fit(self, predict: Predict | Resumed, through: Pass, place: int) -> tuple[Tensor, Tensor]:
        """Logits and labels of the next batch, as many samples as fit in memory at a time.

        Raises:
            MixoptError: Not even one image does.
        """
        size, error = self._fitting[0], None
        while size:
            count = through.size(place, size)
            try:
                batch = self._pass(predict, through.batch(place, size), size)
                if place + count < len(through):  # on a GPU, beside the pass that is under way
                    self.feed.ahead(through.batch(place + count, size))
            except (RuntimeError, MemoryError) as raised:
                if not is_out_of_memory(raised):
                    raise _failing(self.split, raised) from raised
                error = str(raised)  # the error itself would keep alive what did not fit
            else:
                self._go_on_with(size)
                return batch
            # Before anything else, what is kept from earlier passes makes room.
            if not (isinstance(predict, Resumed) and predict.drop()):
                size = count // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        raise MixoptError(
            f"{self.split.source}: out of memory on {self.device} with one {self.split.unit} at a time ({error}); free "
            "memory, or use another --device"
        )

    def _pass(self, predict: Predict | Resumed, samples: slice | Numbers, size: int) -> tuple[Tensor, Tensor]:
        """Logits and labels of some samples, in a batch of their own or, where it is compiled, of the full size."""
        labels = self._labels[samples]

        def inputs() -> Any:
            return self.take(samples)[0]

        with self._autocast():
            if isinstance(predict, Resumed):
                given, count = predict(samples, inputs), len(labels)
            elif self._compiled:
                # Another shape would be compiled anew: no padding is cut, and the last batch is filled.
                every = self._collate(self.feed.whole(samples))
                given, count = self._compiled(predict, filled(every, size)), size
            else:
                given, count = predict(inputs()), len(labels)
        logits = self.logits_of(given, count)[: len(labels)]
        # A CUDA graph writes its next logits where these are.
        return logits.clone() if self._compiled else logits, labels

    def logits_of(self, given: Any, count: int) -> Tensor:
        """The logits ``[count, n_classes]`` float32 in what ``predict`` gave, of the split's classes alone.

        Raises:
            SpecError: There are none in it, or their shape or dtype is another.
            DataError: A label lies beyond the model's classes.
        """
        logits, found = logits_of(given, count)
        if found:
            self._listener.info(found)
        self._check_classes(logits)
        return restricted(logits, self.split.among)

    def _go_on_with(self, size: int) -> None:
        """Go on with a batch size, and say so where it is a smaller one than before."""
        before = min(self._fitting[0], len(self.split))
        if size < before:
            self._listener.warn(
                f"{self.split.name}: {before} {self.split.unit}s at a time do not fit in memory on {self.device}; "
                f"going on with {size} at a time (--batch-size {size} starts with that)",
            )
        self._fitting[0] = size

    def _autocast(self) -> AbstractContextManager[object]:
        """What forward passes run in; nothing at all in fp32."""
        if self.precision == FP32:
            return nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[self.precision])

    def _check_classes(self, logits: Tensor) -> None:
        """Compare the labels with a model's logits ``[b, n_classes]``.

        Raises:
            DataError: A label lies beyond the model's classes.
        """
        if logits.shape[1] <= self._highest:
            raise DataError(
                f"{self.split.source}: labels go up to {self._highest}, but the model gives logits of shape "
                f"[batch, {logits.shape[1]}]; the split's classes must be the model's"
            )


def _known(precision: str) -> str:
    if precision not in PRECISIONS:
        raise MixoptError(unknown("precision", precision, PRECISIONS))
    return precision


def _failing(split: Samples, error: Exception) -> DataError:
    """What a model's own error means for whoever gave it the samples: where it failed, and on what."""
    frames = [each for each in extract_tb(error.__traceback__) if "site-packages" not in each.filename]
    place = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "the model"
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in split.arrays.items())
    return DataError(
        f"{split.source}: the model fails on these samples ({shapes}): {reason_of(error)} ({place}). "
        "Expected samples that the model of --family takes"
    )
