"""Recipes as configurations of mergekit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt.errors import MixoptError
from mixopt.runs.mergekit import as_mergekit
from mixopt.values.groups import Groups
from mixopt.values.mix import Mix
from mixopt.values.recipe import Recipe
from tests.recipes import recipe_of

GROUPS = Groups(
    (
        ("low", ("bert.layer.1.weight", "bert.layer.11.weight")),
        ("high", ("layer.1.weight", "head.bias")),
    )
)


def parsed(text: str) -> dict[str, Any]:
    """A reader of the few forms of YAML that are written here."""
    head: dict[str, Any] = {"models": []}
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("- model:"):
            head["models"].append({"model": json.loads(stripped.partition(": ")[2]), "weight": []})
        elif stripped.startswith("- {"):
            inner = stripped.removeprefix("- {").removesuffix("}")
            part = json.loads("{" + inner.replace("filter:", '"filter":', 1).replace("value:", '"value":', 1) + "}")
            head["models"][-1]["weight"].append(part)
        elif stripped.startswith("weight:") and stripped != "weight:":
            head["models"][-1]["weight"] = float(stripped.partition(": ")[2])
        elif ": " in stripped:
            key, _, value = stripped.partition(": ")
            head[key] = value
    return head


def weight_of(setting: Any, tensor: str) -> float:
    """As mergekit evaluates a parameter: the first entry whose filter stands in the tensor's name."""
    if isinstance(setting, float):
        return setting
    return float(next(each["value"] for each in setting if each.get("filter") is None or each["filter"] in tensor))


def own_recipe(coefficients: list[list[float]]) -> Recipe:
    return recipe_of(Mix(GROUPS, ("a", "b", "c"), np.array(coefficients)))


def folders(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name in "abc":
        found[name] = tmp_path / f"run {name}"
        found[name].mkdir()
        (found[name] / "config.json").write_text("{}")
    return found


@pytest.mark.parametrize("rows", [[[0.5, 0.0, 0.5], [1.25, 0.0, -0.25]], [[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]]])
def test_every_tensor_gets_the_coefficients_of_its_group(tmp_path: Path, rows: list[list[float]]) -> None:
    places = folders(tmp_path)
    found = parsed(as_mergekit(own_recipe(rows), places))
    assert (found["merge_method"], found["normalize"], found["dtype"]) == ("linear", "false", "float32")
    by_folder = {each["model"]: each["weight"] for each in found["models"]}
    used = [name for number, name in enumerate("abc") if any(row[number] for row in rows)]
    assert list(by_folder) == [str(places[name]) for name in used]
    for (_, tensors), row in zip(GROUPS.items, rows, strict=True):
        for tensor in tensors:
            assert [weight_of(by_folder[str(places[name])], tensor) for name in used] == [
                row["abc".index(n)] for n in used
            ]


def test_what_mergekit_cannot_express_is_refused(tmp_path: Path) -> None:
    recipe = own_recipe([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
    places = folders(tmp_path)
    (places["c"] / "config.json").unlink()
    with pytest.raises(MixoptError, match="--yaml: mergekit reads folders of transformers' models, and c is none"):
        as_mergekit(recipe, places)
    with pytest.raises(MixoptError, match="--yaml: the recipe's BatchNorm statistics"):
        as_mergekit(replace(recipe, statistics={"file": "b.safetensors", "hash": "x", "images": 1}), places)
