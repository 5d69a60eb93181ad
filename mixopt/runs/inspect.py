"""Inspect: what is in a pool, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.assemble import open_pool_of, open_splits, opening_of, reader_of
from mixopt.assemble.family import family_of, propose, recognised_options, tell_of
from mixopt.errors import MixoptError
from mixopt.families import Family
from mixopt.imports import is_import_path
from mixopt.ingredients import ingredient_files
from mixopt.listener import Listener
from mixopt.spec import POOL_FILE, DataSpec, StudySpec, load_spec
from mixopt.spec.template import pool_template
from mixopt.values.samples import VALIDATION
from mixopt.weights import checkpoints
from mixopt.weights.inspection import describe_pool


def inspect(models: str | Path, *, listener: Listener | None = None, **options: Any) -> dict[str, Any]:
    """What is in a pool, and what is wrong with it.

    Args:
        models: The pool's folder, a pool.toml is not needed; or one checkpoint file.
        listener: Told about notices and progress.
        **options: Fields of `mixopt.StudySpec`.

    Returns:
        Plain JSON values; ``problems`` lists everything that would stop a search. Without a pool.toml, ``pool_toml`` is
        the one that `mixopt.init` would write.

    Raises:
        SpecError: Options that cannot be used.
    """
    heard, path = listener or Listener(), Path(models)
    if path.is_file():
        return _inspect_checkpoint(path, heard, options)
    spec = load_spec({"models": models, **options})
    problems: list[str] = []
    found: dict[str, Any] = {"models": str(spec.models), "problems": problems}
    family: Family | None = None
    paths: dict[str, Path] = {}
    base: tuple[str, Path] | None = None
    is_described = (spec.models / POOL_FILE).is_file() or options.get("family") is not None
    try:
        paths, base = ingredient_files(spec)
    except MixoptError as error:
        problems.append(str(error))
    if paths:
        try:
            family = family_of(spec, heard)
            tell_of(family, heard)
            found["family"] = family.identity()["name"]
        except MixoptError as error:
            # Without a word on the family, what can be told without one is what was asked for.
            if is_described:
                problems.append(str(error))
            else:
                found["unrecognised"] = str(error).splitlines()[0]
        try:
            reader = reader_of(None, None, spec)
            if family is not None:
                reader, base = opening_of(family, family.build(), spec, paths, base, heard)
            found |= describe_pool(open_pool_of(family, heard, paths, base, reader), spec.groups or "block")
        except MixoptError as error:
            problems.append(str(error))
    if not is_described:
        with suppress(MixoptError):
            found["pool_toml"] = pool_template(propose(spec))
    if family is not None:
        found["splits"] = _inspect_splits(spec, family, heard, problems)
    return found


def _inspect_checkpoint(path: Path, listener: Listener, options: Mapping[str, Any]) -> dict[str, Any]:
    """What is in one checkpoint file."""
    spec = StudySpec.model_validate(
        {"models": path.parent, **{key: value for key, value in options.items() if value is not None}}
    )
    opened = checkpoints.read(path, spec.weights)
    for notice in opened.notices:
        listener.info(notice)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in opened.tensors.values())
    found: dict[str, Any] = {
        "checkpoint": str(path),
        "tensors": len(opened.tensors),
        "parameters": sum(tensor.numel() for tensor in opened.tensors.values()),
        "dtypes": dict(dtypes.most_common()),
        "tied": opened.tied,
        "problems": [],
    }
    try:
        recognised, reason = recognised_options(spec, opened)
        found |= {"family": recognised.name, "model": recognised.model, "reason": reason}
    except MixoptError as error:
        found["unrecognised"] = str(error).splitlines()[0]
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
