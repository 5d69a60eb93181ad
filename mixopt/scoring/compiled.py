"""Forward passes through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixopt.errors import MixoptError

BACKEND = "inductor"


def compiled_pass(device: torch.device) -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
    """A function that runs a predictor on images, compiled as one whole at the first call for each shape of a batch.

    Predictors of several mixes, made anew from the same code for the same model, share what was compiled. On a GPU
    it is replayed as a CUDA graph, which is why the weights must not move.

    Args:
        device: Where the model runs.

    Returns:
        From a predictor and its images to logits. It raises a `MixoptError` where torch cannot compile the predictor.
    """
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    run: Any = torch.compile(_run, fullgraph=True, dynamic=False, backend=BACKEND, mode=mode)

    def guarded(predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        try:
            # A CUDA graph writes its next logits where these are.
            return torch.as_tensor(run(predict, images)).clone()
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


def _run(predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What is compiled: with the predictor as an argument, its identity is not part of the code."""
    return predict(images)
