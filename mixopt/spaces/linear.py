"""Rows that move along given directions from a start: ``rows = start + sum_k x_k * direction_k``, x in [-1, 1].

Every direction's rows sum to 0, so that the rows of the mix sum to 1; they may hold negative entries. The kinds differ
in their directions alone:

- ``affine``: every layer group moves by itself, in all directions that its active columns span.
- ``layers``: as ``affine``, but some layer groups alone.
- ``shared``: all layer groups move alike.
- ``depth``: as ``shared`` at three points along the network's depth, interpolated between them.
- ``residual``: towards other mixes (and away from them), each at the same three points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import helmert

from mixopt.errors import MixoptError, names
from mixopt.values.groups import Groups
from mixopt.values.mix import Mix, rows_on

TOLERANCE = 1e-9

# Along the depth, the control points that moves are given at: the first layer group, the middle, the last.
POINTS = 3
DEPTHS = ("first", "middle", "last")


class Linear(ABC):
    """A start and directions.

    Args:
        start: The mix at the centre.
        labels: A name for each direction.
        directions: ``[dims, n_groups, n_columns]``, each with rows that sum to 0; linearly independent.

    Raises:
        MixoptError: No direction, or directions that depend on each other.
    """

    kind: str

    def __init__(self, start: Mix, labels: Sequence[str], directions: NDArray[np.float64]) -> None:
        self.start = start
        self._labels = tuple(labels)
        self._directions = directions
        flat = directions.reshape(len(directions), -1)
        if not len(flat) or np.linalg.matrix_rank(flat) < len(flat):
            raise MixoptError(
                f"space {self.kind}: its {len(flat)} directions ({names(labels)}) are not independent; take fewer"
            )

    @property
    def layer_groups(self) -> tuple[str, ...]:
        """The start's groups."""
        return self.start.groups.names

    @property
    def dims(self) -> int:
        """The number of directions."""
        return len(self._labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each direction."""
        return self._labels

    def to_mix(self, point: NDArray[np.float64]) -> Mix:
        """The mix at a point ``[dims]``.

        Raises:
            MixoptError: A point of another size.
        """
        moves = np.asarray(point, dtype=np.float64)
        if moves.shape != (self.dims,):
            raise MixoptError(f"space {self.kind}: expected a point of {self.dims} numbers, got {list(moves.shape)}")
        if not np.any(moves):
            return self.start
        rows = self.start.coefficients + np.tensordot(moves, self._directions, axes=1)
        return Mix(self.start.groups, self.start.columns, rows)

    def pull_back(self, point: NDArray[np.float64], gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `mixopt.spaces.Space`; the same at every point."""
        return np.asarray(np.tensordot(self._directions, gradient, axes=2))

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The space as plain JSON values."""


class Affine(Linear):
    """One move per layer group and contrast of the active columns.

    Args:
        start: The mix at the centre; its groups are the layer groups of the space.
        active: The columns that move; two or more.
        radius: How far a contrast moves at the edge of the box.

    Raises:
        MixoptError: An active column that the start does not have, or fewer than two, or no radius.
    """

    kind = "affine"

    def __init__(self, start: Mix, active: Sequence[str], radius: float) -> None:
        self.active, self.radius = tuple(active), _radius(self.kind, radius)
        places, profiles = self._profiles(start.groups)
        labels = [f"{place}/{name}" for place in places for name in self.active[1:]]
        moves = _contrasts(self.kind, start, self.active) * radius
        super().__init__(start, labels, _spread(profiles, moves))

    def _profiles(self, groups: Groups) -> tuple[Sequence[str], NDArray[np.float64]]:
        """Which layer groups move together and how far: names, and ``[n_profiles, n_groups]``."""
        return groups.names, np.eye(len(groups))

    def describe(self) -> dict[str, Any]:
        """The space as plain JSON values."""
        return {"kind": self.kind, "start": self.start.as_dict(), "active": list(self.active), "radius": self.radius}

    @classmethod
    def from_description(cls, value: Mapping[str, Any]) -> Affine:
        """Make the space again from what `describe` gave."""
        return cls(Mix.from_dict(value["start"]), tuple(value["active"]), float(value["radius"]))


class Layers(Affine):
    """As `Affine`, but of some layer groups alone; the others stay at the start.

    Args:
        start: As `Affine`.
        active: As `Affine`.
        radius: As `Affine`.
        moving: The layer groups that move.

    Raises:
        MixoptError: As `Affine`; a layer group that the start does not have.
    """

    kind = "layers"

    def __init__(self, start: Mix, active: Sequence[str], radius: float, moving: Sequence[str]) -> None:
        self.moving = tuple(moving)
        if absent := [name for name in self.moving if name not in start.groups.names]:
            raise MixoptError(f"space layers: no layer group {names(absent)}")
        super().__init__(start, active, radius)

    def _profiles(self, groups: Groups) -> tuple[Sequence[str], NDArray[np.float64]]:
        return self.moving, np.eye(len(groups))[[groups.names.index(name) for name in self.moving]]

    def describe(self) -> dict[str, Any]:
        """The space as plain JSON values."""
        return {**super().describe(), "moving": list(self.moving)}

    @classmethod
    def from_description(cls, value: Mapping[str, Any]) -> Layers:
        """Make the space again from what `describe` gave."""
        return cls(Mix.from_dict(value["start"]), tuple(value["active"]), float(value["radius"]), value["moving"])


class Shared(Affine):
    """One move per contrast of the active columns, the same for all layer groups. Arguments as `Affine`."""

    kind = "shared"

    def _profiles(self, groups: Groups) -> tuple[Sequence[str], NDArray[np.float64]]:
        return ("all",), np.ones((1, len(groups)))


class Depth(Affine):
    """One move per contrast at the first, the middle and the last layer group, interpolated between. As `Affine`."""

    kind = "depth"

    def _profiles(self, groups: Groups) -> tuple[Sequence[str], NDArray[np.float64]]:
        points = min(POINTS, len(groups))
        return DEPTHS[:points], hats(len(groups), points)


class Residual(Linear):
    """One move per mix at the first, the middle and the last layer group: towards the mix, or away from it.

    Args:
        start: The mix at the centre.
        towards: Name to mix, over the start's columns. Moves that those before them make already are left out.
        radius: The part of the way that the edge of the box lies at.

    Raises:
        MixoptError: Mixes over other columns, none that differs from the start, or no radius.
    """

    kind = "residual"

    def __init__(self, start: Mix, towards: Mapping[str, Mix], radius: float) -> None:
        self.towards, self.radius = dict(towards), _radius(self.kind, radius)
        if wrong := [name for name, mix in towards.items() if mix.columns != start.columns]:
            raise MixoptError(f"space residual: {names(wrong)} is over other columns than the start")
        groups = start.groups
        for mix in towards.values():
            groups = groups.refine(mix.groups)
        finest = Mix(groups, start.columns, rows_on(start, groups))
        points = min(POINTS, len(groups))
        profiles = hats(len(groups), points)
        moves = [radius * (rows_on(mix, groups) - finest.coefficients) for mix in towards.values()]
        directions = np.stack([profile[:, None] * move for profile in profiles for move in moves])
        labels = [f"{depth}/{name}" for depth in DEPTHS[:points] for name in towards]
        kept = independent(directions.reshape(len(directions), -1))
        if not kept:
            raise MixoptError(f"space residual: nothing to move towards; {names(towards)} is the start itself")
        super().__init__(finest, [labels[number] for number in kept], directions[kept])

    def describe(self) -> dict[str, Any]:
        """The space as plain JSON values."""
        return {
            "kind": self.kind,
            "start": self.start.as_dict(),
            "towards": [[name, mix.as_dict()] for name, mix in self.towards.items()],
            "radius": self.radius,
        }

    @classmethod
    def from_description(cls, value: Mapping[str, Any]) -> Residual:
        """Make the space again from what `describe` gave."""
        towards = {name: Mix.from_dict(mix) for name, mix in value["towards"]}
        return cls(Mix.from_dict(value["start"]), towards, float(value["radius"]))


def independent(rows: NDArray[np.float64]) -> list[int]:
    """Which rows ``[n, size]`` do not lie in the span of those before them."""
    least = TOLERANCE * np.max(np.linalg.norm(rows, axis=1), initial=0.0)
    basis = np.zeros((0, rows.shape[1]))
    kept: list[int] = []
    for number, row in enumerate(rows):
        rest = row - (row @ basis.T) @ basis
        rest -= (rest @ basis.T) @ basis  # again, for what rounding left
        if np.linalg.norm(rest) > least:
            kept.append(number)
            basis = np.vstack([basis, rest / np.linalg.norm(rest)])
    return kept


def hats(count: int, points: int) -> NDArray[np.float64]:
    """Linear interpolation from control points to places, ``[points, count]``; every place's weights sum to 1.

    By hand: np.interp's last bits differ, and with them the mixes of studies that are on record.
    """
    if points == 1:
        return np.ones((1, count))
    places = np.linspace(0, points - 1, count)
    weights: NDArray[np.float64] = np.maximum(0.0, 1 - np.abs(places[None, :] - np.arange(points)[:, None]))
    return weights


def _contrasts(kind: str, start: Mix, active: Sequence[str]) -> NDArray[np.float64]:
    """Orthonormal contrasts of the active columns, on all columns: ``[n_active - 1, n_columns]``; each sums to 0."""
    if absent := [name for name in active if name not in start.columns]:
        raise MixoptError(f"space {kind}: no column {names(absent)}")
    if len(set(active)) < len(active):
        raise MixoptError(f"space {kind}: an active column is named twice in {names(active)}")
    if len(active) < 2:
        raise MixoptError(f"space {kind}: one column alone leaves nothing to search; expected two or more")
    rows = np.zeros((len(active) - 1, len(start.columns)))
    rows[:, [start.columns.index(name) for name in active]] = helmert(len(active))
    return rows


def _spread(profiles: NDArray[np.float64], moves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every profile ``[p, n_groups]`` with every move ``[m, n_columns]``: ``[p * m, n_groups, n_columns]``."""
    spread = [profile[:, None] * move for profile in profiles for move in moves]
    return np.stack(spread)


def _radius(kind: str, radius: float) -> float:
    if not 0 < radius < np.inf:
        raise MixoptError(f"space {kind}: expected a radius above 0, got {radius}")
    return float(radius)
