"""BatchNorm statistics of a fused model, set anew from images.

The mean of several checkpoints' running statistics is not the statistics of their mean. Stochastic weight averaging
sets them anew with a pass over images (Izmailov et al., UAI 2018, arXiv 1803.05407); for models far apart, whose mean
has collapsed activations, that is most of the repair (Jordan et al., "REPAIR", ICLR 2023, arXiv 2211.08403). Where
the checkpoints are close, the mean of theirs, gathered from far more images, can be the better one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixopt.errors import DataError, ScoreError, SpecError, names
from mixopt.scoring.evaluator import Evaluator, Predict
from mixopt.weights.pool import Pool

IMAGES = 2000
# Not the evaluator's own: on every device the statistics are those of the same batches.
BATCH = 100

_VERSION = 1


@dataclass(frozen=True, eq=False)
class BatchNormLayer:
    """A layer whose statistics are mixed.

    Attributes:
        module: The layer.
        mean: The name of its running mean in the checkpoints.
        variance: The name of its running variance there.
    """

    module: _BatchNorm
    mean: str
    variance: str


def find_layers(pool: Pool, module: nn.Module) -> tuple[BatchNormLayer, ...]:
    """The BatchNorm layers of a model, SyncBatchNorm included, whose running statistics both differ in the pool.

    A layer whose statistics are the same in all checkpoints was frozen in training; it stays as it is.
    """
    mixed = pool.sizes.keys()
    return tuple(
        layer
        for layer in _every_layer(pool, module)
        if layer.module.track_running_stats and {layer.mean, layer.variance} <= mixed
    )


def negative_variance(pool: Pool, module: nn.Module) -> str | None:
    """The first running variance so negative that its layer gives NaN, by its name in the pool, or None.

    Mixes with coefficients outside 0 to 1 can give one.
    """
    for layer in _every_layer(pool, module):
        variance = layer.module.running_var
        if variance is not None and layer.variance in pool.sizes and bool((variance + layer.module.eps <= 0).any()):
            return layer.variance
    return None


class Recompute:
    """Sets the running statistics of a module as it is fused now.

    They become what ``torch.optim.swa_utils.update_bn`` gives: the mean over batches of each batch's mean and unbiased
    variance, with these layers alone in training mode (so dropout and frozen layers act as in evaluation), rounded to
    the dtype they are saved in. The batches are the first images of a split's fixed order, all of one size so
    that their plain mean is right: of up to `IMAGES` images, those that do not fill the last batch are left out.
    No label is looked at.

    Args:
        layers: From `find_layers`; their statistics are written in place.
        evaluator: Holds the images.
        dtypes: Tensor name to the dtype it is saved in.

    Attributes:
        images: How many images are used.
        batch: How many at a time: `BATCH`, or the evaluator's own where that is smaller, or a little fewer.
        key: A text that is another one wherever the statistics could be others for the same weights.

    Raises:
        DataError: Fewer than two images, which have no variance.
    """

    def __init__(
        self, layers: Sequence[BatchNormLayer], evaluator: Evaluator, dtypes: Mapping[str, torch.dtype]
    ) -> None:
        split = evaluator.split
        available = min(IMAGES, len(split))
        if available < 2:
            raise DataError(
                f"{split.source}: BatchNorm statistics cannot be recomputed from {available} {split.unit}; use "
                "more, or --batchnorm average"
            )
        size = max(2, min(BATCH, evaluator.batch_size))
        batches = min(math.ceil(available / size), available // 2)
        self.layers = tuple(layers)
        self.batch = available // batches
        self.images = self.batch * batches
        self._evaluator = evaluator
        self._dtypes = dtypes
        pixels = hashlib.sha256(split.digests[: self.images].tobytes()).hexdigest()[:32]
        places = hashlib.sha256("\n".join(self._statistics()).encode()).hexdigest()[:32]
        self.key = (
            f"recompute {_VERSION}: {self.images} images ({pixels}) in batches of {self.batch}, "
            f"{len(self.layers)} layers ({places})"
        )

    def __call__(self, predict: Predict) -> None:
        """Run the samples through the module.

        Args:
            predict: What is collated to logits, of the module that the layers belong to.

        Raises:
            SpecError: ``predict`` does not run the layers in training mode.
            ScoreError: Statistics that are not finite.
        """
        before = {name: tensor.clone() for name, tensor in self._statistics().items()}
        with _training(self.layers) as counts, torch.no_grad():
            for start in range(0, self.images, self.batch):
                inputs, _ = self._evaluator.take(slice(start, start + self.batch))
                predict(inputs)
        if not any(int(count) for count in counts):
            raise SpecError(
                "--batchnorm recompute: the family's predict does not run the module's BatchNorm layers in training "
                "mode (does it call eval(), or run a copy of the module?); use --batchnorm average"
            )
        for layer, count in zip(self.layers, counts, strict=True):
            for name, tensor in _statistics_of(layer).items():
                # A layer that these images never reach keeps its averaged statistics.
                tensor.copy_(tensor.to(self._dtypes[name]) if int(count) else before[name])
        self._check_finite()

    def statistics(self) -> dict[str, Tensor]:
        """The statistics that the module holds now: name to CPU tensor in the dtype it is saved in."""
        # Always a copy: what is in the module changes with the next mix.
        return {name: tensor.to("cpu", self._dtypes[name], copy=True) for name, tensor in self._statistics().items()}

    def _statistics(self) -> dict[str, Tensor]:
        return {name: tensor for layer in self.layers for name, tensor in _statistics_of(layer).items()}

    def _check_finite(self) -> None:
        every = self._statistics()
        if bool(torch.isfinite(torch.cat([tensor.reshape(-1) for tensor in every.values()])).all()):
            return
        bad = [name for name, tensor in every.items() if not bool(torch.isfinite(tensor).all())]
        unit = self._evaluator.split.unit
        raise ScoreError(
            f"BatchNorm statistics recomputed from {self.images} {unit}s are not finite in {names(bad)} "
            f"({str(self._dtypes[bad[0]]).removeprefix('torch.')}); the fused model's activations overflow. Leave out "
            "the checkpoint that causes it, save in a wider --dtype, or use --batchnorm average"
        )


def _every_layer(pool: Pool, module: nn.Module) -> Iterator[BatchNormLayer]:
    """BatchNorm layers with running statistics, under the names that the pool stores them by."""
    for path, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            found = [f"{path}.{statistic}".removeprefix(".") for statistic in ("running_mean", "running_var")]
            mean, variance = (pool.tied.get(name, name) for name in found)
            yield BatchNormLayer(layer, mean, variance)


def _statistics_of(layer: BatchNormLayer) -> dict[str, Tensor]:
    found = {layer.mean: layer.module.running_mean, layer.variance: layer.module.running_var}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@contextmanager
def _training(layers: Sequence[BatchNormLayer]) -> Iterator[list[Tensor]]:
    """Layers that gather a plain mean over batches from nothing; gives their counters, which are not the buffers.

    The counter in the state dict says how long a checkpoint was trained; another stands in for it meanwhile. Only
    the layers themselves change mode, not what may be inside them (timm keeps dropout there).
    """
    modules = [layer.module for layer in layers]
    kept = [(module.training, module.momentum, module.num_batches_tracked) for module in modules]
    counts = [torch.tensor(0) for _ in modules]
    try:
        for module, count in zip(modules, counts, strict=True):
            module.training, module.momentum, module.num_batches_tracked = True, None, count
            module.reset_running_stats()
        yield counts
    finally:
        for module, (training, momentum, tracked) in zip(modules, kept, strict=True):
            module.training, module.momentum, module.num_batches_tracked = training, momentum, tracked
