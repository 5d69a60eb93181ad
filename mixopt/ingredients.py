"""StudySpec to the files of a pool: the ingredients and the base, found and named."""

from __future__ import annotations

from pathlib import Path

from mixopt.errors import CheckpointError
from mixopt.spec import StudySpec
from mixopt.weights import checkpoints


def ingredient_files(spec: StudySpec) -> tuple[dict[str, Path], tuple[str, Path] | None]:
    """Column name to file for the ingredients, and the base's name and file.

    Raises:
        CheckpointError: No folder, no checkpoints, or no base where one is named.
    """
    base = None if spec.base is None else _base_file(spec)
    files = checkpoints.find(spec.models, spec.ingredient_patterns, base)
    if not files:
        wanted = f"({', '.join(checkpoints.SUFFIXES)})"
        raise CheckpointError(f"{spec.models}: no checkpoints {wanted} in this folder or below; correct --models")
    every = checkpoints.names_of([*files, *([base] if base else [])], spec.models)
    named = dict(zip(every, files, strict=False))
    return named, None if base is None else (every[-1], base)


def found_notices(spec: StudySpec, base: tuple[str, Path] | None) -> tuple[str, ...]:
    """What is to say of how the ingredients were found."""
    besides = None if base is None else base[1]
    return checkpoints.find_noted(spec.models, spec.ingredient_patterns, besides).notices


def _base_file(spec: StudySpec) -> Path:
    # A base on the command line may be given from here, or by its name in the pool.
    given = spec.base or Path()
    for path in (given, spec.models / given):
        if path.is_file() or checkpoints.is_checkpoint_folder(path):
            return path
    raise CheckpointError(f"--base {given}: no such checkpoint, neither here nor in {spec.models}")
