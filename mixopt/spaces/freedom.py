"""How freely the layer groups of a space may move: each alone, smoothly along the depth, or all alike.

The fewer moves there are to choose from, the less the choice owes to the samples that it was made by. A basis says how
few moves make a point: ``point = basis @ moves``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mixopt.spaces import Space
from mixopt.spaces.linear import DEPTHS, POINTS, independent

Floats = NDArray[np.float64]

# From the fewest moves to the most.
FREEDOMS = ("shared", "depth", "all")


def freedoms(space: Space) -> dict[str, Floats | None]:
    """The ways in which the layer groups of a space can move, from the fewest moves to the most.

    ``shared`` moves what has the same name alike at all places, ``depth`` alike at three control points along the
    depth, interpolated between them, and ``all`` every dimension alone. Those that are no smaller than the next are
    left out: a space of three depths has ``shared`` and ``all``, one of a single place has ``all``.

    Returns:
        Name to a basis ``[dims, moves]`` of entries from 0 to 1; of ``all`` None.
    """
    parts = [_parts(label, space.layer_groups) for label in space.labels]
    found: dict[str, Floats | None] = {"all": None}
    size = space.dims
    for name in ("depth", "shared"):
        basis = _basis(parts, _profiles(name, [place for place, _ in parts], space.layer_groups))
        if basis.shape[1] < size:
            found, size = {name: basis, **found}, basis.shape[1]
    return found


def _parts(label: str, layer_groups: Sequence[str]) -> tuple[str, str]:
    """A label's place and name; a slash may be part of either, so places that are known go first."""
    known = [place for place in (*layer_groups, *DEPTHS) if label.startswith(f"{place}/")]
    place = max(known, key=len, default=label.split("/")[0])
    return place, label[len(place) + 1 :]


def _profiles(name: str, places: Sequence[str], layer_groups: Sequence[str]) -> Floats:
    """How far each dimension moves with each control point: ``[points, dims]``."""
    if name == "shared":
        return np.ones((1, len(places)))
    # Places are layer groups, in the order of the network's depth, or depths themselves.
    order = layer_groups if set(places) <= set(layer_groups) else list(dict.fromkeys(places))
    at = np.array([order.index(place) for place in places]) * (POINTS - 1) / max(1, len(order) - 1)
    return np.asarray(np.maximum(0.0, 1 - np.abs(at - np.arange(POINTS)[:, None])))


def _basis(parts: Sequence[tuple[str, str]], profiles: Floats) -> Floats:
    """One move per name and profile, less those that others make already: ``[dims, moves]``."""
    names = list(dict.fromkeys(name for _, name in parts))
    of = np.array([[name == each for _, name in parts] for each in names], dtype=np.float64)
    moves = (profiles[:, None] * of).reshape(-1, len(parts))
    return np.ascontiguousarray(moves[independent(moves)].T)
