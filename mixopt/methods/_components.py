"""Components of a model, each of which ManifoldMix gives a coefficient, and mixes by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixopt.methods import layer_groups
from mixopt.methods._cobyla import Vector
from mixopt.scoring.objective import Objective
from mixopt.values.groups import Groups
from mixopt.values.mix import Coefficients, Mix
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool


@dataclass(frozen=True, eq=False)
class Parts:
    """Layer groups that lie within the components and within the columns' own groups.

    ``component`` ``[len(groups)]`` is each group's number among the live components, or -1 where it is in a dead one.
    """

    groups: Groups
    columns: tuple[str, ...]
    live: tuple[str, ...]
    dead: tuple[str, ...]
    component: NDArray[np.intp]

    def between(self, first: Coefficients, second: Coefficients, lambdas: Vector) -> Mix:
        """``lambda * first + (1 - lambda) * second`` per component; dead groups stay as in ``first``."""
        share = np.append(lambdas, 1.0)[self.component][:, None]
        return Mix(self.groups, self.columns, share * first + (1 - share) * second)

    def weighted(self, rows: list[Coefficients], weights: Coefficients) -> Mix:
        """The sum of rows by weights ``[len(rows), len(live)]``; dead groups are those of the first rows."""
        dead = np.eye(len(rows))[:, :1]
        shares = np.hstack([weights, dead])[:, self.component, None]
        return Mix(self.groups, self.columns, np.sum(shares * np.array(rows), axis=0))


def components_of(objective: Objective, prefix: int, scheme: str | None) -> dict[str, list[str]]:
    """Component to tensors: by prefix of all the pool's tensors, by scheme of those that are mixed."""
    if scheme is not None:
        return layer_groups(objective, scheme).as_dict()
    found: dict[str, list[str]] = {}
    for name in [*objective.pool.sizes, *objective.pool.fixed]:
        found.setdefault(".".join(name.split(".")[:prefix]), []).append(name)
    return found


def parts_of(pool: Pool, columns: Mapping[str, Mix], components: Mapping[str, list[str]]) -> Parts:
    """Live and dead components, and the layer groups that lie within them all."""
    varying = _varying(pool, columns)
    live = [name for name, tensors in components.items() if not varying.isdisjoint(tensors)]
    mixed = {name: tuple(tensor for tensor in tensors if tensor in pool.sizes) for name, tensors in components.items()}
    groups = Groups(tuple((name, tensors) for name, tensors in mixed.items() if tensors))
    for other in dict.fromkeys(mix.groups for mix in columns.values()):
        groups = groups.refine(other)
    number = {tensor: live.index(name) if name in live else -1 for name, tensors in mixed.items() for tensor in tensors}
    return Parts(
        groups=groups,
        columns=pool.columns,
        live=tuple(live),
        dead=tuple(name for name in components if name not in live),
        component=np.array([number[tensors[0]] for _, tensors in groups.items], dtype=np.intp),
    )


def _varying(pool: Pool, columns: Mapping[str, Mix]) -> set[str]:
    """The mixed tensors that differ between the columns: in coefficients, and in the checkpoints that they use."""
    used = {checkpoint for mix in columns.values() for checkpoint in mix.support()}
    rows = np.array([tensor_rows(mix, pool) for mix in columns.values()])
    differs = np.any(rows != rows[0], axis=(0, 2))
    return {
        tensor.name
        for tensor, differing in zip(pool.mixed, differs, strict=True)
        if differing and len({pool.hashes[checkpoint][tensor.name] for checkpoint in used}) > 1
    }
