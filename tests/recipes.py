"""Recipes for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mixopt.values.mix import Mix
from mixopt.values.recipe import Recipe


def recipe_of(mix: Mix, **changes: Any) -> Recipe:
    """A recipe of a mix, whose other fields say as little as they can."""
    plain = Recipe(
        method="search",
        mix=mix,
        ingredients=dict.fromkeys(mix.columns, "hash"),
        base=None,
        family={"name": "x"},
        dtypes={"*": "float32"},
        buffers_from=None,
        batchnorm="average",
        metric="accuracy",
        data={},
        scores={},
        seed=0,
        output_hash="",
        version="1",
    )
    return replace(plain, **changes)
