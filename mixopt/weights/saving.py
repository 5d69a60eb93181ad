"""A mix to a saved model: exact weights, recipe, companions; and recipes back to weights, anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mixopt.errors import LISTED, CheckpointError, MixoptError, PoolError, names, short
from mixopt.listener import Listener
from mixopt.untrusted import refusing
from mixopt.untrusted.texts import json_of, read_text
from mixopt.values.recipe import Recipe
from mixopt.weights import checkpoints
from mixopt.weights.exact import build_exact
from mixopt.weights.reading import Reader
from mixopt.weights.recorded import as_in_files

METADATA_KEY = "mixopt"
# What a fused tensor can be saved in, by the names of recipes.
_SAVED = {str(dtype).removeprefix("torch."): dtype for dtype in checkpoints.DTYPES.values()}
STATISTICS_FILE = "batchnorm.safetensors"
STATISTICS_KEY = "images"


def load_recipe(path: Path) -> Recipe:
    """A recipe from ``recipe.json``, or from the header of a model that mixopt saved.

    Raises:
        MixoptError: No such file, or not a recipe.
    """
    with refusing(MixoptError, str(path), found="not a recipe", cure="name a recipe.json"):
        if not path.is_file():
            raise MixoptError(f"{path}: no such file; expected a recipe.json or a model.safetensors that mixopt made")
    if path.suffix == ".safetensors":
        text = checkpoints.metadata_of(path).get(METADATA_KEY)
        if text is None:
            raise MixoptError(f"{path}: this model carries no mixopt recipe; give the recipe.json")
        return Recipe.from_json(text, str(path))
    return Recipe.from_json(read_text(path, MixoptError, found="not a recipe.json"), str(path))


def family_in(text: str) -> str:
    """The name of the model family in a recipe's text, however damaged the rest of it is; empty where it says none."""
    try:
        return str(json_of(text, "", MixoptError)["family"]["name"])
    except (MixoptError, LookupError, TypeError):
        return ""


def save_model(
    path: Path, tensors: Mapping[str, Tensor], tied: Mapping[str, str], recipe: Recipe, limit: float = math.inf
) -> Path:
    """Write a fused model with its recipe in the header; the same recipe gives the same bytes.

    Args:
        path: The file; appears whole or not at all.
        tensors: Name to tensor.
        tied: Alias to name.
        recipe: What made it.
        limit: Bytes beyond which the model is written in several files, with an index beside them.

    Returns:
        The file to open: the path, or the index.
    """
    return checkpoints.write_parts(path, tensors, tied=tied, metadata={METADATA_KEY: recipe.to_json()}, limit=limit)


def fuse(
    recipe: Recipe,
    paths: Mapping[str, Path],
    reader: Reader,
    listener: Listener,
    statistics: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The exact fused state dict of a recipe, and its tied names, as the checkpoints' files name them.

    Args:
        recipe: What to build; its output hash is not looked at.
        paths: Column name to file, for the columns of `needed_columns`.
        reader: Opens a checkpoint.
        listener: Told about progress.
        statistics: The recomputed BatchNorm statistics that the recipe refers to, from `find_statistics`.

    Raises:
        PoolError: A file is not the recipe's checkpoint, or the statistics are not the recipe's.
    """
    own = dict(statistics or {})
    _check_statistics(recipe, own)
    tensors, tied = build_exact(
        recipe.mix,
        {column: paths[column] for column in needed_columns(recipe)},
        hashes=recipe.ingredients,
        dtypes=torch_dtypes(recipe.dtypes),
        reader=reader,
        progress=listener.progress,
    )
    if strange := [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]:
        raise PoolError(f"the BatchNorm statistics fit no tensor of the checkpoints: {names(strange)}")
    return as_in_files(tensors | own, tied, recipe)


def keep_statistics(folder: Path, draft: Recipe, statistics: Mapping[str, Tensor], images: int) -> Recipe:
    """Write a mix's recomputed BatchNorm statistics to a folder, for a recipe to refer to.

    Args:
        folder: Where the recipe will lie.
        draft: The recipe so far.
        statistics: From `mixopt.Objective.statistics`; none where the mix has none of its own, and then a file of an
            earlier recipe is removed.
        images: How many images they come from.

    Returns:
        The recipe with the reference.
    """
    path = folder / STATISTICS_FILE
    if not statistics:
        path.unlink(missing_ok=True)
        return replace(draft, statistics=None)
    checkpoints.write(path, statistics, tied={}, metadata={STATISTICS_KEY: str(images)})
    digest = checkpoints.content_hash(checkpoints.hash_tensors(statistics))
    return replace(draft, statistics={"file": STATISTICS_FILE, "hash": digest, "images": images})


def find_statistics(recipe: Recipe, folders: Sequence[Path]) -> dict[str, Tensor]:
    """The recomputed BatchNorm statistics that a recipe refers to; empty where it refers to none.

    Args:
        recipe: The recipe.
        folders: Where to look: for the file's name first, then for others like it that hold the same.

    Raises:
        CheckpointError: They are in none of the folders.
    """
    if recipe.statistics is None:
        return {}
    file, digest = str(recipe.statistics["file"]), str(recipe.statistics["hash"])
    others = []
    for folder in dict.fromkeys(folders):
        alike = sorted(folder.glob("*batchnorm*.safetensors"))
        for path in dict.fromkeys([folder / file, *alike]):
            if not path.is_file():
                continue
            try:
                tensors = checkpoints.read(path).tensors
            except CheckpointError as error:
                others.append(str(error))
                continue
            found = checkpoints.content_hash(checkpoints.hash_tensors(tensors))
            if found == digest:
                return tensors
            others.append(f"{path} holds others ({found[:12]})")
    looked = names([str(folder) for folder in dict.fromkeys(folders)]) or "no folder"
    raise CheckpointError(
        f"the recipe's recomputed BatchNorm statistics, {file} (content hash {digest[:12]}), were not found in {looked}"
        f"{'; ' + '; '.join(others[:5]) if others else ''}; copy {file} from the run folder to "
        "beside the recipe, or name its folder with --models"
    )


def needed_columns(recipe: Recipe) -> tuple[str, ...]:
    """The columns whose checkpoints are needed, in column order."""
    wanted = {*recipe.mix.support(), *([recipe.buffers_from] if recipe.buffers_from else [])}
    return tuple(column for column in recipe.mix.columns if column in wanted)


def with_output(draft: Recipe, tensors: Mapping[str, Tensor]) -> Recipe:
    """The recipe with the content hash of what it gave."""
    return replace(draft, output_hash=checkpoints.content_hash(checkpoints.hash_tensors(tensors)))


def check_output(recipe: Recipe, tensors: Mapping[str, Tensor], where: str) -> None:
    """Compare a state dict with the recipe's output hash.

    Raises:
        PoolError: They differ.
    """
    found = checkpoints.content_hash(checkpoints.hash_tensors(tensors))
    if found != recipe.output_hash:
        raise PoolError(
            f"{where}: its weights are not those of the recipe (expected output hash {recipe.output_hash[:12]}, "
            f"found {found[:12]})"
        )


def locate(recipe: Recipe, folders: Sequence[Path], reader: Reader, listener: Listener) -> dict[str, Path]:
    """Find a recipe's checkpoints by content: files of the column's name first, then all others.

    Raises:
        CheckpointError: Some are nowhere in the folders.
    """
    missing = {recipe.ingredients[column]: column for column in needed_columns(recipe)}
    found: dict[str, Path] = {}
    unread: list[str] = []
    for folder in folders:
        files = checkpoints.find_below(folder)
        wanted = set(missing.values())
        files.sort(key=lambda path: not any(path.name.startswith(Path(column).name) for column in wanted))
        for number, path in enumerate(files):
            if not missing:
                break
            listener.progress(f"looking for checkpoints in {folder}", number, len(files))
            try:
                digest = checkpoints.content_hash(checkpoints.hash_tensors(reader(path).tensors))
            except CheckpointError as error:
                unread.append(str(error))  # some other file, or one that is then told with what is missing
                continue
            if digest in missing:
                found[missing.pop(digest)] = path
    if missing:
        looked = names([str(folder) for folder in folders]) or "no folder"
        lost = [f"{column} (content hash {digest[:12]})" for digest, column in missing.items()]
        raise CheckpointError(
            f"{len(missing)} of the recipe's checkpoints were not found in {looked}: {names(lost)}; "
            "name their folder with --models" + "".join(f"\nNot read: {each}" for each in unread[:LISTED])
        )
    return found


def _check_statistics(recipe: Recipe, statistics: Mapping[str, Tensor]) -> None:
    expected = "none" if recipe.statistics is None else str(recipe.statistics["hash"])
    found = checkpoints.content_hash(checkpoints.hash_tensors(statistics)) if statistics else "none"
    if found != expected:
        raise PoolError(
            f"the BatchNorm statistics are not those of the recipe (expected content hash {expected[:12]}, "
            f"found {found[:12]})"
        )


def compact_dtypes(dtypes: Mapping[str, torch.dtype]) -> dict[str, str]:
    """Tensor name to dtype, as text: the commonest under ``*``, the others by name."""
    text = {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items()}
    counted = list(text.values())
    common = max(sorted(set(counted)), key=counted.count)
    return {"*": common, **{name: dtype for name, dtype in sorted(text.items()) if dtype != common}}


def torch_dtypes(compact: Mapping[str, str]) -> dict[str, torch.dtype]:
    """What `compact_dtypes` wrote, as torch dtypes; ``*`` stays as a key.

    Raises:
        MixoptError: A name that is not a dtype.
    """
    if unknown := [name for name, text in compact.items() if text not in _SAVED]:
        name = unknown[0]
        raise MixoptError(
            f"recipe: unknown dtype {short(repr(compact[name]))} of {short(name)}; expected {', '.join(_SAVED)}"
        )
    return {name: _SAVED[text] for name, text in compact.items()}
