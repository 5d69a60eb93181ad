"""Commands that look at what is there, a model, a pool or a run: build, evaluate, inspect, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixopt.cli import options as shared
from mixopt.cli.exits import EXIT_BAD_INPUT, run_command
from mixopt.cli.options import POOL, option, split_ingredients, splits_of
from mixopt.cli.screen import Screen
from mixopt.cli.show import show_pool, show_report, show_splits


def build(
    recipe: Annotated[Path, typer.Argument(help="A recipe.json, or a model that mixopt saved.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.")],
    models: Annotated[
        Path | None,
        typer.Option(help="Folder of the checkpoints, if it has moved since the run.", show_default=False),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read the file back and check its output hash.")] = False,
    quiet: shared.Quiet = False,
    as_json: shared.AsJson = False,
) -> None:
    """Rebuild a fused model from its recipe, anywhere its checkpoints are."""

    def work(screen: Screen) -> None:
        import mixopt

        with screen.listening() as listener:
            path = mixopt.build(recipe, output, models=models, verify=verify, listener=listener)
        if as_json:
            screen.json({"model": str(path), "verified": verify})
        else:
            screen.out(f"wrote {path}{'; its weights are those of the recipe' if verify else ''}")

    run_command(work, quiet, as_json)


def evaluate(
    model_file: Annotated[Path, typer.Argument(metavar="MODEL", help="A checkpoint.")],
    data: shared.Data = None,
    test: shared.Test = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check its output hash against its recipe first.")] = False,
    models: Annotated[Path | None, option(POOL, "Folder whose pool.toml describes the model.")] = None,
    family: shared.Family = None,
    model: shared.Model = None,
    classnames: shared.Classnames = None,
    templates: shared.Templates = None,
    limit: shared.Limit = None,
    metric: shared.Metric = None,
    device: shared.Device = None,
    batch_size: shared.BatchSize = None,
    precision: Annotated[
        str | None, option(shared.RUN, "Of forward passes: fp32, bf16 or fp16. (default: fp32)")
    ] = None,
    compile_: shared.Compile = None,
    cache: shared.Cache = None,
    quiet: shared.Quiet = False,
    as_json: shared.AsJson = False,
) -> None:
    """Score one checkpoint; one that mixopt saved knows how."""
    options = {
        "data": splits_of(data, test), "models": models, "family": family, "model": model, "classnames": classnames,
        "templates": templates, "limit": limit, "metric": metric, "device": device, "batch_size": batch_size,
        "precision": precision, "compile": compile_, "cache": cache,
    }  # fmt: skip

    def work(screen: Screen) -> None:
        import mixopt

        with screen.listening() as listener:
            result = mixopt.evaluate(model_file, verify=verify, listener=listener, **options)
        show_splits(screen, result)

    run_command(work, quiet, as_json)


def inspect(
    models: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with the checkpoints.")],
    family: shared.Family = None,
    model: shared.Model = None,
    base: shared.Base = None,
    ingredients: shared.Ingredients = None,
    classnames: shared.Classnames = None,
    data: shared.Data = None,
    test: shared.Test = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Layer groups to show, as for search. (default: block)", show_default=False),
    ] = None,
    cache: shared.Cache = None,
    quiet: shared.Quiet = False,
    as_json: shared.AsJson = False,
) -> None:
    """What is in a pool, and what is wrong with it (exit code 2 where something is)."""
    patterns, _ = split_ingredients(ingredients)
    options = {
        "family": family, "model": model, "base": base, "ingredients": patterns, "classnames": classnames,
        "data": splits_of(data, test), "groups": groups, "cache": cache,
    }  # fmt: skip

    def work(screen: Screen) -> None:
        import mixopt

        with screen.listening() as listener:
            found = mixopt.inspect(models, listener=listener, **options)
        show_pool(screen, found)
        if found["problems"]:
            raise typer.Exit(EXIT_BAD_INPUT)

    run_command(work, quiet, as_json)


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="The --out of a search or a comparison.")],
    html: Annotated[
        Path | None,
        typer.Option(help="Write tables and pictures as one page to this file.", metavar="FILE", show_default=False),
    ] = None,
    quiet: shared.Quiet = False,
    as_json: shared.AsJson = False,
) -> None:
    """Show the tables of a run again, or make a page of them with pictures."""

    def work(screen: Screen) -> None:
        import mixopt

        with screen.listening() as listener:
            found = mixopt.report(folder, html=html, listener=listener)
        show_report(screen, found, folder)

    run_command(work, quiet, as_json)
