"""Forward passes through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mixopt.errors import MixoptError

BACKEND = "inductor"


def compiled_pass(device: torch.device) -> Callable[[Callable[[Any], Any], Any], Any]:
    """A function that runs a predictor on a batch, compiled as one whole at the first call for each shape of batches.

    Predictors of several mixes, made anew from the same code for the same model, share what was compiled. On a GPU
    it is replayed as a CUDA graph, which is why the weights must not move.

    Args:
        device: Where the model runs.

    Returns:
        From a predictor and its inputs to what it gives, whose tensors the next call may write over. It raises a
        `MixoptError` where torch cannot compile the predictor.
    """
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    run: Any = torch.compile(_run, fullgraph=True, dynamic=False, backend=BACKEND, mode=mode)

    def guarded(predict: Callable[[Any], Any], inputs: Any) -> Any:
        try:
            return run(predict, inputs)
        except Exception as error:
            # The compiler's errors have no class of their own in common.
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            cause = getattr(error, "inner_exception", error)
            reason = next((line for line in str(cause).splitlines() if line.strip()), "")
            raise MixoptError(
                f"--compile: torch.compile cannot compile the model's forward pass on {device} "
                f"({type(cause).__name__}: {reason}); leave out --compile"
            ) from error

    return guarded


def filled(inputs: Any, size: int) -> Any:
    """The last sample of a batch repeated, so that every tensor ``[b, ...]`` is ``[size, ...]``.

    Args:
        inputs: A tensor, or tensors in a mapping, tuple or list; what else lies there is left as it is.
        size: Samples per batch.

    Raises:
        MixoptError: Tensors whose first axes differ, or inputs of another kind.
    """
    lengths: set[int] = set()

    def fill(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: fill(each) for key, each in value.items()}
        if isinstance(value, (tuple, list)):
            return getattr(value, "_make", type(value))([fill(each) for each in value])
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        lengths.add(len(value))
        return torch.cat([value, value[-1:].expand(max(0, size - len(value)), *value.shape[1:])])

    found = fill(inputs)
    if len(lengths) != 1:
        kind = f"tensors of lengths {sorted(lengths)}" if lengths else f"a {type(inputs).__name__} without tensors"
        raise MixoptError(
            f"--compile: the family's collate gives {kind}; expected a tensor, or a mapping or tuple of tensors, all "
            "with the batch as their first axis; leave out --compile"
        )
    return found


def _run(predict: Callable[[Any], Any], inputs: Any) -> Any:
    """What is compiled: with the predictor as an argument, its identity is not part of the code."""
    return predict(inputs)
