"""Recipe: a mix and all that is needed to rebuild and trust it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, Strict, create_model

from mixopt.errors import MixoptError, about, names, short
from mixopt.files import is_plain_name
from mixopt.untrusted import refusing
from mixopt.untrusted.texts import CHECKSUM, check_checksum, json_of, with_checksum
from mixopt.untrusted.values import validated
from mixopt.values.mix import Mix

RECIPE_FORMAT = 1
# What format 1 calls the validation split in ``data`` and ``scores``.
RECIPE_VALIDATION = "search"


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
        reading: How the checkpoints were read, so that they can be again without the model: which ``weights`` of a file
            with two sets; the names of the ``fixed`` tensors, which with those of the mix are all of the model's; alias
            to name of the ``tied`` ones; name in files to that in memory of the ``renamed`` ones; names that the
            family has ``left_out``, if any; and the ``constants`` that some checkpoint lacks, name to ``dtype``,
            ``shape`` and ``values``. None in recipes from before there was a choice.
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
    reading: dict[str, Any] | None = None

    def to_json(self, indent: int | None = None) -> str:
        """Canonical JSON: the same recipe gives the same text."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields |= {"mix": self.mix.as_dict(), "format": RECIPE_FORMAT}
        for name in _OPTIONAL:
            if fields[name] is None:
                del fields[name]
        return json.dumps(with_checksum(fields), sort_keys=True, indent=indent)

    @classmethod
    def from_json(cls, text: str, source: str) -> Recipe:
        """Read a recipe.

        Args:
            text: What `to_json` wrote.
            source: The file, for messages.

        Raises:
            MixoptError: Not a recipe, or one of a newer format.
        """
        with refusing(MixoptError, source, found="not a mixopt recipe", cure="restore it from a copy"):
            fields = json_of(text, source, MixoptError, found="not a mixopt recipe")
            if not isinstance(fields, dict):
                raise TypeError(f"expected a JSON object, found a {type(fields).__name__}")
            if (number := fields.get("format")) != RECIPE_FORMAT:
                if type(number) is not int:
                    raise ValueError("it names no format")
                raise MixoptError(f"{source}: a recipe of another format; expected {RECIPE_FORMAT}; update mixopt")
            if CHECKSUM in fields:  # recipes from before there was one have none
                check_checksum(fields)
            written = validated(_Written, fields)
            kept = {name: getattr(written, name) for name in cls.__dataclass_fields__ if name != "mix"}
            with about(source):
                mix = Mix.from_dict(written.mix.model_dump())
            recipe = cls(**kept, mix=mix)
            if lost := [name for name in recipe.mix.columns if name not in recipe.ingredients]:
                raise MixoptError(f"{source}: the recipe lacks the content hash of {names(lost)}")
            for role, column in (("base", recipe.base), ("buffers_from", recipe.buffers_from)):
                if column is not None and column not in recipe.mix.columns:
                    raise MixoptError(f"{source}: the recipe's {role} {short(column)} is none of its columns")
            if "*" not in recipe.dtypes:
                raise MixoptError(f"{source}: the recipe lacks the dtype of '*'")
            _check_statistics(recipe, source)
            if recipe.reading is not None:
                validated(_WrittenReading, recipe.reading)
            return recipe


# Fields that a recipe may be without.
_OPTIONAL = ("statistics", "reading")


class _WrittenConstant(BaseModel):
    """An integer or bool tensor, flattened."""

    model_config = ConfigDict(extra="forbid", strict=True)

    dtype: Literal["bool", "uint8", "int8", "int16", "int32", "int64"]
    shape: list[Annotated[int, Field(ge=0)]]
    values: list[int]


class _WrittenReading(BaseModel):
    """How checkpoints were read."""

    model_config = ConfigDict(extra="forbid", strict=True)

    weights: Literal["auto", "ema", "raw"]
    fixed: list[str]
    tied: dict[str, str]
    renamed: dict[str, str]
    left_out: list[str] = Field(default_factory=list)
    constants: dict[str, _WrittenConstant]


class _WrittenMix(BaseModel):
    """A mix, as `Mix.as_dict` has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    columns: list[str]
    groups: list[Annotated[tuple[str, list[str]], Strict(False)]]
    coefficients: list[list[float]]


# A recipe, as `Recipe.to_json` has it: its fields, with the mix as plain values, and what is beside them.
_FIELDS: dict[str, Any] = {
    **{name: (kind, None if name in _OPTIONAL else ...) for name, kind in get_type_hints(Recipe).items()},
    "mix": (_WrittenMix, ...),
    "format": (int, ...),
    CHECKSUM: (str | None, None),
}
_Written: Any = create_model("_Written", __config__=ConfigDict(extra="forbid", strict=True), **_FIELDS)


def _check_statistics(recipe: Recipe, source: str) -> None:
    found = recipe.statistics
    if found is None:
        if recipe.batchnorm == "recompute" and len(recipe.mix.support()) > 1:
            raise MixoptError(f"{source}: the recipe lacks the reference to its recomputed BatchNorm statistics")
        return
    texts = [found["file"], found["hash"]]
    # A plain file name: the file is looked for where the reader says, never where a recipe points to.
    if not all(isinstance(text, str) and text for text in texts) or not is_plain_name(texts[0]):
        raise MixoptError(
            f"{source}: expected a file name and a hash in the recipe's statistics, found {short(repr(texts))}"
        )
