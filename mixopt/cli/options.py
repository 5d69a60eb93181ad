"""The options that commands share, each written once: its type, its help, its panel; and how some are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

POOL = "The pool"
DATA = "Data"
CHOICE = "The choice"
SEARCH = "The search"
RUN = "The run"


def option(panel: str, text: str, *flags: str, **more: Any) -> Any:
    """An option whose default stands in its help: None means not given, and `mixopt.spec` knows what then.

    Args:
        panel: The heading that it stands under.
        text: Its help.
        *flags: Its names, where they are not that of the parameter.
        **more: Passed on to ``typer.Option``.
    """
    return typer.Option(*flags, help=text, rich_help_panel=panel, show_default=False, **more)


Models = Annotated[Path | None, option(POOL, "Folder with the checkpoints (and pool.toml).")]
Family = Annotated[str | None, option(POOL, "open_clip, or package.module:function.")]
Model = Annotated[str | None, option(POOL, "Architecture name or config file.")]
Base = Annotated[Path | None, option(POOL, "The pretrained checkpoint; never an ingredient.")]
Ingredients = Annotated[
    list[str] | None,
    option(
        POOL,
        "Glob of the ingredients' files (repeatable), or a number: search over the so many that rank first, or auto: "
        "over those that help by the gradient at the uniform soup.",
    ),
]

IngredientFiles = Annotated[list[str] | None, option(POOL, "Glob of the ingredients' files (repeatable).")]

Classnames = Annotated[list[str] | None, option(DATA, "Class name, in the order of the labels (repeatable).")]
Templates = Annotated[list[str] | None, option(DATA, "Prompt with {} for the class name (repeatable).")]
Data = Annotated[Path | None, option(DATA, "The split that selects: .npz, or a folder of class folders.")]
Test = Annotated[list[str] | None, option(DATA, "A split that is only reported (repeatable).", metavar="NAME=FILE")]
Select = Annotated[
    list[str] | None,
    option(
        DATA,
        "A split that steers the search's trials beside the selection split, and its weight (repeatable; the rest of "
        "1 is the selection split's).",
        metavar="NAME=FILE:WEIGHT",
    ),
]
Shifts = Annotated[
    str | None,
    option(
        DATA,
        "synthetic steers the trials by the selection images under five synthetic shifts as well, at weight 0.5 or "
        "synthetic:WEIGHT. (default: none)",
    ),
]
Pareto = Annotated[
    bool | None,
    option(
        DATA,
        "The sampler is told the signal on each split that steers, not their weighted mean, and looks for the front; "
        "the best of the front by the weighted mean go to the last choice. (default: no)",
        "--pareto/--no-pareto",
    ),
]
Limit = Annotated[int | None, option(DATA, "Use the first so many images of the selection split.")]

Metric = Annotated[str | None, option(CHOICE, "accuracy, nll or balanced_accuracy. (default: accuracy)")]
From = Annotated[
    list[str] | None,
    option(
        CHOICE,
        "Rows or checkpoints whose mixes take the place of the ingredients: soups of soups (repeatable, or with "
        "commas).",
        "--from",
        metavar="ROW,...",
    ),
]
GreedyRule = Annotated[str | None, option(CHOICE, "at-least (the paper's >=) or strict (>). (default: at-least)")]
BatchNorm = Annotated[
    str | None,
    option(
        CHOICE,
        "BatchNorm statistics of a mix: average (of the checkpoints'), recompute (from selection images), or auto "
        "(the better of the two on the uniform soup). (default: auto)",
        "--batchnorm",
    ),
]

Confirm = Annotated[
    float | None,
    option(CHOICE, "The share of the selection split that steers nothing, and decides last. (default: 0.2)"),
]
Study = Annotated[Path | None, option(RUN, "A study.toml with these options as keys.")]
Seed = Annotated[int | None, option(RUN, "Of everything random. (default: 0)")]
Device = Annotated[str | None, option(RUN, "auto, cpu, cuda, cuda:1. (default: auto)")]
BatchSize = Annotated[int | None, option(RUN, "Images per forward pass; chosen by device.")]
Precision = Annotated[
    str | None,
    option(
        RUN,
        "Of forward passes: fp32, bf16, fp16, or auto (the fastest that was measured to agree with fp32). (default: "
        "auto)",
    ),
]
Compile = Annotated[
    bool | None,
    option(RUN, "Run forward passes through torch.compile; for long runs. (default: no)", "--compile/--no-compile"),
]
Stack = Annotated[
    str | None,
    option(
        RUN,
        "How checkpoints are kept while searching: fp32, bf16 (differences from a centre: half the memory), or auto "
        "(fp32, unless bf16 alone fits). (default: auto)",
    ),
]
Dtype = Annotated[
    str | None,
    option(RUN, "Of the saved model: ingredients (as theirs), fp32, fp16 or bf16. (default: ingredients)"),
]
Cache = Annotated[Path | None, option(RUN, "Decoded splits and outcomes. (default: $XDG_CACHE_HOME/mixopt)")]
Out = Annotated[Path | None, option(RUN, "The run folder. (default: runs/<pool folder name>)")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and the result only.", rich_help_panel=RUN)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=RUN)]


def split_ingredients(values: list[str] | None) -> tuple[list[str] | None, int | str | None]:
    """Globs, and the number or ``auto`` where one was given."""
    if not values:
        return None, None
    numbers = [int(value) if value.isdigit() else value for value in values if value.isdigit() or value == "auto"]
    patterns = [value for value in values if not value.isdigit() and value != "auto"]
    return patterns or None, numbers[-1] if numbers else None


def splits_of(selection: Path | None, tests: list[str] | None) -> dict[str, Any] | None:
    """The ``data`` of a study, from ``--data`` and every ``--test``.

    Raises:
        typer.BadParameter: A test split without a name or a file.
    """
    found: dict[str, Any] = {}
    if selection is not None:
        found["validation"] = selection
    if tests:
        found["test"] = {name: Path(file) for name, file in named("--test", tests, "NAME=FILE").items()}
    return found or None


def named(flag: str, values: list[str], form: str) -> dict[str, str]:
    """Values by the name that stands before each, as in NAME=FILE.

    Raises:
        typer.BadParameter: One without a name or a value.
    """
    pairs = [value.partition("=") for value in values]
    if wrong := [name for name, sign, value in pairs if not (name and sign and value)]:
        raise typer.BadParameter(f"{flag} {wrong[0]}: expected {form}")
    return {name: value for name, _, value in pairs}


def select_of(values: list[str] | None) -> dict[str, str] | None:
    """The ``select`` of a study, from every ``--select``.

    Raises:
        typer.BadParameter: One without a name or a file.
    """
    return named("--select", values, "NAME=FILE:WEIGHT") if values else None
