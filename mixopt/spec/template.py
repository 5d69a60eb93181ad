"""A pool.toml from what was recognised in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Proposal:
    """What a pool.toml of a folder would say.

    Attributes:
        family: The model family, or None where nothing tells it.
        model: As the family takes it; None where the family finds it by itself.
        needs_model: Whether the model has to be named, and is not known.
        needs_classes: Whether the family needs class names that are not in the folder.
        base: The base's file or folder, relative to the folder, or None.
        ingredients: Globs of the ingredients, relative to the folder; empty where they are found without.
        splits: Files and folders that may be splits, relative to the folder.
        reason: What told the family, or why nothing did.
    """

    family: str | None
    model: str | None
    needs_model: bool
    needs_classes: bool
    base: str | None
    ingredients: tuple[str, ...]
    splits: tuple[str, ...]
    reason: str


def pool_template(found: Proposal) -> str:
    """The text of a pool.toml, with what remains to be filled in as comments."""
    validation = _validation(found.splits)
    tests = [name for name in found.splits if name != validation]
    lines = [
        f"family = {json.dumps(found.family)}  # {found.reason}"
        if found.family
        else 'family = "..."  # fill in: a family, or your own package.module:function'
    ]
    if found.model is not None:
        lines.append(f"model = {json.dumps(found.model)}")
    elif found.needs_model:
        lines.append('model = "..."  # fill in: the architecture\'s name')
    lines.append(
        f"base = {json.dumps(found.base)}  # never an ingredient"
        if found.base
        else '# base = "base.safetensors"  # the pretrained checkpoint, if any'
    )
    if found.ingredients:
        lines.append(f"ingredients = {json.dumps(list(found.ingredients))}")
    if found.needs_classes:
        lines += [
            'classnames = ["...", "..."]  # fill in, in the order of the labels',
            'templates = ["a photo of a {}."]',
        ]
    lines += ["[data]", f"search = {json.dumps(validation)}" if validation else _NO_SPLIT, "[data.test]"]
    lines += [f"{json.dumps(Path(name).stem)} = {json.dumps(name)}" for name in tests]
    return "\n".join([*lines, *([] if tests else ['# test = "test.npz"  # splits that are only reported'])]) + "\n"


_NO_SPLIT = '# search = "val.npz"  # fill in: the split that selects, see mixopt guide files'


def _validation(splits: Sequence[str]) -> str | None:
    """The split whose name says that it selects; never one that says that it tests or trains, unless it is alone."""
    for word in ("val", "dev", "search", "select"):
        if (found := next((name for name in splits if word in Path(name).name.lower()), None)) is not None:
            return found
    others = [name for name in splits if not any(word in Path(name).name.lower() for word in ("test", "train"))]
    return others[0] if len(others) == 1 == len(splits) else None
