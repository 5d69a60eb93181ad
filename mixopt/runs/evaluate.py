"""Evaluate: one checkpoint scored as it stands in its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from mixopt.assemble import functions_of, open_splits
from mixopt.assemble.family import family_of, family_of_recipe, refuse_family
from mixopt.errors import MixoptError, SpecError
from mixopt.imports import is_import_path
from mixopt.listener import Listener
from mixopt.runs.export import score_checkpoint
from mixopt.scoring.device import limit_threads, resolve_device
from mixopt.scoring.evaluator import FP32, Evaluator
from mixopt.scoring.own_objective import own_evaluator
from mixopt.spec import AUTO, DataSpec, load_spec
from mixopt.values.metrics import check_metric, metric_named
from mixopt.values.recipe import Recipe
from mixopt.values.samples import VALIDATION
from mixopt.weights import checkpoints, saving


def evaluate(
    checkpoint: str | Path, *, verify: bool = False, listener: Listener | None = None, **options: Any
) -> dict[str, Any]:
    """Score one checkpoint.

    Args:
        checkpoint: The file; for one that mixopt saved, the recipe in it says how to make the model.
        verify: Refuse one without a recipe, whose weights cannot be compared with their hash; others always are.
        listener: Told about notices.
        **options: Fields of `mixopt.StudySpec`: ``data`` (``search`` and ``test``) at least; ``models`` for a
            folder whose pool.toml describes the model; ``family`` where a recipe names a user's function, which is not
            imported because a file says so. ``precision`` is fp32 unless it says otherwise.

    Returns:
        ``{"model": ..., "metric": ..., "splits": {name: {"samples": n, "metrics": {...}}}, "verified": ...}``; the
        split given as ``data`` is named by its file.

    Raises:
        MixoptError: Bad input.
    """
    path, heard = Path(checkpoint), (listener or Listener()).once()
    opened = checkpoints.read(path)
    given = {key: value for key, value in options.items() if value is not None}
    spec = load_spec({"models": path.parent, **given})
    if spec.weights != "auto":
        opened = checkpoints.read(path, spec.weights)
    if "data" in given:
        # What a pool.toml says of holding out is of its own split.
        data = DataSpec.model_validate(given["data"])
        spec = spec.model_copy(update={"data": data, "holdout": given.get("holdout")})
    called = VALIDATION if spec.data.validation is None else _called(spec.data.validation)
    if called in spec.data.test:
        called = VALIDATION
    described = given.keys() & {"family", "model", "classnames", "templates", "models", "image_size"}
    recipe = _recipe_of(opened, given.get("family"), bool(described))
    if verify and recipe is None:
        raise MixoptError(f"{path}: --verify needs a model that mixopt saved; this one carries no recipe")
    if recipe is not None and (not described or (described == {"family"} and given["family"] == recipe.family["name"])):
        family = family_of_recipe(recipe.family, path, given.get("family"))
        if family.identity() != recipe.family:
            heard.warn(f"{path}: its family {recipe.family['name']} has changed since the model was saved")
    else:
        family = family_of(spec, heard, opened)
    splits = open_splits(spec, family, heard, selects=False)
    functions = functions_of(spec)
    if not splits and not functions:
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
            listener=heard,
        ).at(precision, spec.compile)
        for name, split in splits.items()
    }
    own = {name: own_evaluator(name, path, nn.Identity(), device, None) for name, path in functions.items()}
    metric = metric_named(recipe.metric if recipe is not None and "metric" not in given else spec.metric)
    if "metric" in given:
        for split in splits.values():
            check_metric(metric, split.labels, split.class_count, split.source)
    scored = score_checkpoint(opened, family, {**evaluators, **own}, device, metric, heard, spec.weights)
    return {
        "model": str(path),
        "metric": metric.name,
        "splits": {
            called if name == VALIDATION else name: {"samples": len(outcomes), "metrics": metrics}
            for name, (outcomes, metrics) in scored.items()
        },
        "verified": recipe is not None,
    }


def _recipe_of(opened: checkpoints.Checkpoint, trusted: str | None, is_described: bool) -> Recipe | None:
    """The recipe in a checkpoint's header, whose weights and family are what it says; None where there is none."""
    text = opened.metadata.get(saving.METADATA_KEY)
    if text is None:
        return None
    if not is_described:  # before anything else is said of it: what it would have run
        refuse_family(saving.family_in(text), opened.path, trusted)
    recipe = Recipe.from_json(text, str(opened.path))
    saving.check_output(recipe, opened.tensors, str(opened.path))
    return recipe


def _called(selection: Path) -> str:
    """What the split given as ``data`` is called: by its file, or by the user's own function."""
    return str(selection) if is_import_path(str(selection)) else selection.stem
