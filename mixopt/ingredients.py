"""StudySpec to the files of a pool: the ingredients and the base, found and named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mixopt.errors import CheckpointError, names, short
from mixopt.spec import StudySpec
from mixopt.weights import checkpoints

# What people call the checkpoint that the others were fine-tuned from.
_BASES = ("base", "zeroshot", "zero_shot", "pretrained")


def ingredient_files(spec: StudySpec) -> tuple[dict[str, Path], tuple[str, Path] | None]:
    """Column name to file for the ingredients, and the base's name and file.

    Raises:
        CheckpointError: No folder, no checkpoints, or no base where one is named.
    """
    base = None if spec.base is None else _base_file(spec)
    files = checkpoints.find(spec.models, spec.ingredient_patterns, base)
    if base is None and (adapters := [path for path in files if checkpoints.is_adapter(path)]):
        base = _base_of(adapters, spec.models)
        files = [path for path in files if not path.samefile(base)]
    if not files:
        wanted = f"({', '.join(checkpoints.SUFFIXES)})"
        others = checkpoints.others_in(spec.models)
        seen = f", but {others}" if others else ""
        raise CheckpointError(f"{spec.models}: no checkpoints {wanted} in this folder or below{seen}; correct --models")
    every = checkpoints.names_of([*files, *([base] if base else [])], spec.models)
    named = dict(zip(every, files, strict=False))
    return named, None if base is None else (every[-1], base)


def with_adapters_model(spec: StudySpec, paths: Mapping[str, Path], base: tuple[str, Path] | None) -> StudySpec:
    """The options with the base's folder as the model, where adapters bring no config of their own."""
    if base is None or spec.model is not None or not any(checkpoints.is_adapter(path) for path in paths.values()):
        return spec
    return spec.model_copy(update={"model": str(base[1].absolute())}) if base[1].is_dir() else spec


def adapter_shapes(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Tensor name to shape in the first adapter's own file, which may bring a head; empty without adapters."""
    first = next((path for path in paths if checkpoints.is_adapter(path)), None)
    if first is None:
        return {}
    return {name: tuple(x.shape) for name, x in checkpoints.read(checkpoints.adapter_file(first)).tensors.items()}


def likely_base(spec: StudySpec) -> Path | None:
    """A checkpoint at the top of the folder that is called like a base; None where there is none, or several."""
    found = [
        path
        for path in spec.models.iterdir()
        if any(word in path.name.lower() for word in _BASES)
        and (checkpoints.is_checkpoint_folder(path) or (path.is_file() and path.name.endswith(checkpoints.SUFFIXES)))
    ]
    return found[0] if len(found) == 1 else None


def first_readable(files: Mapping[str, Path], base: tuple[str, Path] | None, spec: StudySpec) -> checkpoints.Checkpoint:
    """The first ingredient that can be opened, or the base: what the others are like as well.

    Raises:
        CheckpointError: None can be opened; of the first, why.
    """
    problems: list[CheckpointError] = []
    for path in [*files.values(), *([base[1]] if base else [])]:
        try:
            return checkpoints.read(path, spec.weights)
        except CheckpointError as error:
            problems.append(error)
    raise problems[0]


def found_notices(spec: StudySpec, base: tuple[str, Path] | None) -> tuple[str, ...]:
    """What is to say of how the ingredients were found."""
    besides = None if base is None else base[1]
    return checkpoints.find_noted(spec.models, spec.ingredient_patterns, besides).notices


def _base_of(adapters: list[Path], pool: Path) -> Path:
    """The folder that peft adapters name as the model that they were trained on.

    Raises:
        CheckpointError: They name none that is here, or several.
    """
    named = {checkpoints.base_of_adapter(path) for path in adapters}
    places = [place for name in named if name for place in (Path(name), pool / name) if place.is_dir()]
    found = {place.resolve(): place for place in places if checkpoints.is_checkpoint_folder(place)}
    if len(found) == len(named) == 1:
        return next(iter(found.values()))
    said = names(sorted(short(name or "none") for name in named))
    raise CheckpointError(
        f"{names(path.name for path in adapters)}: peft adapters, which are no models by themselves, and the model "
        f"that they name ({said}) is no one folder here; give the model that they were trained on: --base FOLDER"
    )


def _base_file(spec: StudySpec) -> Path:
    # A base on the command line may be given from here, or by its name in the pool.
    given = spec.base or Path()
    for path in (given, spec.models / given):
        if path.is_file() or checkpoints.is_checkpoint_folder(path):
            return path
    raise CheckpointError(f"--base {given}: no such checkpoint, neither here nor in {spec.models}")
