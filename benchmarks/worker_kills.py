"""Kills: what is left of a search whose workers, or whose own process, die every few seconds.

    OMP_NUM_THREADS=1 python benchmarks/worker_kills.py --models DIR [--killed 200] [--runs 50] [--every 5] [--dask]

A search with two workers runs undisturbed; then again, from nothing, while a worker drawn at random is killed (SIGKILL)
every few seconds; then again while its own process is, which is started anew until it ends. Both begin again from
nothing until there were so many kills. Every search that came to its end is compared with the undisturbed one: its
trials with all that they record but times, every entry of the cache, and the bytes of the model. With ``--dask`` the
workers are two `dask worker` of one scheduler, and every fourth time the nanny is killed with its worker, and another
one started. Prints a table, and one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import machines
import numpy as np
import optuna
import psutil  # type: ignore[import-untyped]
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

VOLATILE = ("_seconds", "_checksum")


def command(given: argparse.Namespace, folder: Path) -> list[str]:
    """A search with two workers."""
    options = {
        "models": given.models,
        "out": folder / "run",
        "cache": folder / "cache",
        "limit": given.samples,
        "trials": given.trials,
        "sampler": "random",
        **({"workers": 2} if given.cluster is None else {"scheduler": given.cluster.address}),
        "device": "cpu",
        "precision": "fp32",
        "robust": "off",
        "page": "off",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "mixopt", "search", *flags, "--quiet"]


def content(folder: Path) -> dict[str, Any]:
    """What must be the same."""
    storage = JournalStorage(JournalFileBackend(str(folder / "run" / "study.journal")))
    trials = [
        (
            trial.number,
            trial.state.name,
            trial.values,
            trial.params,
            {name: value for name, value in trial.user_attrs.items() if name != "seconds"},
        )
        for trial in optuna.load_study(study_name=None, storage=storage).trials
    ]
    entries = {}
    for path in (folder / "cache").glob("*/*/*.npz"):
        digest = hashlib.sha256()
        with np.load(path) as entry:
            for name in sorted(set(entry.files) - set(VOLATILE)):
                digest.update(name.encode() + entry[name].tobytes())
        entries[path.name] = digest.hexdigest()
    model = hashlib.sha256((folder / "run" / "model.safetensors").read_bytes()).hexdigest()
    return {"trials": trials, "cache": entries, "model": model}


def start(given: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    """The search's process."""
    with folder.with_suffix(".txt").open("ab") as said:
        return subprocess.Popen(command(given, folder), stdout=said, stderr=said, start_new_session=True)


def failed(process: subprocess.Popen[bytes], folder: Path) -> RuntimeError:
    """What a search that must not end so ended with."""
    said = folder.with_suffix(".txt").read_text(encoding="utf-8")
    return RuntimeError(f"the search ended with {process.returncode}: {said}")


def kill_workers(given: argparse.Namespace, folder: Path, most: int) -> int:
    """Run a search to its end while workers are killed; how many were.

    Raises:
        RuntimeError: It ended otherwise.
    """
    process, killed = start(given, folder), 0
    while process.poll() is None:
        time.sleep(given.every)
        if process.poll() is None and killed < most:
            killed += kill_one(given, process)
    if process.returncode:
        raise failed(process, folder)
    return killed


def kill_one(given: argparse.Namespace, process: subprocess.Popen[bytes]) -> bool:
    """Kill a worker drawn at random, if there is one."""
    if given.cluster is not None:
        return bool(given.cluster.kill_one())
    with suppress(psutil.Error):
        workers = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
        if workers:
            random.choice(workers).kill()
            return True
    return False


def kill_runs(given: argparse.Namespace, folder: Path, most: int) -> int:
    """Start a search until it ends, its own process killed every time; how often it was."""
    killed = 0
    while True:
        process = start(given, folder)
        if killed < most:
            with suppress(subprocess.TimeoutExpired):
                process.wait(random.uniform(1, 4) * given.every)
        else:
            process.wait()
        if process.poll() is not None:
            if process.returncode:
                raise failed(process, folder)
            return killed
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="a pool")
    parser.add_argument("--samples", type=int, default=1000, help="of the validation split")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--killed", type=int, default=200, help="workers")
    parser.add_argument("--runs", type=int, default=50, help="processes of the run itself")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between kills; of runs, one to four times it")
    parser.add_argument("--dask", action="store_true", help="two workers of a Dask scheduler")
    given = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    random.seed(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as kept, ExitStack() as open_then:
        given.cluster = open_then.enter_context(machines.started(Path(kept))) if given.dask else None
        for _ in range(2 if given.dask else 0):
            given.cluster.add()
        undisturbed = Path(kept) / "undisturbed"
        started = time.perf_counter()
        if start(given, undisturbed).wait():
            raise RuntimeError("the undisturbed search failed")
        alone = time.perf_counter() - started
        expected = content(undisturbed)
        for what, kill, most in (("workers", kill_workers, given.killed), ("the run", kill_runs, given.runs)):
            killed, same, searches = 0, 0, 0
            started = time.perf_counter()
            while killed < most:
                folder = Path(kept) / f"{what}-{searches}"
                killed += kill(given, folder, most - killed)
                searches += 1
                same += content(folder) == expected
            seconds = time.perf_counter() - started
            rows.append({"what": what, "killed": killed, "searches": searches, "same": same, "seconds": seconds})
    print(f"{given.trials} trials of {given.samples:,} samples; undisturbed {alone:.0f} s\n")
    print("| killed | kills | searches | the same as undisturbed | s |\n|---|---|---|---|---|")
    for row in rows:
        print("| {what} | {killed} | {searches} | {same} | {seconds:.0f} |".format(**row))
    print(json.dumps({"benchmark": "worker_kills", "undisturbed": alone, "rows": rows}))


if __name__ == "__main__":
    main()
