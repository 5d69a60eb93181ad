"""BatchNorm statistics of a fused model, from images."""

from __future__ import annotations

from mixopt.evaluator import Predict


class Recompute:
    """Sets the running statistics of the module as it is fused now."""

    key: str

    def __call__(self, predict: Predict) -> None:
        """Run the images through the module."""
