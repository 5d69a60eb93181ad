"""Mixes of mixes: a space over other mixes as columns, unrolled to the checkpoints. Soups of soups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import MixoptError, names
from mixopt.spaces.simplex import Simplex
from mixopt.values.groups import Groups
from mixopt.values.mix import Mix, rows_on


class Composed:
    """A simplex whose columns are mixes; what it gives are mixes over those mixes' own columns.

    The rows of the result are on the common refinement of the simplex's groups and those of the mixes.

    Args:
        inner: Over the names of the mixes.
        mixes: Name to mix, in the order of the inner columns; all over the same columns.

    Raises:
        MixoptError: The names or columns do not fit.
    """

    def __init__(self, inner: Simplex, mixes: Mapping[str, Mix]) -> None:
        if inner.start.columns != tuple(mixes):
            raise MixoptError(f"space composed: expected the mixes {names(inner.start.columns)}, got {names(mixes)}")
        if len({mix.columns for mix in mixes.values()}) != 1:
            raise MixoptError("space composed: only mixes over the same columns can be mixed")
        self.inner = inner
        self.mixes = dict(mixes)
        self._columns = next(iter(mixes.values())).columns
        self._groups = _finest(inner.start.groups, self.mixes)
        own = inner.start.groups.index()
        self._row_of = [own[tensors[0]] for _, tensors in self._groups.items]
        # [n_groups, n_mixes, n_columns]
        self._stacked = np.stack([rows_on(mix, self._groups) for mix in self.mixes.values()], axis=1)

    @property
    def layer_groups(self) -> tuple[str, ...]:
        """The groups that have coefficients of their own."""
        return self.inner.layer_groups

    @property
    def dims(self) -> int:
        """Groups times mixes."""
        return self.inner.dims

    @property
    def labels(self) -> tuple[str, ...]:
        """``group/mix``, group by group."""
        return self.inner.labels

    def to_mix(self, point: NDArray[np.float64]) -> Mix:
        """The mix at a point ``[dims]``, over the checkpoints.

        Raises:
            MixoptError: A point of another size.
        """
        weights = self.inner.to_mix(point).coefficients[self._row_of]
        return Mix(self._groups, self._columns, np.einsum("gj,gjc->gc", weights, self._stacked))

    def pull_back(self, point: NDArray[np.float64], gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `mixopt.spaces.Space`."""
        inner = np.zeros_like(self.inner.start.coefficients)
        np.add.at(inner, self._row_of, np.einsum("gjc,gc->gj", self._stacked, gradient))
        return self.inner.pull_back(point, inner)

    def describe(self) -> dict[str, Any]:
        """The space as plain JSON values."""
        return {
            "kind": "composed",
            "inner": self.inner.describe(),
            "mixes": [[name, mix.as_dict()] for name, mix in self.mixes.items()],
        }

    @classmethod
    def from_description(cls, value: Mapping[str, Any]) -> Composed:
        """Make the space again from what `describe` gave."""
        mixes = {name: Mix.from_dict(mix) for name, mix in value["mixes"]}
        return cls(Simplex.from_description(value["inner"]), mixes)


def _finest(groups: Groups, mixes: Mapping[str, Mix]) -> Groups:
    for mix in mixes.values():
        groups = groups.refine(mix.groups)
    return groups
