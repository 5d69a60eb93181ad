"""Inspect: what is in a pool, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.assemble import (
    family_of,
    open_pool_of,
    open_splits,
    opening_of,
    reader_of,
)
from mixopt.errors import MixoptError
from mixopt.families import Family
from mixopt.imports import is_import_path
from mixopt.ingredients import ingredient_files, with_adapters_model
from mixopt.listener import Listener
from mixopt.spec import POOL_FILE, DataSpec, StudySpec, load_spec
from mixopt.values.samples import VALIDATION
from mixopt.weights.inspection import describe_pool


def inspect(models: str | Path, *, listener: Listener | None = None, **options: Any) -> dict[str, Any]:
    """What is in a pool, and what is wrong with it.

    Args:
        models: The pool's folder; a pool.toml is not needed.
        listener: Told about notices and progress.
        **options: Fields of `mixopt.StudySpec`.

    Returns:
        Plain JSON values; ``problems`` lists everything that would stop a search.

    Raises:
        SpecError: Options that cannot be used.
    """
    heard = listener or Listener()
    spec = load_spec({"models": models, **options})
    problems: list[str] = []
    found: dict[str, Any] = {"models": str(spec.models), "problems": problems}
    family: Family | None = None
    paths: dict[str, Path] = {}
    base: tuple[str, Path] | None = None
    try:
        paths, base = ingredient_files(spec)
    except MixoptError as error:
        problems.append(str(error))
    if (spec.models / POOL_FILE).is_file() or options.get("family") is not None:
        try:
            family = family_of(with_adapters_model(spec, paths, base))
            found["family"] = spec.family
        except MixoptError as error:
            problems.append(str(error))
    if paths:
        try:
            reader = reader_of(None, None, spec)
            if family is not None:
                reader, base = opening_of(family, family.build(), spec, paths, base, heard)
            found |= describe_pool(open_pool_of(family, heard, paths, base, reader), spec.groups or "block")
        except MixoptError as error:
            problems.append(str(error))
    if family is not None:
        found["splits"] = _inspect_splits(spec, family, heard, problems)
    return found


def _inspect_splits(
    spec: StudySpec, family: Family, listener: Listener, problems: list[str]
) -> dict[str, Mapping[str, int]]:
    splits: dict[str, Mapping[str, int]] = {}
    for name, path in [(VALIDATION, spec.data.validation), *spec.data.test.items()]:
        if path is None or is_import_path(str(path)):  # a user's own function has no samples to look at
            continue
        data = DataSpec(validation=path) if name == VALIDATION else DataSpec(test={name: path})
        try:
            split = open_splits(spec.model_copy(update={"data": data}), family, listener)[name]
        except MixoptError as error:
            problems.append(str(error))
        else:
            splits[name] = {"samples": len(split), "classes": len(np.unique(split.labels))}
    return splits
