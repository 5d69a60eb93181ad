"""Rows on the simplex around a start: ``row = projection(start + radius * x)``, x in [-1, 1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import MixoptError, names
from mixopt.values.mix import Mix

# A coefficient so near to where it is cut off lies on the edge.
EDGE = 1e-9


class Simplex:
    """One dimension per layer group and active ingredient.

    Per group, the start's row is pushed by ``radius * x`` along the active columns and projected onto the simplex
    of the active columns and those that the start uses. Other columns stay at 0. A group whose x is all zero keeps
    the start's row bit for bit.

    Args:
        start: The mix at the centre; its groups are the layer groups of the space. Entries must not be negative.
        active: The columns that have dimensions.
        radius: How far a coefficient is pushed at the edge of the box.

    Raises:
        MixoptError: A start outside the simplex, an active column that it does not have, or no radius.
    """

    def __init__(self, start: Mix, active: Sequence[str], radius: float) -> None:
        if np.any(start.coefficients < 0):
            raise MixoptError("space simplex: the start has negative coefficients; it lies outside the simplex")
        if absent := [name for name in active if name not in start.columns]:
            raise MixoptError(f"space simplex: no column {names(absent)}")
        if not active:
            raise MixoptError("space simplex: at least one ingredient must be active")
        if len(set(active)) < len(active):
            raise MixoptError(f"space simplex: an active column is named twice in {names(active)}")
        if not 0 < radius < np.inf:
            raise MixoptError(f"space simplex: expected a radius above 0, got {radius}")
        self.start = start
        self.active = tuple(active)
        self.radius = float(radius)
        self._places = [start.columns.index(name) for name in self.active]
        used = set(start.support()) | set(self.active)
        self._free = np.array([name in used for name in start.columns])
        if self._free.sum() < 2:
            raise MixoptError("space simplex: one column alone leaves nothing to search; expected two or more")

    @property
    def layer_groups(self) -> tuple[str, ...]:
        """The start's groups."""
        return self.start.groups.names

    @property
    def dims(self) -> int:
        """Groups times active columns."""
        return len(self.start.groups) * len(self.active)

    @property
    def labels(self) -> tuple[str, ...]:
        """``group/ingredient``, group by group."""
        return tuple(f"{group}/{name}" for group in self.start.groups.names for name in self.active)

    def to_mix(self, point: NDArray[np.float64]) -> Mix:
        """The mix at a point ``[dims]``.

        Raises:
            MixoptError: A point of another size.
        """
        pushes = np.asarray(point, dtype=np.float64)
        if pushes.shape != (self.dims,):
            raise MixoptError(f"space simplex: expected a point of {self.dims} numbers, got {list(pushes.shape)}")
        rows = self.start.coefficients.copy()
        for row, push in zip(rows, pushes.reshape(len(rows), -1), strict=True):
            if np.any(push != 0):
                row[self._places] += self.radius * push
                row[self._free] = project(row[self._free])
        return Mix(self.start.groups, self.start.columns, rows)

    def pull_back(self, point: NDArray[np.float64], gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `mixopt.spaces.Space`.

        What lies inside moves less the mean of all that do; what is projected to 0 stays there. On an edge, such as a
        start of a single checkpoint, the slopes are those of the inside, so that a descent can leave it.
        """
        rows, pushed = self.to_mix(point).coefficients, self.start.coefficients.copy()
        pushed[:, self._places] += self.radius * np.reshape(point, (len(rows), -1))
        cut = np.max(pushed - rows, axis=1, where=rows > 0, initial=-np.inf, keepdims=True)
        is_inside = self._free & (pushed >= cut - EDGE)
        mean = np.sum(gradient, axis=1, where=is_inside, keepdims=True) / is_inside.sum(axis=1, keepdims=True)
        return np.asarray(self.radius * np.where(is_inside, gradient - mean, 0.0)[:, self._places].ravel())

    def describe(self) -> dict[str, Any]:
        """The space as plain JSON values."""
        return {
            "kind": "simplex",
            "start": self.start.as_dict(),
            "active": list(self.active),
            "radius": self.radius,
        }

    @classmethod
    def from_description(cls, value: Mapping[str, Any]) -> Simplex:
        """Make the space again from what `describe` gave."""
        return cls(Mix.from_dict(value["start"]), tuple(value["active"]), float(value["radius"]))


def project(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest point of the probability simplex, ``[n]`` to ``[n]``.

    Duchi et al., "Efficient projections onto the l1-ball", ICML 2008, figure 1.
    """
    descending = np.sort(values)[::-1]
    excess = np.cumsum(descending) - 1.0
    counts = np.arange(1, len(values) + 1)
    kept = int(np.flatnonzero(descending - excess / counts > 0)[-1])
    projected: NDArray[np.float64] = np.maximum(values - excess[kept] / counts[kept], 0.0)
    projected /= projected.sum()
    return projected
