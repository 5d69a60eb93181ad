from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.errors import MixoptError
from mixopt.values.mix import Mix, constant
from mixopt.values.recipe import Recipe
from tests.conftest import random_mix
from tests.values.cases import COLUMNS, TENSOR, WHOLE, mixes


def make_recipe(mix: Mix) -> Recipe:
    return Recipe(
        method="search",
        mix=mix,
        ingredients={"model_1": "11", "model_0": "00", "base": "bb"},
        base="base",
        family={"name": "open_clip", "classnames": ["a", "ü"], "config": {"b": 1, "a": [1, 2.5, None]}},
        dtypes={"*": "float32", "z.w": "float16"},
        buffers_from=None,
        batchnorm="average",
        metric="accuracy",
        data={"search": "ff"},
        scores={"search": {"accuracy": 0.1 + 0.2, "nll": 1e-300}},
        seed=3,
        output_hash="cc",
        version="0.1.0",
    )


@given(mixes(), st.sampled_from([None, 2]))
def test_a_recipe_survives_json_bit_for_bit(mix: Mix, indent: int | None) -> None:
    recipe = make_recipe(mix)
    again = Recipe.from_json(recipe.to_json(indent), "recipe.json")
    assert again == recipe
    assert again.mix.coefficients.tobytes() == mix.coefficients.tobytes()
    assert again.mix.groups.items == mix.groups.items
    assert again.to_json() == recipe.to_json()


def test_equal_recipes_give_one_text() -> None:
    recipe = make_recipe(random_mix(TENSOR, COLUMNS))
    shuffled = replace(recipe, ingredients=dict(reversed(recipe.ingredients.items())))
    assert shuffled == recipe
    assert shuffled.to_json() == recipe.to_json()


def test_a_recipe_lists_every_field() -> None:
    recipe = make_recipe(random_mix(TENSOR, COLUMNS))
    assert set(json.loads(recipe.to_json())) == {field.name for field in fields(Recipe)} - {"statistics", "reading"} | {
        "format",
        "checksum",
    }


@pytest.mark.parametrize("text", ["", "not json", "[]", "3", "{}", '{"format": 1}', '{"format": 1, "mix": {}}'])
def test_a_text_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(MixoptError, match="not a m"):
        Recipe.from_json(text, "here.json")


def test_a_recipe_with_a_missing_or_unknown_field_is_refused() -> None:
    found = json.loads(make_recipe(random_mix(WHOLE, COLUMNS)).to_json())
    del found["checksum"]
    with pytest.raises(MixoptError, match=r"here\.json: not a mixopt recipe .*surprise"):
        Recipe.from_json(json.dumps({**found, "surprise": 1}), "here.json")
    del found["seed"]
    with pytest.raises(MixoptError, match=r"here\.json: not a mixopt recipe .*seed"):
        Recipe.from_json(json.dumps(found), "here.json")


def test_a_recipe_of_a_newer_format_says_update() -> None:
    found = json.loads(make_recipe(random_mix(WHOLE, COLUMNS)).to_json())
    with pytest.raises(MixoptError, match=r"here\.json: a recipe of another format; expected 1; update"):
        Recipe.from_json(json.dumps({**found, "format": 2}), "here.json")


def test_the_text_of_a_recipe_stays_what_it_was() -> None:
    text = make_recipe(constant(TENSOR, COLUMNS, [0.1, 0.7, 0.2])).to_json(2)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "d02df8a505ec6bd9b100fabc311cba140c2727b92429693588162bccad149070"
    )
