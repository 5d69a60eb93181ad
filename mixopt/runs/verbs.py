"""The verbs that leave no run: build, evaluate, inspect, report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.assemble import (
    family_of,
    family_of_recipe,
    ingredient_files,
    limit_threads,
    open_pool_of,
    open_splits,
    resolve_device,
)
from mixopt.errors import MixoptError, RunError, SpecError
from mixopt.families import Family
from mixopt.files import write_text
from mixopt.listener import Listener
from mixopt.reporting import page as pages
from mixopt.runs.export import score_checkpoint
from mixopt.runs.folder import RunFolder
from mixopt.scoring.evaluator import FP32, Evaluator
from mixopt.spec import AUTO, POOL_FILE, DataSpec, StudySpec, load_spec
from mixopt.study import read_trials
from mixopt.values.samples import VALIDATION
from mixopt.weights import checkpoints, saving
from mixopt.weights.inspection import describe_pool


def build(
    recipe: str | Path,
    output: str | Path,
    *,
    models: str | Path | None = None,
    verify: bool = False,
    listener: Listener | None = None,
) -> Path:
    """Rebuild a fused model from its recipe, wherever its checkpoints are: the same bytes as the run's.

    Args:
        recipe: A recipe.json, or a model that mixopt saved.
        output: The safetensors file to write.
        models: The folder of the checkpoints; by default the one that the run used, then the recipe's own.
        verify: Read the written file back and compare it with the output hash as well.
        listener: Told about progress.

    Raises:
        MixoptError: Not a recipe, checkpoints that are not found, or other weights than the recipe promises.
    """
    source, target = Path(recipe), Path(output)
    loaded = saving.load_recipe(source)
    folders = [Path(models)] if models is not None else _likely_folders(source)
    statistics = saving.find_statistics(loaded, [source.parent, *folders])
    paths = saving.locate(loaded, folders, checkpoints.read)
    tensors, tied = saving.fuse(loaded, paths, checkpoints.read, listener or Listener(), statistics)
    saving.check_output(loaded, tensors, str(target))
    saving.save_model(target, tensors, tied, loaded)
    if verify:
        saving.check_output(loaded, checkpoints.read(target).tensors, str(target))
    return target


def evaluate(
    checkpoint: str | Path, *, verify: bool = False, listener: Listener | None = None, **options: Any
) -> dict[str, Any]:
    """Score one checkpoint.

    Args:
        checkpoint: The file; for one that mixopt saved, the recipe in it says how to make the model.
        verify: Compare its weights with the recipe's output hash first.
        listener: Told about notices.
        **options: Fields of `mixopt.StudySpec`: ``data`` (``search`` and ``test``) at least; ``models`` for a
            folder whose pool.toml describes the model. ``precision`` is fp32 unless it says otherwise.

    Returns:
        ``{"model": ..., "metric": ..., "splits": {name: {"samples": n, "metrics": {...}}}, "verified": ...}``; the
        split given as ``data`` is named by its file.

    Raises:
        MixoptError: Bad input.
    """
    path, heard = Path(checkpoint), listener or Listener()
    opened = checkpoints.read(path)
    given = {key: value for key, value in options.items() if value is not None}
    spec = load_spec({"models": path.parent, **given})
    if "data" in given:
        spec = spec.model_copy(update={"data": DataSpec.model_validate(given["data"])})
    called = spec.data.validation.stem if spec.data.validation else VALIDATION
    if called in spec.data.test:
        called = VALIDATION
    recipe = saving.load_recipe(path) if saving.METADATA_KEY in opened.metadata else None
    if verify and recipe is None:
        raise MixoptError(f"{path}: --verify needs a model that mixopt saved; this one carries no recipe")
    if verify and recipe is not None:
        saving.check_output(recipe, opened.tensors, str(path))
    described = given.keys() & {"family", "model", "classnames", "templates", "models"}
    if recipe is not None and not described:
        family = family_of_recipe(recipe.family, path.parent)
        if family.identity() != recipe.family:
            heard.warn(f"{path}: its family {recipe.family['name']} has changed since the model was saved")
    else:
        family = family_of(spec)
    splits = open_splits(spec, family, heard)
    if not splits:
        raise SpecError("--data: give the split to score on (--data FILE), or --test NAME=FILE")
    device = resolve_device(spec.device)
    limit_threads(device)
    precision = FP32 if spec.precision == AUTO else spec.precision
    evaluators = {
        name: Evaluator(
            split,
            family.encoding,
            device,
            spec.batch_size,
            precision=precision,
            compiled=spec.compile,
            listener=heard,
        )
        for name, split in splits.items()
    }
    scored = score_checkpoint(opened, family, evaluators, device)
    return {
        "model": str(path),
        "metric": recipe.metric if recipe is not None and "metric" not in given else spec.metric,
        "splits": {
            called if name == VALIDATION else name: {"samples": len(outcomes), "metrics": metrics}
            for name, (outcomes, metrics) in scored.items()
        },
        "verified": verify,
    }


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
    if (spec.models / POOL_FILE).is_file() or options.get("family") is not None:
        try:
            family = family_of(spec)
            found["family"] = spec.family
        except MixoptError as error:
            problems.append(str(error))
    try:
        paths, base = ingredient_files(spec)
        found |= describe_pool(open_pool_of(family, heard, paths, base), spec.groups or "block")
    except MixoptError as error:
        problems.append(str(error))
    if family is not None:
        found["splits"] = _inspect_splits(spec, family, heard, problems)
    return found


def report(folder: str | Path, *, html: str | Path | None = None, listener: Listener | None = None) -> dict[str, Any]:
    """What a run found, from what its folder holds.

    Args:
        folder: The run folder.
        html: Write a page of its tables and pictures, which stands alone, to this file.
        listener: Told about notices.

    Returns:
        The content of report.json.

    Raises:
        RunError: Not a run folder, a run without a report yet, or a report of another version.
    """
    run, heard = RunFolder(Path(folder)), listener or Listener()
    found = run.finished_report()
    if not found.get("finished", True):
        heard.warn(f"{run.path}: the search was stopped before all its trials were complete")
    if html is not None:
        trials = _trials_of(run, heard) if found["command"] == "search" else []
        write_text(Path(html), pages.page(found, run.path.resolve().name, trials))
        heard.info(f"wrote {html}")
    return found


def _trials_of(run: RunFolder, listener: Listener) -> list[dict[str, Any]]:
    """The trials in a run's journal; where they are not to be had, none, and the reason is told."""
    left_out = "the picture of the search is left out: "
    if not run.journal.is_file():
        listener.warn(f"{left_out}{run.path} holds no journal; the study is in the run's --storage")
        return []
    try:
        trials = read_trials(run.journal)
    except RunError as error:
        listener.warn(f"{left_out}{error}")
        return []
    if not trials:
        listener.warn(f"{left_out}its trials have several values each; the Pareto front shows them")
    return trials


def _likely_folders(recipe: Path) -> list[Path]:
    """Where a recipe's checkpoints may be: the pool that the run beside it used, then its own folder."""
    models = RunFolder(recipe.parent).models()
    return [folder for folder in (models, recipe.parent) if folder is not None and folder.is_dir()]


def _inspect_splits(
    spec: StudySpec, family: Family, listener: Listener, problems: list[str]
) -> dict[str, Mapping[str, int]]:
    splits: dict[str, Mapping[str, int]] = {}
    for name, path in [(VALIDATION, spec.data.validation), *spec.data.test.items()]:
        if path is None:
            continue
        data = DataSpec(validation=path) if name == VALIDATION else DataSpec(test={name: path})
        try:
            split = open_splits(spec.model_copy(update={"data": data}), family, listener)[name]
        except MixoptError as error:
            problems.append(str(error))
        else:
            splits[name] = {"samples": len(split), "classes": len(np.unique(split.labels))}
    return splits
