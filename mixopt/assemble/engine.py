"""A family's module and a pool, ready to be run: what a run's own process and its workers make alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from mixopt import families
from mixopt.scoring.activation_reuse import ActivationReuse, budget_on
from mixopt.scoring.batchnorm import Recompute
from mixopt.scoring.engine import Engine
from mixopt.scoring.evaluator import Predict
from mixopt.spec import StudySpec
from mixopt.weights import checkpoints
from mixopt.weights.builder import FastBuilder
from mixopt.weights.pool import Pool
from mixopt.weights.stack import Stack


def bare_engine(
    spec: StudySpec, family: families.Family, module: nn.Module, pool: Pool, device: torch.device, stack: Stack
) -> Engine:
    """An engine that has no splits yet, and averages BatchNorm statistics.

    Args:
        spec: The options.
        family: The model family.
        module: From its `build`; its parameters become views of the engine's memory.
        pool: The checkpoints.
        device: Where models run.
        stack: How the checkpoints are kept.
    """
    model = _Model(family, module, pool, device)
    # What activation reuse goes on with is not compiled: one mix would have outcomes of two kinds.
    reuse = None if spec.compile else model.reuse()
    cuts = frozenset() if reuse is None else reuse.cuts
    builder = FastBuilder(pool, module, device, saved_dtype(spec), stack, cuts)
    return Engine(pool, builder, model.predict, {}, reuse=reuse)


def recomputing(engine: Engine, recompute: Recompute | None) -> Engine:
    """The same, which sets BatchNorm statistics anew, or averages them.

    Those that are set anew depend on the whole mix: with them, no segment's outcome can be used again.
    """
    return replace(engine, recompute=recompute, reuse=engine.reuse if recompute is None else None)


def saved_dtype(spec: StudySpec) -> torch.dtype | None:
    """The dtype that ``--dtype`` asks for; None for that of the ingredients."""
    return None if spec.dtype == "ingredients" else checkpoints.dtype_of(spec.dtype)


class _Model:
    """A family's module, and the ways to run it."""

    def __init__(self, family: families.Family, module: nn.Module, pool: Pool, device: torch.device) -> None:
        self.module = module
        self._family, self._pool, self._device = family, pool, device
        aliases = (alias for alias, name in pool.tied.items() if name in pool.fixed)
        self._fixed = frozenset(pool.fixed) | frozenset(aliases)

    def predict(self) -> Predict:
        """The function from a batch to logits, of the module as it is now."""
        return self._family.predict(self.module, self._fixed)

    def reuse(self) -> ActivationReuse | None:
        """Reuse of first segments, for a model that has any; the builder then fuses segment by segment."""
        family = self._family
        if not isinstance(family, families.Segmented):
            return None
        segments, predict_segments = family.segments(self.module), family.predict_segments
        if segments is None:
            return None

        def steps() -> Sequence[Predict]:
            return predict_segments(self.module, self._fixed)

        return ActivationReuse(self._pool, segments, steps, budget_on(self._device))
