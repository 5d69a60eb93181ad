"""Checkpoints are read again by what a recipe says, without the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mixopt.errors import MixoptError
from mixopt.values.groups import make_groups
from mixopt.values.mix import constant
from mixopt.values.recipe import Recipe
from mixopt.weights.alignment import AlignedReader, signature_of
from mixopt.weights.checkpoints import hash_tensors
from mixopt.weights.pool import Pool, open_pool
from mixopt.weights.recorded import reader_for, reading_of
from tests.recipes import recipe_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4, bias=False)
        self.decoder = nn.Linear(3, 4, bias=False)
        self.decoder.weight = self.embed.weight
        self.norm = nn.LayerNorm(4)
        self.register_buffer("ids", torch.arange(4).reshape(2, 2))
        self.register_buffer("mask", torch.tensor([True, False]))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for number in range(2):
        torch.manual_seed(number)
        state = {f"model.{name}": tensor + 1 for name, tensor in Net().state_dict().items() if name != "mask"}
        state["model.ids"] = Net().state_dict()["ids"]
        if number == 0:
            del state["model.ids"]
        found[f"m{number}"] = tmp_path / f"m{number}.ckpt"
        torch.save({"state_dict": state, "epoch": number}, found[f"m{number}"])
    return found


def own_recipe(pool: Pool) -> Recipe:
    mix = constant(make_groups("whole", pool.sizes), pool.columns, np.full(len(pool.columns), 1 / len(pool.columns)))
    return recipe_of(mix, ingredients=pool.fingerprints, reading=reading_of(pool, "auto"))


def test_files_are_read_as_they_were(files: dict[str, Path]) -> None:
    first = AlignedReader(signature_of(Net()))
    pool = open_pool(files, reader=first)
    recipe = Recipe.from_json(own_recipe(pool).to_json(), "recipe.json")
    again = reader_for(recipe)
    for path in files.values():
        one, other = first(path), again(path)
        assert hash_tensors(one.tensors) == hash_tensors(other.tensors)
        assert one.tied == other.tied == {"decoder.weight": "embed.weight"}
    assert recipe.reading is not None
    assert recipe.reading["constants"]["ids"]["values"] == [0, 1, 2, 3]


def test_constants_that_do_not_fit_their_shape_are_refused(files: dict[str, Path]) -> None:
    recipe = own_recipe(open_pool(files, reader=AlignedReader(signature_of(Net()))))
    assert recipe.reading is not None
    wrong = {"dtype": "int64", "shape": [5, 5], "values": [1]}
    with pytest.raises(MixoptError, match="recipe: constants that are none"):
        reader_for(replace(recipe, reading={**recipe.reading, "constants": {"ids": wrong}}))


def test_recipes_from_before_read_files_as_they_are(files: dict[str, Path]) -> None:
    recipe = own_recipe(open_pool(files, reader=AlignedReader(signature_of(Net()))))
    assert "model.norm.weight" in reader_for(replace(recipe, reading=None))(files["m1"]).tensors
