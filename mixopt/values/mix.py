"""Mix: the coefficients as applied. Recipe: a mix and all that is needed to rebuild and trust it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixopt.errors import MixError, MixoptError, names
from mixopt.values.groups import Groups

ROW_SUM_TOLERANCE = 1e-9
RECIPE_FORMAT = 1
# What format 1 calls the validation split in ``data`` and ``scores``.
RECIPE_VALIDATION = "search"

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


@dataclass(frozen=True)
class Recipe:
    """A mix plus all that is needed to rebuild the fused model and to trust it; no paths, no times.

    Attributes:
        method: The row that chose the mix, such as ``search``.
        mix: The coefficients.
        ingredients: Column name to the content hash of its checkpoint.
        base: The column that is the base, if any.
        family: What the family needs to make the model again: its name, model config, class names, templates.
        dtypes: The dtype that each tensor is saved in: the commonest under ``*``, the others by tensor name.
        buffers_from: The column whose integer buffers are kept, where they differ between columns.
        batchnorm: How the run made BatchNorm statistics: ``average`` mixes them as it does weights; ``recompute`` sets
            those of mixes of several checkpoints anew from images.
        metric: The metric that drove the choice.
        data: Split name to content fingerprint.
        scores: Split name to the metrics that the mix was chosen by (fractions; nll in nats).
        seed: The run's seed.
        output_hash: Content hash of the fused state dict.
        version: mixopt's version.
        statistics: Where they were set anew, the file that holds them (``file``, which lies beside the recipe), its
            content ``hash``, and the number of ``images`` they come from.
    """

    method: str
    mix: Mix
    ingredients: dict[str, str]
    base: str | None
    family: dict[str, Any]
    dtypes: dict[str, str]
    buffers_from: str | None
    batchnorm: str
    metric: str
    data: dict[str, str]
    scores: dict[str, dict[str, float]]
    seed: int
    output_hash: str
    version: str
    statistics: dict[str, Any] | None = None

    def to_json(self, indent: int | None = None) -> str:
        """Canonical JSON: the same recipe gives the same text."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields |= {"mix": self.mix.as_dict(), "format": RECIPE_FORMAT}
        if self.statistics is None:
            del fields["statistics"]  # so that a recipe from before there were any keeps its bytes
        return json.dumps(fields, sort_keys=True, indent=indent)

    @classmethod
    def from_json(cls, text: str, source: str) -> Recipe:
        """Read a recipe.

        Args:
            text: What `to_json` wrote.
            source: The file, for messages.

        Raises:
            MixoptError: Not a recipe, or one of a newer format.
        """
        try:
            fields = json.loads(text)
            if fields.pop("format") != RECIPE_FORMAT:
                raise MixoptError(f"{source}: a recipe of another format; expected {RECIPE_FORMAT}; update mixopt")
            recipe = cls(**{**fields, "mix": Mix.from_dict(fields["mix"])})
            if lost := [name for name in recipe.mix.columns if name not in recipe.ingredients]:
                raise MixoptError(f"{source}: the recipe lacks the content hash of {names(lost)}")
            if "*" not in recipe.dtypes:
                raise MixoptError(f"{source}: the recipe lacks the dtype of '*'")
            _check_statistics(recipe, source)
            return recipe
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MixoptError(f"{source}: not a mixopt recipe ({type(error).__name__}: {error})") from error


def _check_statistics(recipe: Recipe, source: str) -> None:
    found = recipe.statistics
    if found is None:
        if recipe.batchnorm == "recompute" and len(recipe.mix.support()) > 1:
            raise MixoptError(f"{source}: the recipe lacks the reference to its recomputed BatchNorm statistics")
        return
    texts = [found["file"], found["hash"]]
    # A plain file name: the file is looked for where the reader says, never where a recipe points to.
    if not all(isinstance(text, str) and text for text in texts) or set(texts[0]) & set("/\\"):
        raise MixoptError(f"{source}: expected a file name and a hash in the recipe's statistics, found {texts}")
