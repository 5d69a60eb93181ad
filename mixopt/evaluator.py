"""Evaluator: a resident split to per-sample outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mixopt.errors import DataError
from mixopt.split import Preprocess, Split

Predict = Callable[[Tensor], Tensor]

# Raise it whenever the same weights and images could give other outcomes than before.
EVALUATION_VERSION = 2

# Measured for small and base-size vision transformers; on a CPU, larger batches fall out of its caches.
BATCH_SIZES = {"cpu": 100, "cuda": 500}


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What one model did on the first samples of a split's fixed order.

    Attributes:
        predicted: ``[n]`` int64, the class with the largest logit.
        losses: ``[n]`` float64, cross-entropy in nats.
    """

    predicted: NDArray[np.int64]
    losses: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.predicted)


class Evaluator:
    """Runs a split through a model, in batches, in the split's fixed order.

    Images stay uint8 (on the device, where that is not the CPU) and are normalised batch by batch; nothing is read
    from disk per trial beyond the memory-mapped decoded copy.

    Args:
        split: The samples.
        preprocess: Mean and standard deviation per channel.
        device: Where the model runs.
        batch_size: Images per forward pass; by default what suits the device.
    """

    def __init__(
        self, split: Split, preprocess: Preprocess, device: torch.device, batch_size: int | None = None
    ) -> None:
        self.split = split
        self.device = device
        self.batch_size = batch_size or BATCH_SIZES.get(device.type, BATCH_SIZES["cuda"])
        self._mean = torch.tensor(preprocess.mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        self._std = torch.tensor(preprocess.std, dtype=torch.float32, device=device).view(-1, 1, 1)
        self._labels = torch.from_numpy(split.labels).to(device)
        self._resident = None if device.type == "cpu" else torch.from_numpy(np.array(split.images)).to(device)

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Model-ready images ``[b, 3, h, w]`` float32 and labels ``[b]``, in order."""
        end = len(self.split) if stop is None else stop
        for first in range(start, end, self.batch_size):
            yield self.take(slice(first, min(first + self.batch_size, end)))

    def take(self, samples: slice | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Model-ready images ``[b, 3, h, w]`` float32 and labels ``[b]`` of some samples of the fixed order."""
        if self._resident is None:
            raw = torch.from_numpy(np.array(self.split.images[samples]))
        else:
            raw = self._resident[samples]
        images = raw.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255.0)
        return images.sub_(self._mean).div_(self._std), self._labels[samples]

    def run(
        self,
        predict: Predict,
        start: int = 0,
        stop: int | None = None,
        *,
        on_batch: Callable[[int], None] | None = None,
    ) -> Outcomes:
        """Score samples ``start`` to ``stop`` of the fixed order.

        Args:
            predict: Images ``[b, 3, h, w]`` to logits ``[b, n_classes]``.
            start: First sample.
            stop: One past the last; the end of the split by default.
            on_batch: Told how many images each batch held.

        Raises:
            DataError: A label lies beyond the model's classes.
        """
        predicted: list[Tensor] = []
        losses: list[Tensor] = []
        with torch.inference_mode():
            for logits, labels in self._forward(predict, start, stop, on_batch):
                predicted.append(logits.argmax(dim=1))
                losses.append(F.cross_entropy(logits, labels, reduction="none"))
            return _outcomes(torch.cat(predicted), torch.cat(losses))

    def logits(self, predict: Predict, *, on_batch: Callable[[int], None] | None = None) -> Tensor:
        """The logits of every sample of the fixed order, ``[n, n_classes]`` float32 on the CPU.

        Raises:
            DataError: A label lies beyond the model's classes.
        """
        with torch.inference_mode():
            return torch.cat([logits.cpu() for logits, _ in self._forward(predict, 0, None, on_batch)])

    def outcomes_of(self, logits: Tensor) -> Outcomes:
        """What given logits ``[n, n_classes]`` predict and lose on the samples of the fixed order."""
        labels = torch.from_numpy(self.split.labels)
        return _outcomes(logits.argmax(dim=1), F.cross_entropy(logits, labels, reduction="none"))

    def _forward(
        self, predict: Predict, start: int, stop: int | None, on_batch: Callable[[int], None] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits ``[b, n_classes]`` float32 and labels ``[b]``, batch by batch."""
        for number, (images, labels) in enumerate(self.batches(start, stop)):
            logits = predict(images).float()
            if number == 0:
                self.check_classes(logits)
            yield logits, labels
            if on_batch:
                on_batch(len(labels))

    def check_classes(self, logits: Tensor) -> None:
        """Compare the labels with a model's logits ``[b, n_classes]``.

        Raises:
            DataError: A label lies beyond the model's classes.
        """
        highest = int(self.split.labels.max())
        if logits.ndim != 2 or logits.shape[1] <= highest:
            raise DataError(
                f"{self.split.source}: labels go up to {highest}, but the model gives logits of shape "
                f"[batch, {', '.join(map(str, logits.shape[1:]))}]; the split's classes must be the model's"
            )


def _outcomes(predicted: Tensor, losses: Tensor) -> Outcomes:
    return Outcomes(predicted.cpu().numpy().astype(np.int64), losses.cpu().numpy().astype(np.float64))
