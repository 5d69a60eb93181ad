"""The command line: the only package that prints or exits, and the only one that imports typer and rich."""

from __future__ import annotations

from typing import Annotated

import typer

from mixopt.cli.files import build, evaluate, inspect, report
from mixopt.cli.runs import METHODS, compare, demo, search
from mixopt.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Finds the best weight mix of a folder of fine-tuned checkpoints.",
    epilog="First steps: [bold]mixopt demo[/bold], then [bold]mixopt search --models DIR --trials 200[/bold].",
)
app.command(
    epilog="Example: [bold]mixopt search --models my_sweep/ --trials 200[/bold]. The same command again resumes; "
    "[bold]--sampler tpe --groups block[/bold] and the like start another study and need another --out."
)(search)
app.command(
    epilog="Example: [bold]mixopt compare --models my_sweep/ --methods greedy,wise_ft,model_stock[/bold]. Scores are "
    "cached: the same command again only adds what is missing. Exit code 2: bad input; 3: the table is complete but "
    f"for rows that failed, which are told on stderr. [bold]Methods:[/bold] {METHODS}; the README has their variants."
)(compare)
app.command(epilog="Example: [bold]mixopt build runs/my_sweep/recipe.json -o fused.safetensors[/bold]")(build)
app.command(epilog="Example: [bold]mixopt evaluate fused.safetensors --data test.npz[/bold]")(evaluate)
app.command(epilog="Example: [bold]mixopt inspect my_sweep/[/bold]")(inspect)
app.command(epilog="Example: [bold]mixopt report runs/my_sweep/ --html report.html[/bold]")(report)
app.command(epilog="Example: [bold]mixopt demo[/bold]. Needs scikit-learn: pip install 'mixopt\\[demo]'.")(demo)


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
    app()
