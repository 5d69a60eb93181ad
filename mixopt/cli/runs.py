"""Commands that make a run folder: search, compare, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import mixopt
from mixopt.cli.exits import EXIT_SOME_FAILED
from mixopt.cli.screen import Screen
from mixopt.cli.show import show_comparison, show_run
from mixopt.spec.option import RUN

# Written out, because looking them up would import torch; a test compares.
METHODS = (
    "ensemble, extrapolation, greedy, greedy_ensemble, individual, learned, learned_by_layer, lines, manifold, "
    "model_stock, mono, task_arithmetic, trajectory, uniform, wise_ft"
)
SEARCH_RESUMES = "; finished trials are kept: the same command again goes on from here"
COMPARE_RESUMES = "; scores so far are kept: the same command again goes on from here"
DEMO_RESUMES = f"{SEARCH_RESUMES}, or makes the pool anew where that was not done"
DEMO_FOLDER = Path("runs/demo")

Study = Annotated[
    Path | None,
    typer.Option(help="A study.toml with these options as keys.", rich_help_panel=RUN, show_default=False, hidden=True),
]


def search(screen: Screen, study: Study = None, **options: Any) -> None:
    """Find the best mix of a pool: the main job."""
    with screen.listening() as listener:
        result = mixopt.search(study=study, listener=listener, **options)
    show_run(screen, result.report, result.folder)


def compare(screen: Screen, study: Study = None, **options: Any) -> None:
    """Put every method in one table, with intervals and paired tests (exit code 3 where some of them failed)."""
    for number in (each for each in options["ingredients"] or () if isinstance(each, int) or each == "auto"):
        raise typer.BadParameter(
            f"--ingredients {number}: a number is for mixopt search; here a row takes so many: --methods "
            f"uniform:top={number}"
        )
    with screen.listening() as listener:
        result = mixopt.compare(study=study, listener=listener, **options)
    show_comparison(screen, result.report, result.failed, result.folder)
    if result.failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def demo(screen: Screen, **options: Any) -> None:
    """Make a small real pool of digit classifiers, search it, show the table: the 3-minute tour."""
    from mixopt import demo as making

    out = options.pop("out") or DEMO_FOLDER
    spec = mixopt.load_spec({"models": out / "pool", **options})  # wrong options are told before any work
    with screen.listening() as listener:
        pool = making.ensure_pool(out / "pool", seed=spec.seed, progress=listener.progress)
        with making.one_thread():
            # Not by measurement: the tour shows the same table everywhere, but for the last digits of its last row.
            result = mixopt.search(pool, out=out / "run", precision="fp32", listener=listener, **options)
    show_run(screen, result.report, result.folder)
    if not screen.as_json:
        screen.out(f"Next: mixopt compare --models {pool} for every published recipe, mixopt inspect {pool}, or")
        is_stopped = (result.report.trials or {}).get("complete", 0) < spec.trials
        more = f"--trials {spec.trials} --no-stop" if is_stopped else f"--trials {2 * spec.trials}"
        screen.out(f"more trials: mixopt search --models {pool} --out {result.folder} {more}")
