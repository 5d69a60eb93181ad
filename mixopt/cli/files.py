"""Commands that make no run folder: build, evaluate, init, inspect, diagnose, report, log."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import mixopt
from mixopt.cli.exits import EXIT_BAD_INPUT
from mixopt.cli.screen import Screen
from mixopt.cli.show import show_diagnosis, show_pool, show_report, show_splits
from mixopt.trackers import PROJECT, tracker_names

PAGE = "Write tables and pictures as one page to this file."
FORCE = "Replace the file also where mixopt did not write it, or reads it."


def build(
    screen: Screen,
    recipe: Annotated[Path, typer.Argument(help="A recipe.json, or a model that mixopt saved.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    models: Annotated[
        Path | None,
        typer.Option(help="Folder of the checkpoints, if it has moved since the run.", show_default=False),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read the file back and check its output hash.")] = False,
    yaml: Annotated[
        bool, typer.Option("--yaml", help="Write a configuration of mergekit that gives the same mix instead.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help=FORCE)] = False,
) -> None:
    """Rebuild a fused model from its recipe, anywhere its checkpoints are."""
    with screen.listening() as listener:
        path = mixopt.build(recipe, output, models=models, verify=verify, force=force, yaml=yaml, listener=listener)
    if screen.as_json:
        screen.json({"model": str(path), "verified": verify})
    else:
        screen.out(f"wrote {path}{'; its weights are those of the recipe' if verify else ''}")


def evaluate(
    screen: Screen,
    model_file: Annotated[Path, typer.Argument(metavar="MODEL", help="A checkpoint.")],
    verify: Annotated[bool, typer.Option("--verify", help="Refuse a model without a recipe.")] = False,
    **options: Any,
) -> None:
    """Score one checkpoint; one that mixopt saved knows how."""
    with screen.listening() as listener:
        result = mixopt.evaluate(model_file, verify=verify, listener=listener, **options)
    show_splits(screen, result)


def init(
    screen: Screen,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with the checkpoints.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a pool.toml that is there.")] = False,
    **options: Any,
) -> None:
    """Write the pool.toml of a folder: its model, base and splits, as far as these can be told."""
    with screen.listening() as listener:
        path = mixopt.init(folder, force=force, listener=listener, **options)
    text = path.read_text(encoding="utf-8")
    if screen.as_json:
        screen.json({"file": str(path), "content": text})
    else:
        screen.out(f"wrote {path}:\n\n{text}")


def inspect(
    screen: Screen,
    folder: Annotated[Path, typer.Argument(metavar="PATH", help="Folder with the checkpoints, or one of them.")],
    **options: Any,
) -> None:
    """What is in a pool, and what is wrong with it (exit code 2 where something is)."""
    with screen.listening() as listener:
        found = mixopt.inspect(folder, listener=listener, **options)
    show_pool(screen, found)
    if found["problems"]:
        raise typer.Exit(EXIT_BAD_INPUT)


def diagnose(
    screen: Screen,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with the checkpoints.")],
    html: Annotated[Path | None, typer.Option(help=PAGE, metavar="FILE", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help=FORCE)] = False,
    **options: Any,
) -> None:
    """Why soups fail in a pool: every checkpoint alone, and the mixes half-way between each two."""
    with screen.listening() as listener:
        found = mixopt.diagnose(folder, html=html, force=force, listener=listener, **options)
    show_diagnosis(screen, found, folder)


def report(
    screen: Screen,
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN_FOLDER...", help="The --out of a search or a comparison; or several.")
    ],
    html: Annotated[Path | None, typer.Option(help=PAGE, metavar="FILE", show_default=False)] = None,
    png: Annotated[
        Path | None,
        typer.Option(help="Write every picture as a PNG file into this folder.", metavar="DIR", show_default=False),
    ] = None,
    pdf: Annotated[
        Path | None,
        typer.Option(help="Write every picture as a page of this file.", metavar="FILE", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help=FORCE)] = False,
) -> None:
    """Show the tables of a run again, or make a page or files of its pictures; of several runs, side by side."""
    with screen.listening() as listener:
        found = mixopt.report(*folders, html=html, png=png, pdf=pdf, force=force, listener=listener)
        others = [mixopt.report(each) for each in folders[1:]]
    if screen.as_json and others:
        screen.json([each.as_dict() for each in (found, *others)])
        return
    for each, folder in zip((found, *others), folders, strict=True):
        show_report(screen, each, folder)


def log(
    screen: Screen,
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="The --out of a search or a comparison.")],
    to: Annotated[str, typer.Option(metavar="TRACKER", help=f"Where to: {', '.join(tracker_names())}.")],
    project: Annotated[
        str | None,
        typer.Option(
            help=f"Its project or experiment, by default what the tracker's environment variable names, or {PROJECT}.",
            show_default=False,
        ),
    ] = None,
    logdir: Annotated[
        Path | None,
        typer.Option(help="TensorBoard's folder, by default tensorboard in the run folder.", show_default=False),
    ] = None,
    with_model: Annotated[bool, typer.Option("--with-model", help="Hand over the saved model too.")] = False,
) -> None:
    """Log a finished run to a tracker of experiments: numbers, the search's curve, the page."""
    with screen.listening() as listener:
        done = mixopt.log(folder, to=to, project=project, logdir=logdir, with_model=with_model, listener=listener)
    if screen.as_json:
        screen.json(asdict(done))
    else:
        screen.out(f"{'already in' if done.was_there else 'logged to'} {done.tracker}: {done.run}, {done.place}")
