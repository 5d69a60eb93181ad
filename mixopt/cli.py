"""The command line; the only module that prints or exits."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mixopt.errors import MixoptError
from mixopt.files import ENVIRONMENT
from mixopt.listener import Listener, TrialEvent
from mixopt.version import __version__

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
PLAIN_INTERVAL = 5.0
RESUMES = "; finished trials are kept: the same command again goes on from here"
PLAIN_WIDTH = 1000

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Finds the best weight mix of a folder of fine-tuned checkpoints.",
    epilog="First steps: [bold]mixopt demo[/bold], then [bold]mixopt search --models DIR --trials 200[/bold].",
)

POOL = "The pool"
DATA = "Data"
SEARCH = "The search"
RUN = "The run"

Family = Annotated[
    str | None,
    typer.Option(help="open_clip, or package.module:function.", rich_help_panel=POOL, show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option(help="Architecture name or config file.", rich_help_panel=POOL, show_default=False),
]
Base = Annotated[
    Path | None,
    typer.Option(help="The pretrained checkpoint; never an ingredient.", rich_help_panel=POOL, show_default=False),
]
Ingredients = Annotated[
    list[str] | None,
    typer.Option(
        help="Glob of the ingredients' files (repeatable), or a number: search over the so many that rank first.",
        rich_help_panel=POOL,
        show_default=False,
    ),
]
Classnames = Annotated[
    list[str] | None,
    typer.Option(help="Class name, in the order of the labels (repeatable).", rich_help_panel=DATA, show_default=False),
]
Templates = Annotated[
    list[str] | None,
    typer.Option(help="Prompt with {} for the class name (repeatable).", rich_help_panel=DATA, show_default=False),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="The split that selects: .npz, or a folder of class folders.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
Test = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FILE",
        help="A split that is only reported (repeatable).",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(help="Use the first so many images of the selection split.", rich_help_panel=DATA, show_default=False),
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="accuracy, nll or balanced_accuracy. (default: accuracy)",
        rich_help_panel=SEARCH,
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda, cuda:1. (default: auto)", rich_help_panel=RUN, show_default=False),
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Images per forward pass; chosen by device.", rich_help_panel=RUN, show_default=False),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Decoded splits and outcomes. (default: $XDG_CACHE_HOME/mixopt)",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="The run folder. (default: runs/<pool folder name>)", rich_help_panel=RUN, show_default=False),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Of everything random. (default: 0)", rich_help_panel=RUN, show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and the result only.", rich_help_panel=RUN)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=RUN)]


class Screen:
    """Progress and notices on stderr: live bars on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool, as_json: bool) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._stderr = Console(stderr=True, soft_wrap=True, highlight=False)
        self._stdout = Console(soft_wrap=True, highlight=False)
        self._live = self._stderr.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._stderr,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._last_line = 0.0
        self._rate: float | None = None
        self._first: tuple[float, int] | None = None  # when the first trial was told, and how many were complete

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Show what a verb tells while it runs."""
        if self._live:
            self._progress.start()
        try:
            yield Listener(say=self._say, progress=self._show, trial=self._trial)
        finally:
            if self._live:
                self._progress.stop()

    def out(self, text: str) -> None:
        """Print a result."""
        self._stdout.print(text, markup=False)

    def json(self, value: Any) -> None:
        """Print a result as JSON."""
        sys.stdout.write(json.dumps(value, indent=2) + "\n")

    def table(self, title: str, header: list[str], cells: list[list[str]]) -> None:
        """Print a table; the first column is text, the others are numbers."""
        grid = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
        for number, name in enumerate(header):
            grid.add_column(escape(name), justify="left" if number == 0 else "right", no_wrap=True)
        for row in cells:
            grid.add_row(*map(escape, row))
        # The title stands outside the table, which would break it where it is longer; a file has no narrow edge.
        self._stdout.print(title, style="bold", markup=False)
        Console(width=None if self._stdout.is_terminal else PLAIN_WIDTH, highlight=False).print(grid)

    def error(self, text: str) -> None:
        """Print an error."""
        self._stderr.print(f"[bold red]error:[/bold red] {escape(text)}")

    def _say(self, text: str, is_warning: bool) -> None:
        if self._quiet:
            return
        mark = "[yellow]warning:[/yellow] " if is_warning else ""
        self._stderr.print(mark + escape(text))

    def _show(self, what: str, done: int, total: int) -> None:
        self._step(what, done, total, "")

    def _trial(self, event: TrialEvent) -> None:
        self._first = self._first or (time.monotonic(), event.complete)
        self._rate = event.images_per_second or self._rate
        rate = f", {self._rate:,.0f} images/s" if self._rate else ""
        detail = f"trial {event.number}, best {event.best:.4f}{rate}"
        self._step("trials", event.complete, event.total, detail)

    def _step(self, what: str, done: int, total: int, detail: str) -> None:
        if self._quiet:
            return
        if self._live:
            if what not in self._tasks:
                for old in self._tasks.values():
                    self._progress.remove_task(old)
                self._tasks = {what: self._progress.add_task(what, total=total, detail=detail)}
            self._progress.update(self._tasks[what], completed=done, total=total, detail=detail)
            return
        now = time.monotonic()
        if done >= total or now - self._last_line >= PLAIN_INTERVAL:
            self._last_line = now
            left = ""
            if what == "trials" and self._first and self._first[1] < done < total:
                started, before = self._first
                left = f", about {(now - started) / (done - before) * (total - done):.0f} s left"
            self._stderr.print(f"{what}: {done} of {total}{', ' if detail else ''}{detail}{left}", markup=False)


@app.command(
    epilog="Example: [bold]mixopt search --models my_sweep/ --trials 200[/bold]. The same command again resumes; "
    "[bold]--sampler tpe --groups block[/bold] and the like start another study and need another --out."
)
def search(
    models: Annotated[
        Path | None,
        typer.Option(help="Folder with the checkpoints (and pool.toml).", rich_help_panel=POOL, show_default=False),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            help="Complete trials in all, the start included. (default: 200)",
            rich_help_panel=SEARCH,
            show_default=False,
        ),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(help="A study.toml with these options as keys.", rich_help_panel=RUN, show_default=False),
    ] = None,
    family: Family = None,
    model: Model = None,
    base: Base = None,
    ingredients: Ingredients = None,
    classnames: Classnames = None,
    templates: Templates = None,
    data: Data = None,
    test: Test = None,
    limit: Limit = None,
    metric: Metric = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="cmaes, tpe, gp, random, or package.module:Class. (default: cmaes)",
            rich_help_panel=SEARCH,
            show_default=False,
        ),
    ] = None,
    population: Annotated[
        int | None,
        typer.Option(help="Trials asked at a time; the sampler's own.", rich_help_panel=SEARCH, show_default=False),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="whole, block, tensor, a number of depth segments, or a .toml of regular expressions.",
            rich_help_panel=SEARCH,
            show_default=False,
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(help="simplex. (default: simplex)", rich_help_panel=SEARCH, show_default=False),
    ] = None,
    radius: Annotated[
        float | None,
        typer.Option(
            help="How far a coefficient is pushed at the edge of the box. (default: 0.5)",
            rich_help_panel=SEARCH,
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="best (baseline), individual, uniform, greedy, or a recipe.json. (default: best)",
            rich_help_panel=SEARCH,
            show_default=False,
        ),
    ] = None,
    greedy_rule: Annotated[
        str | None,
        typer.Option(
            help="at-least (the paper's >=) or strict (>). (default: at-least)",
            rich_help_panel=SEARCH,
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(help="Start no trial after so many seconds.", rich_help_panel=SEARCH, show_default=False),
    ] = None,
    seed: Seed = None,
    device: Device = None,
    batch_size: BatchSize = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the saved model: ingredients (as theirs), fp32, fp16 or bf16. (default: ingredients)",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    cache: Cache = None,
    out: Out = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Optuna storage URL in place of the run folder's journal.",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find the best mix of a pool: the main job."""
    patterns, top = _split_ingredients(ingredients)
    options = {
        "trials": trials, "family": family, "model": model, "base": base, "ingredients": patterns, "top": top,
        "classnames": classnames, "templates": templates, "data": _data(data, test), "limit": limit,
        "metric": metric, "sampler": sampler, "population": population, "groups": groups, "space": space,
        "radius": radius, "start": start, "greedy_rule": greedy_rule, "timeout": timeout, "seed": seed,
        "device": device, "batch_size": batch_size, "dtype": dtype, "cache": cache, "out": out, "storage": storage,
    }  # fmt: skip

    def work(screen: Screen) -> None:
        from mixopt import run

        with screen.listening() as listener:
            result = run.search(models, study=study, listener=listener, **options)
        _show_result(screen, result.report, result.folder)

    _run(work, quiet, as_json, resume=RESUMES)


@app.command(epilog="Example: [bold]mixopt build runs/my_sweep/recipe.json -o fused.safetensors[/bold]")
def build(
    recipe: Annotated[Path, typer.Argument(help="A recipe.json, or a model that mixopt saved.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.")],
    models: Annotated[
        Path | None,
        typer.Option(help="Folder of the checkpoints, if it has moved since the run.", show_default=False),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read the file back and check its output hash.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild a fused model from its recipe, anywhere its checkpoints are."""

    def work(screen: Screen) -> None:
        from mixopt import run

        with screen.listening() as listener:
            path = run.build(recipe, output, models=models, verify=verify, listener=listener)
        if as_json:
            screen.json({"model": str(path), "verified": verify})
        else:
            screen.out(f"wrote {path}{'; its weights are those of the recipe' if verify else ''}")

    _run(work, quiet, as_json)


@app.command(epilog="Example: [bold]mixopt evaluate fused.safetensors --data test.npz[/bold]")
def evaluate(
    model_file: Annotated[Path, typer.Argument(metavar="MODEL", help="A checkpoint.")],
    data: Data = None,
    test: Test = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check its output hash against its recipe first.")] = False,
    models: Annotated[
        Path | None,
        typer.Option(help="Folder whose pool.toml describes the model.", rich_help_panel=POOL, show_default=False),
    ] = None,
    family: Family = None,
    model: Model = None,
    classnames: Classnames = None,
    templates: Templates = None,
    limit: Limit = None,
    metric: Metric = None,
    device: Device = None,
    batch_size: BatchSize = None,
    cache: Cache = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score one checkpoint; one that mixopt saved knows how."""
    options = {
        "data": _data(data, test), "models": models, "family": family, "model": model, "classnames": classnames,
        "templates": templates, "limit": limit, "metric": metric, "device": device, "batch_size": batch_size,
        "cache": cache,
    }  # fmt: skip

    def work(screen: Screen) -> None:
        from mixopt import run

        with screen.listening() as listener:
            result = run.evaluate(model_file, verify=verify, listener=listener, **options)
        if as_json:
            screen.json(result)
            return
        measured = list(next(iter(result["splits"].values()))["metrics"])
        cells = [
            [name, f"{split['samples']:,}", *(f"{split['metrics'][key]:.4f}" for key in measured)]
            for name, split in result["splits"].items()
        ]
        screen.table(str(model_file), ["split", "samples", *measured], cells)
        if verify:
            screen.out("its weights are those of its recipe")

    _run(work, quiet, as_json)


@app.command(epilog="Example: [bold]mixopt inspect my_sweep/[/bold]")
def inspect(
    models: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with the checkpoints.")],
    family: Family = None,
    model: Model = None,
    base: Base = None,
    ingredients: Ingredients = None,
    classnames: Classnames = None,
    data: Data = None,
    test: Test = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Layer groups to show, as for search. (default: block)", show_default=False),
    ] = None,
    cache: Cache = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """What is in a pool, and what is wrong with it (exit code 2 where something is)."""
    patterns, _ = _split_ingredients(ingredients)
    options = {
        "family": family, "model": model, "base": base, "ingredients": patterns, "classnames": classnames,
        "data": _data(data, test), "groups": groups, "cache": cache,
    }  # fmt: skip

    def work(screen: Screen) -> None:
        from mixopt import run

        with screen.listening() as listener:
            found = run.inspect(models, listener=listener, **options)
        if as_json:
            screen.json(found)
        else:
            _show_pool(screen, found)
        if found["problems"]:
            raise typer.Exit(EXIT_BAD_INPUT)

    _run(work, quiet, as_json)


@app.command(epilog="Example: [bold]mixopt demo[/bold]. Needs scikit-learn: pip install 'mixopt[demo]'.")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pool and the run.", rich_help_panel=RUN)] = Path(
        "runs/demo"
    ),
    trials: Annotated[int, typer.Option(help="Complete trials in all.", min=1, rich_help_panel=SEARCH)] = 200,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0, rich_help_panel=RUN)] = 0,
    cache: Cache = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make a small real pool of digit classifiers, search it, show the table: the 3-minute tour."""

    def work(screen: Screen) -> None:
        from mixopt import demo as making
        from mixopt import run

        with screen.listening() as listener:
            pool = making.ensure_pool(out / "pool", seed=seed, progress=listener.progress)
            with making.one_thread():
                result = run.search(pool, out=out / "run", trials=trials, seed=seed, cache=cache, listener=listener)
        _show_result(screen, result.report, result.folder)
        if not as_json:
            screen.out(f"Next: mixopt inspect {pool}, or the same search again: mixopt search --models {pool}")

    _run(work, quiet, as_json, resume=f"{RESUMES}, or makes the pool anew where that was not done")


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


def _run(work: Callable[[Screen], None], quiet: bool, as_json: bool, resume: str = "") -> None:
    """Do a command's work; errors become one message and an exit code, a bug keeps its traceback (code 1)."""
    screen = Screen(quiet=quiet, as_json=as_json)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        work(screen)
    except MixoptError as error:
        screen.error(str(error))
        raise typer.Exit(EXIT_BAD_INPUT) from error
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        screen.error(f"{error.filename or 'a file'}: {error.strerror}; check its permissions and the disk")
        raise typer.Exit(EXIT_BAD_INPUT) from error
    except KeyboardInterrupt as error:
        screen.error(f"interrupted{resume}")
        raise typer.Exit(EXIT_INTERRUPTED) from error
    finally:
        signal.signal(signal.SIGTERM, previous)


def _show_result(screen: Screen, report: dict[str, Any], folder: Path) -> None:
    if screen.as_json:
        screen.json(report)
        return
    from mixopt.report import table

    header, cells = table(report)
    screen.table(f"{report['metric']} by method; {folder}", header, cells)


def _show_pool(screen: Screen, found: dict[str, Any]) -> None:
    if "ingredients" in found:
        cells = [
            [
                item["name"],
                f"{item['bytes']:,}",
                item["hash"],
                f"{item['distance']:.4f}",
                "-" if item["base_cosine"] is None else f"{item['base_cosine']:.4f}",
                f"{item['mean_cosine']:.3f}",
            ]
            for item in found["ingredients"]
        ]
        screen.table(
            f"{len(cells)} ingredients; base: {found['base'] or 'none'}; distance from {found['centre']}, cosine to "
            "the base, mean cosine to the others' deltas",
            ["ingredient", "bytes", "hash", "distance", "base cosine", "mean cosine"],
            cells,
        )
        screen.table(
            f"layer groups (--groups {found['scheme']})",
            ["group", "tensors", "parameters"],
            [[item["name"], str(item["tensors"]), f"{item['parameters']:,}"] for item in found["groups"]],
        )
        identical = found["identical"]
        listed = ", ".join(identical["names"][:6]) + (" ..." if len(identical["names"]) > 6 else "")
        screen.out(
            f"{found['mixed']['tensors']} tensors with {found['mixed']['parameters']:,} parameters differ; "
            f"{identical['tensors']} with {identical['parameters']:,} are identical in all"
            + (f": {listed}" if listed else "")
        )
        _show_matrix(screen, "distance between ingredients", found["ingredients"], found["distances"], 3)
        _show_matrix(screen, "cosine between ingredients' deltas", found["ingredients"], found["cosines"], 2)
    for name, split in found.get("splits", {}).items():
        screen.out(f"split {name}: {split['samples']:,} samples, {split['classes']} classes")
    for problem in found["problems"]:
        screen.error(problem)
    if not found["problems"]:
        screen.out("no problems found")


def _show_matrix(
    screen: Screen, title: str, items: list[dict[str, Any]], values: list[list[float]], digits: int
) -> None:
    if len(items) > 20:
        return  # too wide for a terminal; --json has it
    header = ["", *(str(number) for number in range(len(items)))]
    cells = [
        [f"{number} {item['name']}", *(f"{value:.{digits}f}" for value in row)]
        for number, (item, row) in enumerate(zip(items, values, strict=True))
    ]
    screen.table(title, header, cells)


def _split_ingredients(values: list[str] | None) -> tuple[list[str] | None, int | None]:
    """Globs, and the number where one was given."""
    if not values:
        return None, None
    numbers = [int(value) for value in values if value.isdigit()]
    patterns = [value for value in values if not value.isdigit()]
    return patterns or None, numbers[-1] if numbers else None


def _data(search_split: Path | None, tests: list[str] | None) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    if search_split is not None:
        found["search"] = search_split
    if tests:
        pairs = [test.partition("=") for test in tests]
        if wrong := [name for name, sign, file in pairs if not (name and sign and file)]:
            raise typer.BadParameter(f"--test {wrong[0]}: expected NAME=FILE")
        found["test"] = {name: Path(file) for name, _, file in pairs}
    return found or None


if __name__ == "__main__":
    main()
