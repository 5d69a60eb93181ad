"""The table ``[data]`` of the TOML files: which splits select and which are only reported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mixopt.spec import checks
from mixopt.spec.option import DATA, EVERY, Option
from mixopt.values.samples import VALIDATION


class DataSpec(BaseModel):
    """Where the splits are: the table ``[data]``, in which ``search`` and ``validation`` are one key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation: Annotated[
        Path | None,
        Option(
            "The split that selects: .npz, .csv, .jsonl, .parquet, class folders, a saved dataset, or your own "
            "package.module:function.",
            DATA,
            EVERY,
            common=True,
            flag="data",
        ),
    ] = None
    test: Annotated[
        dict[str, Path],
        Option(
            "A split that is only reported (repeatable).", DATA, EVERY, common=True, flag="test", metavar="NAME=FILE"
        ),
    ] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, values: Any) -> Any:
        return checks.one_name(values) if isinstance(values, Mapping) else values

    @field_validator("test")
    @classmethod
    def _not_validation(cls, value: dict[str, Path]) -> dict[str, Path]:
        if taken := sorted({"search", VALIDATION} & value.keys()):
            raise ValueError(f"a test split cannot be called {taken[0]!r}; that is the validation split's name")
        return value
