"""A recipe as a configuration of mergekit (https://github.com/arcee-ai/mergekit), where that can express it.

mergekit's ``linear`` method with ``normalize: false`` is a weighted sum per tensor, which is what a mix is. A weight
may be a list of values with filters, of which the first one that stands in a tensor's name holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mixopt.errors import MixoptError, names
from mixopt.values.recipe import Recipe


def as_mergekit(recipe: Recipe, folders: Mapping[str, Path]) -> str:
    """The YAML text, of JSON scalars and lists.

    Args:
        recipe: The recipe.
        folders: Column name to the model's folder, for the columns that the mix uses.

    Raises:
        MixoptError: mergekit cannot express the recipe; says why.
    """
    used = recipe.mix.support()
    if recipe.statistics is not None:
        raise MixoptError("--yaml: the recipe's BatchNorm statistics were set anew, which mergekit cannot do")
    if strange := [column for column in used if not (folders[column] / "config.json").is_file()]:
        raise MixoptError(
            f"--yaml: mergekit reads folders of transformers' models, and {names(strange)} is none; build the model "
            "itself, without --yaml"
        )
    lines = ["merge_method: linear", "parameters:", "  normalize: false", "dtype: float32"]
    lines += [f"out_dtype: {recipe.dtypes['*']}", "models:"]
    for column in used:
        lines += [f"  - model: {json.dumps(str(folders[column].absolute()))}", "    parameters:"]
        first, *rest = _weight(recipe, column)
        lines += [f"      weight: {first}".rstrip(), *rest]
    return "\n".join(lines) + "\n"


def _weight(recipe: Recipe, column: str) -> list[str]:
    """One number where all groups have it, else one for each tensor: longer names first, as they may hold others."""
    mix = recipe.mix
    values = mix.coefficients[:, mix.columns.index(column)].tolist()
    if len(set(values)) == 1:
        return [json.dumps(values[0])]
    by_tensor = {name: value for (_, tensors), value in zip(mix.groups.items, values, strict=True) for name in tensors}
    ordered = sorted(by_tensor, key=lambda name: (-len(name), name))
    filters = [f"        - {{filter: {json.dumps(name)}, value: {json.dumps(by_tensor[name])}}}" for name in ordered]
    # What is in no group is the same in all models, and any weights that sum to 1 leave it as it is.
    return ["", *filters, f"        - {{value: {json.dumps(values[0])}}}"]
