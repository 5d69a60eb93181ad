"""Which model family a pool is of, opened from the options, the checkpoints, or a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixopt import families
from mixopt.data.nearby import splits_nearby
from mixopt.errors import SpecError
from mixopt.families.recognition import BY_NAME, Evidence, recognise, recognise_family
from mixopt.families.transformers.folder import config_beside
from mixopt.ingredients import adapter_shapes, first_readable, ingredient_files, likely_base, with_adapters_model
from mixopt.listener import Listener
from mixopt.spec import AUTO, POOL_FILE, StudySpec
from mixopt.spec.template import Proposal, pool_template
from mixopt.weights import checkpoints


def tell_of(family: families.Family, listener: Listener) -> None:
    """Say how a family understood a folder."""
    for notice in family.notices if isinstance(family, families.Telling) else ():
        listener.info(notice)


def family_of(
    spec: StudySpec, listener: Listener | None = None, checkpoint: checkpoints.Checkpoint | None = None
) -> families.Family:
    """The family that the options describe, or the checkpoints where these leave it open.

    Args:
        spec: The options.
        listener: Told what was recognised, and by what.
        checkpoint: What to recognise it by; by default the first ingredient.

    Raises:
        SpecError: Nothing tells the family, or it cannot use the options.
    """
    options, reason = recognised_options(spec, checkpoint)
    if reason and listener is not None:
        listener.info(f"recognised {options.name}{f' {options.model}' if options.model else ''}: {reason}")
    return families.open_family(options)


def recognised_options(
    spec: StudySpec, checkpoint: checkpoints.Checkpoint | None = None
) -> tuple[families.FamilyOptions, str]:
    """What a family is opened with, and what told it; empty where the options name it.

    Raises:
        MixoptError: Nothing tells the family, or no checkpoint can be opened to tell it by.
    """
    options = families.FamilyOptions(
        spec.family, spec.model, spec.classnames, spec.templates, spec.models, image_size=spec.image_size
    )
    if ":" in spec.family:
        return options, ""
    heads: dict[str, tuple[int, ...]] = {}
    if checkpoint is None:
        files, base = ingredient_files(spec)
        options = replace(options, model=with_adapters_model(spec, files, base).model)
        heads = adapter_shapes(files.values())
        first = first_readable(files, base, spec)
    else:
        first = checkpoint
        if spec.family == "transformers" and spec.model is None and (config := config_beside(first.path)):
            options = replace(options, model=str(config.absolute()))
    shapes = {name: tuple(tensor.shape) for name, tensor in first.tensors.items()} | heads
    if spec.family != AUTO:
        return replace(options, shapes=shapes), ""
    found = recognise(replace(_evidence(spec, first), shapes=shapes), spec.model)
    return replace(options, name=found.family, model=found.model, shapes=shapes), found.reason


def _evidence(spec: StudySpec, first: checkpoints.Checkpoint) -> Evidence:
    shapes = {name: tuple(tensor.shape) for name, tensor in first.tensors.items()}
    return Evidence(spec.models, first.path, shapes, first.metadata)


def propose(spec: StudySpec) -> Proposal:
    """What a pool.toml of a folder would say, by what lies in it and what the options say already.

    Raises:
        CheckpointError: No folder, or no checkpoints in it.
    """
    ingredient_files(spec)
    base = spec.base or likely_base(spec)
    with_base = spec.model_copy(update={"base": base})
    family: str | None = None
    model = spec.model
    try:
        options, reason = recognised_options(with_base)
        family, model = options.name, options.model if isinstance(options.model, str) else None
    except SpecError as error:
        reason = str(error).splitlines()[0]
        with suppress(SpecError):
            known = recognise_family(_evidence(with_base, first_readable(*ingredient_files(with_base), spec)))
            family, reason = known.family, known.reason
    return Proposal(
        family=family,
        model=None if model is None else _relative(spec.models, model),
        needs_model=family in BY_NAME and model is None,
        needs_classes=family == "open_clip" and not spec.classnames,
        base=None if base is None else _relative(spec.models, str(base)),
        ingredients=spec.ingredient_patterns,
        splits=tuple(path.name for path in splits_nearby(spec.models)),
        reason=reason or "as you say",
    )


def family_of_recipe(identity: Mapping[str, Any], path: Path, trusted: str | None) -> families.Family:
    """The family that a model's recipe describes; relative paths are relative to its folder.

    Raises:
        SpecError: The description is not complete, or names a function other than the trusted one.
    """
    return families.from_identity(identity, path.parent, str(path), trusted)


def refuse_family(name: str, path: Path, trusted: str | None) -> None:
    """Refuse a family that is a function which only a file names, see `mixopt.families.check_trusted`."""
    families.check_trusted(name, str(path), trusted)


def check_data(spec: StudySpec) -> None:
    """Refuse to begin without a split that selects.

    Raises:
        SpecError: None is named; prints the pool.toml that would name one.
    """
    if spec.data.validation is not None:
        return
    template = pool_template(propose(spec))
    pool_file = spec.models / POOL_FILE
    what = "Complete it after this one" if pool_file.is_file() else f"Write this to {pool_file}, filled in"
    none = f"{pool_file} does not name one" if pool_file.is_file() else f"there is no {pool_file} to name one"
    raise SpecError(f"--data: no validation split is given, and {none}. {what}:\n\n{template}\n")


def _relative(folder: Path, text: str) -> str:
    """A path as it is written in a file of the folder; a name that is no path stays."""
    path = Path(text).absolute()
    if not path.exists():
        return text
    return path.relative_to(folder.absolute()).as_posix() if path.is_relative_to(folder.absolute()) else str(path)
