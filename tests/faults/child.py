"""Commands in processes of their own, forked from one that has imported everything: a fraction of a second each."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mixopt.cli import main
from mixopt.scoring.racing import out_of_reach
from tests.faults.events import Strike, Watch

ROOT = Path(__file__).parents[2]
KILLED = -signal.SIGKILL
# Less than the 30 seconds for which Optuna respects the lock of a process that is gone.
PATIENCE = 25.0
OUTPUT, EVENTS = "output.txt", "events.json"


def run(arguments: Sequence[str], folder: Path, strike: Strike | None = None, eager: bool = False) -> int | None:
    """Run a mixopt command in a folder; what it prints goes to the file `OUTPUT`, how many events to `EVENTS`.

    Args:
        arguments: Of the command line.
        folder: The working directory, an existing one.
        strike: Kill it then.
        eager: Race from the first samples on.

    Returns:
        The exit code, or `KILLED`; None where it did not end in time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.preload"])
    with _importable():
        process = context.Process(target=_work, args=(list(arguments), folder, strike, eager))
        process.start()
    try:
        process.join(PATIENCE)
        return process.exitcode
    finally:
        process.kill()
        process.join()
        process.close()


@contextmanager
def _importable() -> Iterator[None]:
    """Let a server that starts now find the tests; before Python 3.12 it is not told where its parent looks."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _work(arguments: list[str], folder: Path, strike: Strike | None, eager: bool) -> None:
    os.chdir(folder)
    os.environ.update({"XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder), "COLUMNS": "200"})
    torch.set_num_threads(1)
    with open(OUTPUT, "wb") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    if eager:
        _race_early()
    sys.argv = ["mixopt", *arguments]
    watch = Watch(folder, strike)
    watch.install()
    try:
        main()
    finally:
        sys.stdout.flush()
        Path(EVENTS).write_text(json.dumps(watch.counts))


def _race_early() -> None:
    """Look every 10 samples, and with less patience: tiny splits are raced too."""
    objective: Any = importlib.import_module("mixopt.scoring.objective")
    objective.looks = lambda total, batch: [*range(10, total, 10), total]
    objective.out_of_reach = lambda gains, total, level: out_of_reach(gains, total, 0.3)
