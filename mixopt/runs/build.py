"""Build: a fused model again from its recipe."""

from __future__ import annotations

from pathlib import Path

from mixopt.errors import about
from mixopt.files import MERGED, remove_leftovers, write_text
from mixopt.listener import Listener
from mixopt.runs.folder import RunFolder
from mixopt.runs.mergekit import as_mergekit
from mixopt.runs.replacing import check_replaceable
from mixopt.weights import checkpoints, saving
from mixopt.weights.recorded import reader_for


def build(
    recipe: str | Path,
    output: str | Path,
    *,
    models: str | Path | None = None,
    verify: bool = False,
    force: bool = False,
    yaml: bool = False,
    listener: Listener | None = None,
) -> Path:
    """Rebuild a fused model from its recipe, wherever its checkpoints are: the same bytes as the run's.

    Args:
        recipe: A recipe.json, or a model that mixopt saved.
        output: The file to write.
        models: The folder of the checkpoints; by default the one that the run used, then the recipe's own.
        verify: Read the written file back and compare it with the output hash as well.
        force: Replace the output also where it is one of the checkpoints, or a file that mixopt did not write.
        yaml: Write a configuration of mergekit that gives the same mix, in place of the model.
        listener: Told about progress.

    Raises:
        MixoptError: Not a recipe, checkpoints that are not found, an output that would replace something else, or other
            weights than the recipe promises.
    """
    source, target, heard = Path(recipe), Path(output), listener or Listener()
    loaded = saving.load_recipe(source)
    folders = [Path(models)] if models is not None else _likely_folders(source)
    statistics = saving.find_statistics(loaded, [source.parent, *folders])
    kind = ".yaml" if yaml else ".safetensors"
    if not force:
        check_replaceable(target, kind, [source], "-o")
    reader = reader_for(loaded)
    paths = saving.locate(loaded, folders, reader, heard)
    if not force:
        check_replaceable(target, kind, paths.values(), "-o")
    if yaml:
        folders_of = {column: path if path.is_dir() else path.parent for column, path in paths.items()}
        write_text(target, as_mergekit(loaded, folders_of))
        return target
    remove_leftovers(target.parent, target.name)
    with about(str(source)):
        tensors, tied = saving.fuse(loaded, paths, reader, heard, statistics)
    saving.check_output(loaded, tensors, str(target))
    saving.save_model(target, tensors, tied, loaded)
    if verify:
        saving.check_output(loaded, checkpoints.read(target).tensors, str(target))
    return target


def _likely_folders(recipe: Path) -> list[Path]:
    """Where a recipe's checkpoints may be: the pool of the run beside it, its own folder, what that run merged."""
    run = RunFolder(recipe.parent)
    merged = None if (cache := run.cache()) is None else cache / MERGED
    return [folder for folder in (run.models(), recipe.parent, merged) if folder is not None and folder.is_dir()]
