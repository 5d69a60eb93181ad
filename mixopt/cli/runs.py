"""Commands that make a run folder: search, compare, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixopt.cli import options as shared
from mixopt.cli.exits import EXIT_SOME_FAILED, run_command
from mixopt.cli.options import CHOICE, RUN, SEARCH, option, select_of, split_ingredients, splits_of
from mixopt.cli.screen import Screen
from mixopt.cli.show import show_comparison, show_run

# Written out, because looking them up would import torch; a test compares.
METHODS = (
    "ensemble, greedy, greedy_ensemble, individual, learned, learned_by_layer, lines, manifold, model_stock, "
    "task_arithmetic, trajectory, uniform, wise_ft"
)
SEARCH_RESUMES = "; finished trials are kept: the same command again goes on from here"
COMPARE_RESUMES = "; scores so far are kept: the same command again goes on from here"


def search(
    models: shared.Models = None,
    trials: Annotated[int | None, option(SEARCH, "Complete trials in all, the start included. (default: 200)")] = None,
    preset: Annotated[
        str | None,
        option(SEARCH, "fast (30 trials), default, or thorough (1,000); other options win over it. (default: default)"),
    ] = None,
    study: shared.Study = None,
    family: shared.Family = None,
    model: shared.Model = None,
    base: shared.Base = None,
    ingredients: shared.Ingredients = None,
    classnames: shared.Classnames = None,
    templates: shared.Templates = None,
    data: shared.Data = None,
    test: shared.Test = None,
    limit: shared.Limit = None,
    select: shared.Select = None,
    shifts: shared.Shifts = None,
    pareto: shared.Pareto = None,
    metric: shared.Metric = None,
    from_: shared.From = None,
    greedy_rule: shared.GreedyRule = None,
    batchnorm: shared.BatchNorm = None,
    confirm: shared.Confirm = None,
    refit: Annotated[
        str | None,
        option(
            CHOICE, "on learns a learned start again from all samples, after the last choice; or off. (default: on)"
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        option(
            SEARCH,
            "cmaes, tpe, gp, random, package.module:Class, nsgaii (with --pareto alone), or auto: cmaes, or nsgaii "
            "with --pareto. (default: auto)",
        ),
    ] = None,
    population: Annotated[int | None, option(SEARCH, "Trials asked at a time; the sampler's own.")] = None,
    groups: Annotated[
        str | None,
        option(SEARCH, "whole, block, tensor, a number of depth segments, or a .toml of regular expressions."),
    ] = None,
    space: Annotated[
        str | None,
        option(
            SEARCH,
            "residual (from the start towards the other baselines), simplex, affine, shared, depth, or auto: residual, "
            "but with --groups, --ingredients or --from simplex (affine, if the start has negative entries). (default: "
            "auto)",
        ),
    ] = None,
    refine: Annotated[
        int | None,
        option(
            SEARCH,
            "The last half of the trials moves the rows of the so many layer groups that matter most, around the best "
            "trial so far.",
            metavar="N",
        ),
    ] = None,
    race: Annotated[
        str | None, option(SEARCH, "on gives up trials that will not reach the best so far; or off. (default: on)")
    ] = None,
    signal: Annotated[
        str | None, option(SEARCH, "What the sampler is told: metric, or smooth (less the loss). (default: smooth)")
    ] = None,
    radius: Annotated[
        float | None, option(SEARCH, "How far a coefficient is pushed at the edge of the box; by space, 0.5 or 0.1.")
    ] = None,
    start: Annotated[
        str | None,
        option(
            SEARCH,
            "best (baseline), individual, uniform, greedy, learned (by gradient), or a recipe.json. (default: best)",
        ),
    ] = None,
    timeout: Annotated[float | None, option(SEARCH, "Start no trial after so many seconds.")] = None,
    seed: shared.Seed = None,
    device: shared.Device = None,
    batch_size: shared.BatchSize = None,
    precision: shared.Precision = None,
    compile_: shared.Compile = None,
    stack: shared.Stack = None,
    dtype: shared.Dtype = None,
    cache: shared.Cache = None,
    out: shared.Out = None,
    storage: Annotated[str | None, option(RUN, "Optuna storage URL in place of the run folder's journal.")] = None,
    quiet: shared.Quiet = False,
    as_json: shared.AsJson = False,
) -> None:
    """Find the best mix of a pool: the main job."""
    patterns, top = split_ingredients(ingredients)
    options = {
        "trials": trials, "preset": preset, "family": family, "model": model, "base": base, "ingredients": patterns,
        "top": top, "classnames": classnames, "templates": templates, "data": splits_of(data, test),
        "limit": limit, "select": select_of(select), "shifts": shifts, "pareto": pareto,
        "metric": metric, "sources": from_, "greedy_rule": greedy_rule, "batchnorm": batchnorm, "confirm": confirm,
        "refit": refit,
        "sampler": sampler, "population": population, "groups": groups, "space": space, "race": race,
        "refine": refine, "signal": signal, "radius": radius, "start": start, "timeout": timeout, "seed": seed,
        "device": device, "batch_size": batch_size, "precision": precision, "compile": compile_, "stack": stack,
        "dtype": dtype, "cache": cache, "out": out, "storage": storage,
    }  # fmt: skip

    def work(screen: Screen) -> None:
        import mixopt

        with screen.listening() as listener:
            result = mixopt.search(models, study=study, listener=listener, **options)
        show_run(screen, result.report, result.folder)

    run_command(work, quiet, as_json, resume=SEARCH_RESUMES)


def compare(
    models: shared.Models = None,
    methods: Annotated[
        list[str] | None,
        option(
            CHOICE,
            "Rows of the table, each method or method:variant (repeatable, or with commas). (default: all)",
            metavar="ROW,...",
        ),
    ] = None,
    study: shared.Study = None,
    family: shared.Family = None,
    model: shared.Model = None,
    base: shared.Base = None,
    ingredients: shared.IngredientFiles = None,
    classnames: shared.Classnames = None,
    templates: shared.Templates = None,
    data: shared.Data = None,
    test: shared.Test = None,
    limit: shared.Limit = None,
    metric: shared.Metric = None,
    from_: shared.From = None,
    greedy_rule: shared.GreedyRule = None,
    batchnorm: shared.BatchNorm = None,
    confirm: shared.Confirm = None,
    seed: shared.Seed = None,
    device: shared.Device = None,
    batch_size: shared.BatchSize = None,
    precision: shared.Precision = None,
    compile_: shared.Compile = None,
    stack: shared.Stack = None,
    dtype: shared.Dtype = None,
    cache: shared.Cache = None,
    out: shared.Out = None,
    quiet: shared.Quiet = False,
    as_json: shared.AsJson = False,
) -> None:
    """Put every method in one table, with intervals and paired tests (exit code 3 where some of them failed)."""
    patterns, number = split_ingredients(ingredients)
    if number is not None:
        raise typer.BadParameter(
            f"--ingredients {number}: a number is for mixopt search; here a row takes so many: --methods "
            f"uniform:top={number}"
        )
    options = {
        "methods": methods, "family": family, "model": model, "base": base, "ingredients": patterns,
        "classnames": classnames, "templates": templates, "data": splits_of(data, test), "limit": limit,
        "metric": metric, "sources": from_, "greedy_rule": greedy_rule, "batchnorm": batchnorm, "confirm": confirm,
        "seed": seed, "device": device, "batch_size": batch_size, "precision": precision, "compile": compile_,
        "stack": stack, "dtype": dtype, "cache": cache, "out": out,
    }  # fmt: skip

    def work(screen: Screen) -> None:
        import mixopt

        with screen.listening() as listener:
            result = mixopt.compare(models, study=study, listener=listener, **options)
        show_comparison(screen, result.report, result.failed, result.folder)
        if result.failed:
            raise typer.Exit(EXIT_SOME_FAILED)

    run_command(work, quiet, as_json, resume=COMPARE_RESUMES)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pool and the run.", rich_help_panel=RUN)] = Path(
        "runs/demo"
    ),
    trials: Annotated[int, typer.Option(help="Complete trials in all.", min=1, rich_help_panel=SEARCH)] = 200,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0, rich_help_panel=RUN)] = 0,
    cache: shared.Cache = None,
    quiet: shared.Quiet = False,
    as_json: shared.AsJson = False,
) -> None:
    """Make a small real pool of digit classifiers, search it, show the table: the 3-minute tour."""

    def work(screen: Screen) -> None:
        import mixopt
        from mixopt import demo as making

        with screen.listening() as listener:
            pool = making.ensure_pool(out / "pool", seed=seed, progress=listener.progress)
            with making.one_thread():
                # Not by measurement: the tour shows the same table everywhere.
                result = mixopt.search(
                    pool,
                    out=out / "run",
                    trials=trials,
                    seed=seed,
                    precision="fp32",
                    cache=cache,
                    listener=listener,
                )
        show_run(screen, result.report, result.folder)
        if not as_json:
            screen.out(f"Next: mixopt compare --models {pool} for every published recipe, mixopt inspect {pool}, or")
            screen.out(f"more trials: mixopt search --models {pool} --out {result.folder} --trials {2 * trials}")

    run_command(work, quiet, as_json, resume=f"{SEARCH_RESUMES}, or makes the pool anew where that was not done")
