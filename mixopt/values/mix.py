"""Mix: the coefficients as applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixopt.errors import MixError, names
from mixopt.values.groups import Groups

ROW_SUM_TOLERANCE = 1e-9

Coefficients = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mix:
    """Mixing coefficients per layer group.

    The fused weights of group ``g`` are ``sum_i coefficients[g, i] * weights_i[g]``.

    Attributes:
        groups: The layer groups, one row each.
        columns: The ingredients (and the base, where there is one), one column each.
        coefficients: ``[n_groups, n_columns]`` float64, read-only; every row sums to 1 within 1e-9. Exactly 0
            and 1 are legal, and so are negative entries.

    Raises:
        MixError: A wrong shape, a value that is not finite, or a row that does not sum to 1.
    """

    groups: Groups
    columns: tuple[str, ...]
    coefficients: Coefficients

    def __post_init__(self) -> None:
        rows = np.array(self.coefficients, dtype=np.float64)
        expected = (len(self.groups), len(self.columns))
        if rows.shape != expected:
            raise MixError(f"mix: expected coefficients of shape {expected} [groups, columns], got {rows.shape}")
        with np.errstate(invalid="ignore"):
            totals = rows.sum(axis=1)
        wrong = [
            f"{name} (sum {total:.9g})"
            for name, total in zip(self.groups.names, totals, strict=True)
            if not abs(total - 1.0) <= ROW_SUM_TOLERANCE
        ]
        if wrong:
            raise MixError(f"mix: every row must be finite and sum to 1, but not those of {names(wrong)}")
        rows.flags.writeable = False
        object.__setattr__(self, "coefficients", rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mix):
            return NotImplemented
        same = self.groups == other.groups and self.columns == other.columns
        return same and np.array_equal(self.coefficients, other.coefficients)

    def __hash__(self) -> int:
        return hash((self.groups, self.columns, (self.coefficients + 0.0).tobytes()))  # -0.0 equals 0.0

    def support(self) -> tuple[str, ...]:
        """The columns with a coefficient other than 0 in some group, in column order."""
        used = np.any(self.coefficients != 0, axis=0)
        return tuple(name for name, flag in zip(self.columns, used, strict=True) if flag)

    def as_dict(self) -> dict[str, Any]:
        """The mix as plain JSON values; floats keep every bit."""
        return {
            "columns": list(self.columns),
            # Pairs, not a mapping: the order is that of the rows, and writers of JSON may sort keys.
            "groups": [[name, list(tensors)] for name, tensors in self.groups.items],
            "coefficients": self.coefficients.tolist(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Mix:
        """Read what `as_dict` wrote.

        Raises:
            MixError: Something is missing or of the wrong form.
        """
        try:
            groups = Groups(tuple((name, tuple(tensors)) for name, tensors in value["groups"]))
            return cls(groups, tuple(value["columns"]), np.array(value["coefficients"], dtype=np.float64))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MixError(f"not a mix: {type(error).__name__}: {error}") from error


def constant(groups: Groups, columns: Sequence[str], row: ArrayLike) -> Mix:
    """The same row of coefficients ``[n_columns]`` for every group."""
    one = np.asarray(row, dtype=np.float64)
    return Mix(groups, tuple(columns), np.tile(one, (len(groups), 1)))


def one_hot(groups: Groups, columns: Sequence[str], name: str) -> Mix:
    """One ingredient alone.

    Raises:
        MixError: ``name`` is not among ``columns``.
    """
    if name not in columns:
        raise MixError(f"mix: no column {name!r}; the columns are {names(columns, 20)}")
    return constant(groups, columns, [float(column == name) for column in columns])


def combine(mixes: Sequence[Mix], weights: Sequence[float]) -> Mix:
    """A mix of mixes, again over the original ingredients: ``sum_j weights[j] * mixes[j]``.

    Works on the common refinement of their groups, so that per-tensor and one-row mixes combine.

    Raises:
        MixError: No mixes, other columns, or weights that do not sum to 1.
    """
    if not mixes or len(mixes) != len(weights):
        raise MixError(f"mix: expected one weight for each mix, got {len(mixes)} mixes, {len(weights)} weights")
    columns = mixes[0].columns
    if any(mix.columns != columns for mix in mixes):
        raise MixError("mix: only mixes over the same columns can be combined")
    groups = mixes[0].groups
    for mix in mixes[1:]:
        groups = groups.refine(mix.groups)
    rows = np.zeros((len(groups), len(columns)))
    for mix, weight in zip(mixes, weights, strict=True):
        rows += weight * rows_on(mix, groups)
    return Mix(groups, columns, rows)


def rows_on(mix: Mix, groups: Groups) -> Coefficients:
    """The rows ``[len(groups), n_columns]`` of a mix on groups that lie within its own.

    Raises:
        MixError: A group spans several rows of the mix.
    """
    if groups == mix.groups:
        return mix.coefficients
    own = mix.groups.index()
    picked = []
    for name, tensors in groups.items:
        found = {own.get(tensor, -1) for tensor in tensors}
        rows = {mix.coefficients[row].tobytes() for row in found if row >= 0}
        if -1 in found or len(rows) != 1:
            raise MixError(f"mix: layer group {name!r} has more than one row (or none) in this mix")
        picked.append(min(found))
    return mix.coefficients[picked]
