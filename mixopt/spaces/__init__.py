"""Coefficient spaces: the box of a sampler to the rows of a mix. Pure; no Optuna, no torch.

A newcomer is one module here whose class obeys `Space`; its name goes into `SPACES`. To be a choice of ``--space``, it
is made in `mixopt.stages.space` and named among the option's values in `mixopt.spec.options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import MixoptError, unknown
from mixopt.spaces.composed import Composed
from mixopt.spaces.linear import Affine, Depth, Layers, Residual, Shared
from mixopt.spaces.simplex import Simplex
from mixopt.values.mix import Mix

Point = NDArray[np.float64]


class Space(Protocol):
    """The contract: a box ``[-1, 1]`` per dimension whose centre is the start."""

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each dimension; the parameter names of a study."""

    @property
    def layer_groups(self) -> tuple[str, ...]:
        """The layer groups that have coefficients of their own."""

    @property
    def dims(self) -> int:
        """Number of dimensions."""

    def to_mix(self, point: Point) -> Mix:
        """The mix at a point ``[dims]`` of the box; the centre gives the start, bit for bit."""

    def pull_back(self, point: Point, gradient: Point) -> Point:
        """The gradient ``[dims]`` at a point of what has the gradient ``[groups, columns]`` there, of coefficients."""

    def describe(self) -> dict[str, Any]:
        """The space as plain JSON values; `from_description` makes it again."""


SPACES: dict[str, type[Simplex | Composed | Affine | Residual]] = {
    "simplex": Simplex,
    "composed": Composed,
    "affine": Affine,
    "layers": Layers,
    "shared": Shared,
    "depth": Depth,
    "residual": Residual,
}


def from_description(value: Mapping[str, Any]) -> Space:
    """The space that `Space.describe` described.

    Raises:
        MixoptError: An unknown kind, or a description that is not complete.
    """
    kind = str(value.get("kind"))
    if kind not in SPACES:
        raise MixoptError(unknown("space", kind, SPACES))
    try:
        return SPACES[kind].from_description(value)
    except (KeyError, TypeError, ValueError) as error:
        raise MixoptError(f"not the description of a space: {error}") from error
