"""Parsed values against the form that they should have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mixopt.errors import short

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], values: Mapping[str, Any]) -> Model:
    """The values as a model.

    Args:
        model: Says what they should be.
        values: What a file gave.

    Raises:
        ValueError: They are something else; says in one line where and what.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = short(".".join(map(str, first["loc"])))
        raise ValueError(f"{place}: {first['msg']}" if place else str(first["msg"])) from error
