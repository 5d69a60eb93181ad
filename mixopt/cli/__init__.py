"""The command line: the only package that prints or exits, and the only one that imports typer and rich."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import Annotated

import typer

from mixopt.cli.commands import make_command
from mixopt.cli.exits import EXIT_BAD_INPUT
from mixopt.cli.files import build, diagnose, evaluate, init, inspect, log, report
from mixopt.cli.guide import guide
from mixopt.cli.runs import COMPARE_RESUMES, DEMO_RESUMES, METHODS, SEARCH_RESUMES, compare, demo, search
from mixopt.files import ENVIRONMENT
from mixopt.version import __version__

__all__ = ["app", "main"]

EXAMPLES: dict[Callable[..., None], str] = {
    search: "Example: [bold]mixopt search --models my_sweep/ --trials 200[/bold]. The same command again resumes; "
    "[bold]--sampler tpe --groups block[/bold] and the like start another study and need another --out.",
    compare: "Example: [bold]mixopt compare --models my_sweep/ --methods greedy,wise_ft,model_stock[/bold]. Scores are "
    "cached: the same command again only adds what is missing. Exit code 2: bad input; 3: the table is complete but "
    f"for rows that failed, which are told on stderr. [bold]Methods:[/bold] {METHODS}; "
    "[bold]mixopt guide recipes[/bold] has their variants.",
    build: "Example: [bold]mixopt build runs/my_sweep/recipe.json -o fused.safetensors[/bold]",
    evaluate: "Example: [bold]mixopt evaluate fused.safetensors --data test.npz[/bold]",
    init: "Example: [bold]mixopt init my_sweep/[/bold], then fill in what its comments ask for.",
    inspect: "Example: [bold]mixopt inspect my_sweep/[/bold]",
    diagnose: "Example: [bold]mixopt diagnose my_sweep/ --html pool.html[/bold]",
    report: "Example: [bold]mixopt report runs/my_sweep/ --html report.html[/bold]; of several runs, one page: "
    "[bold]mixopt report runs/seed0 runs/seed1 --html seeds.html[/bold]. [bold]--png DIR[/bold] and "
    "[bold]--pdf FILE[/bold] write the pictures for papers.",
    log: "Example: [bold]mixopt log runs/my_sweep/ --to tensorboard[/bold]. The same report is logged once.",
    guide: "Example: [bold]mixopt guide search[/bold]. On a terminal, a page is shown by your pager (PAGER).",
    demo: "Example: [bold]mixopt demo[/bold]. Needs mlxtend and scikit-learn: pip install 'mixopt\\[demo]'.",
}
# What an interrupt leaves, and how to go on.
RESUMES: dict[Callable[..., None], str] = {search: SEARCH_RESUMES, compare: COMPARE_RESUMES, demo: DEMO_RESUMES}

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Finds the best weight mix of a folder of fine-tuned checkpoints.",
    epilog="First steps: [bold]mixopt demo[/bold], then [bold]mixopt search --models DIR --trials 200[/bold].",
)
for work, example in EXAMPLES.items():
    app.command(epilog=example)(make_command(work, RESUMES.get(work, "")))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Finds the best weight mix of a folder of fine-tuned checkpoints."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """The ``mixopt`` command."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
        elif isinstance(stream, TextIOWrapper):  # a locale without UTF-8 shows what it can, and codes for the rest
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        with suppress(OSError):
            sys.stderr.write(f"error: could not print: {error.strerror}\n")
        # What could not be printed is not tried again when Python ends.
        os._exit(EXIT_BAD_INPUT)
