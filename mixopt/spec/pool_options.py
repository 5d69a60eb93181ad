"""The options that name checkpoints, model and data, each once, as `mixopt.spec.options` has the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from mixopt.spec import checks
from mixopt.spec.checks import AUTO, FAMILIES
from mixopt.spec.data import DataSpec
from mixopt.spec.option import (
    DATA,
    EVERY,
    ONLY_SEARCH,
    OPENING,
    POOL,
    RUNS,
    SCORING,
    Option,
)

Positive = Annotated[int, Field(ge=1)]


class PoolFields(BaseModel):
    """The options of `mixopt.StudySpec` that say what is mixed, and what it is scored on; see `mixopt.spec.options`."""

    # The pool
    models: Annotated[
        Path,
        Option(
            "Folder with the checkpoints (and pool.toml).",
            POOL,
            (*RUNS, "evaluate"),
            common=True,
            otherwise={"evaluate": "Folder whose pool.toml describes the model."},
        ),
    ]
    family: Annotated[
        str,
        Option(
            f"{', '.join(FAMILIES)}, package.module:function, or auto: told by config files and names of tensors.",
            POOL,
            (*EVERY, "init"),
            common=True,
        ),
    ] = AUTO
    model: Annotated[
        str | None,
        Option("Architecture name, config file, or folder with one.", POOL, (*EVERY, "init"), common=True),
    ] = None
    image_size: Annotated[
        Positive | None,
        Option(
            "Height and width in pixels that images are brought to, for a model of timm's or torchvision's that was "
            "fine-tuned at another size than its own.",
            POOL,
            EVERY,
            default="the model's own",
        ),
    ] = None
    base: Annotated[
        Path | None, Option("The pretrained checkpoint; never an ingredient.", POOL, (*OPENING, "init"), common=True)
    ] = None
    ingredients: Annotated[
        checks.Ingredients,
        BeforeValidator(checks.ingredients_of),
        Option(
            "Glob of the ingredients' files (repeatable), or a number: search over the so many that rank first, or "
            "auto: over those that help by the gradient at the uniform soup.",
            POOL,
            OPENING,
            RUNS,
            otherwise={"compare": "Glob of the ingredients' files (repeatable)."},
            default="every checkpoint there but the base",
        ),
    ] = ()
    weights: Annotated[
        Literal["auto", "ema", "raw"],
        Option(
            "Which weights of a file that holds two sets: ema (averaged), raw (as trained), or auto (averaged where "
            "there are any).",
            POOL,
            SCORING,
        ),
    ] = "auto"
    # Data
    classnames: Annotated[
        tuple[str, ...] | None, Option("Class name, in the order of the labels (repeatable).", DATA, EVERY)
    ] = None
    templates: Annotated[
        tuple[str, ...] | None, Option("Prompt with {} for the class name (repeatable).", DATA, SCORING)
    ] = None
    data: DataSpec = Field(default_factory=DataSpec)
    limit: Annotated[
        Positive | None, Option("Use the first so many samples of the validation split.", DATA, SCORING)
    ] = None
    fields: Annotated[
        dict[str, str],
        BeforeValidator(checks.fields_of),
        Option(
            f"Which column of a file is what ({', '.join(checks.ROLES)}), where names are not the usual ones "
            "(repeatable, or with commas).",
            DATA,
            EVERY,
            metavar="ROLE=COLUMN,...",
        ),
    ] = Field(default_factory=dict)
    class_map: Annotated[
        Path | None,
        Option(
            "What the codes stand for that a split's classes are called by (wnids, numbers): lines of code and name, "
            "or a JSON file, such as a config.json with id2label.",
            DATA,
            EVERY,
            metavar="FILE",
        ),
    ] = None
    all_classes: Annotated[
        bool,
        Option("Score a test split that has some of the model's classes over all, not among those alone.", DATA, EVERY),
    ] = False
    holdout: Annotated[
        Annotated[float, Field(gt=0, lt=1)] | None,
        Option(
            "Let this share of --data select, each class in proportion, and use no more of it; for where a training "
            "set is all there is.",
            DATA,
            EVERY,
            metavar="SHARE",
        ),
    ] = None
    bad_samples: Annotated[
        Literal["error", "skip"],
        Option("Records that cannot be read: error, or skip, which leaves them out and counts them.", DATA, EVERY),
    ] = "error"
    select: Annotated[
        dict[str, tuple[Path, float]],
        BeforeValidator(checks.files_and_weights),
        Option(
            "A split that steers the search's trials beside the validation split, and its weight (repeatable; the rest "
            "of 1 is the validation split's).",
            DATA,
            ONLY_SEARCH,
            metavar="NAME=FILE:WEIGHT",
        ),
    ] = Field(default_factory=dict)
    shifts: Annotated[
        str,
        Option(
            "synthetic steers the trials by the selection images under five synthetic shifts as well, at weight 0.5 or "
            "synthetic:WEIGHT.",
            DATA,
            ONLY_SEARCH,
        ),
    ] = "none"
