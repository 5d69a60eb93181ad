"""Workers: how much faster they are, how much memory they take, and what a trial costs beside scoring.

    OMP_NUM_THREADS=1 python benchmarks/workers.py speed --models DIR [--samples 5000]
    OMP_NUM_THREADS=1 python benchmarks/workers.py memory --models DIR [--counts 1,2,4]
    OMP_NUM_THREADS=1 python benchmarks/workers.py simulated --models DIR [--counts 8,64] [--trials 64]

``speed`` scores random mixes with one worker and with several, each with one thread, in turns, and in this process as
well. ``memory`` adds up what the workers hold of their own and their share of what several hold (PSS), which the
checkpoints in memory once are a part of. ``simulated`` runs real trials with workers that sleep instead of scoring, so
long that a trial takes a second if nothing else takes any time; what it takes more is the cost of asking, giving out,
putting together, telling and caching. Each prints a table, and one JSON line at the end. What kills do to a result is
in `worker_kills.py`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
from pebble import ProcessPool

from mixopt import Mix, Objective, load_spec
from mixopt import study as studies
from mixopt.assemble import assemble
from mixopt.listener import Listener
from mixopt.scoring.jobs import Answer, Job, Part, Rows
from mixopt.spaces.linear import Residual
from mixopt.values.groups import make_groups
from mixopt.values.mix import one_hot
from mixopt.workers import scored_by, shared_folder
from mixopt.workers.processes import Processes

Found = dict[str, Any]


def random_mixes(objective: Objective, count: int, seed: int, scheme: str = "block") -> list[Mix]:
    """Rows on the simplex, one per layer group."""
    groups, columns = make_groups(scheme, objective.pool.sizes), objective.pool.columns
    drawn = np.random.default_rng(seed).dirichlet(np.ones(len(columns)), (count, len(groups)))
    return [Mix(groups, columns, rows) for rows in drawn]


@contextmanager
def opened(options: Found, devices: int) -> Iterator[tuple[Objective, Processes | None]]:
    """An objective with an empty cache, scored by so many workers, or by this process."""
    with tempfile.TemporaryDirectory() as cache:
        spec = load_spec({"device": "cpu", "precision": "fp32", "confirm": 0, **options})
        shared = spec.model_copy(update={"cache": Path(cache)})
        assembly = assemble(spec.model_copy(update={"cache": spec.cache}), Listener())
        # Decoded splits come from the usual cache; outcomes must not.
        assembly.objective.scorer.cache.folder = Path(cache)
        if not devices:
            yield assembly.objective, None
            return
        with shared_folder(shared, assembly) as folder:
            hands = Processes(folder, ["cpu"] * devices)
            try:
                yield scored_by(hands, assembly.objective, Listener()), hands
            finally:
                hands.close()


def timed(objective: Objective, mixes: Sequence[Mix]) -> float:
    """Seconds that scoring the mixes takes, expected together as a generation is."""
    started = time.perf_counter()
    objective.expect(mixes)
    for mix in mixes:
        objective.score(mix)
    return time.perf_counter() - started


def speed(given: argparse.Namespace) -> Found:
    """Mixes scored by one worker and by several."""
    options = {"models": given.models, "limit": given.samples}
    rows: Found = {}
    with opened(options, 1) as (one, _), opened(options, given.workers) as (several, _), opened(options, 0) as (own, _):
        arms = {"1 worker": one, f"{given.workers} workers": several, "this process": own}
        for objective in arms.values():  # opens the workers
            timed(objective, random_mixes(objective, 2 * given.workers, 10_000))
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(given.turns):
            mixes = random_mixes(own, given.mixes, turn)
            for name, objective in arms.items():
                seconds[name].append(timed(objective, mixes))
        samples = given.mixes * own.samples
        for name, every in seconds.items():
            faster = float(np.median(np.array(seconds["1 worker"]) / np.array(every)))
            rows[name] = {"images_per_second": samples / float(np.median(every)), "times_one_worker": faster}
    print(f"{given.mixes} mixes of {own.samples:,} samples, {given.turns} turns\n")
    print("| | images/s | times one worker |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['images_per_second']:,.0f} | {row['times_one_worker']:.2f} |")
    return {"rows": rows}


def memory(given: argparse.Namespace) -> Found:
    """What several workers hold."""
    rows: list[Found] = []
    for count in given.counts:
        with opened({"models": given.models, "limit": 500}, count) as (objective, _):
            timed(objective, random_mixes(objective, 2 * count, 0))
            workers = [each for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())]
            held = [each.memory_full_info() for each in workers]
            stack = objective.pool.stack.nbytes
        rows.append(
            {
                "workers": count,
                "stack_mb": stack / 1e6,
                "rss_mb": sum(each.rss for each in held) / 1e6,
                "pss_mb": sum(each.pss for each in held) / 1e6,
                "own_mb": sum(each.uss for each in held) / 1e6,
            }
        )
    print("| workers | checkpoints MB | RSS in all | PSS in all | of their own |\n|---|---|---|---|---|")
    for row in rows:
        print("| {workers} | {stack_mb:.0f} | {rss_mb:.0f} | {pss_mb:.0f} | {own_mb:.0f} |".format(**row))
    return {"rows": rows}


_SECONDS = [0.0]


def _begin_sleeping(seconds: float) -> None:
    _SECONDS[0] = seconds


def _sleep(job: Job, classes: int) -> Answer:
    """In a worker that only sleeps: outcomes of the right size."""
    if not isinstance(job, Part):
        raise TypeError("only scores are simulated")
    time.sleep(_SECONDS[0] * job.count)
    drawn = np.random.default_rng(int.from_bytes(job.rows.distinct.tobytes()[:8], "little"))
    arrays = {
        "predicted": drawn.integers(0, classes, job.count).astype(np.int32),
        "losses": drawn.exponential(size=job.count).astype(np.float32),
        "above": drawn.integers(0, classes, job.count).astype(np.uint8),
        "confidence": drawn.random(job.count).astype(np.float32),
    }
    return Answer(arrays, _SECONDS[0] * job.count, f"worker {os.getpid()}", os.getpid())


class Sleepers(Processes):
    """Processes that sleep."""

    def __init__(self, folder: Path, count: int, seconds: float, classes: int) -> None:
        self._seconds, self._classes = seconds, classes
        super().__init__(folder, ["cpu"] * count)

    def submit(self, job: Job) -> Future[Answer]:
        """See `Processes`."""
        found: Future[Answer] = self._pool.schedule(_sleep, args=(job, self._classes))
        return found

    def _begun(self) -> Any:
        return ProcessPool(
            max_workers=self.count,
            initializer=_begin_sleeping,
            initargs=(self._seconds,),
            context=multiprocessing.get_context("spawn"),
        )


def simulated(given: argparse.Namespace) -> Found:
    """Trials with workers that sleep."""
    rows: list[Found] = []
    for count in given.counts:
        with tempfile.TemporaryDirectory() as kept, opened({"models": given.models}, 0) as (own, _):
            samples = own.samples
            seconds = count * given.seconds / samples
            hands = Sleepers(Path(kept), count, seconds, 10)
            try:
                objective = scored_by(hands, own, Listener())
                space = space_of(own)
                start = space.to_mix(np.zeros(space.dims))
                for future in [hands.submit(Part(Rows.of(start, own.pool), "", 0, 0, 0, 1)) for _ in range(4 * count)]:
                    future.result()
                storage = studies.open_storage(Path(kept) / "study.journal", None, objective.stopwatch)
                study = studies.open_study(storage, "simulated", "maximize", metric="accuracy")
                sampler, population = given.sampler, given.population
                schedule = studies.Schedule(sampler=sampler, trials=1, seed=0, population=population)
                studies.run_trials(study, objective, space, schedule)
                before = dict(objective.stopwatch.seconds)
                started = time.perf_counter()
                wanted = studies.Schedule(sampler=sampler, trials=1 + given.trials, seed=0, population=population)
                studies.run_trials(study, objective, space, wanted)
                wall = time.perf_counter() - started
                spent = {k: v - before.get(k, 0.0) for k, v in objective.stopwatch.seconds.items()}
            finally:
                hands.close()
        parent = sum(value for name, value in spent.items() if name != "workers") / given.trials
        each = wall / given.trials
        rows.append({"workers": count, "seconds": each, "cost": each / given.seconds - 1, "parent": parent})
    print(
        f"{given.trials} trials of {samples:,} samples, {given.sampler}, {given.population} at a time; "
        f"{given.seconds:g} s each if nothing else took any time\n"
    )
    print("| workers | s per trial | beside scoring | of it this process's own work |\n|---|---|---|---|")
    for row in rows:
        print("| {workers} | {seconds:.3f} | {cost:+.1%} | {parent:.3f} |".format(**row))
    return {"rows": rows}


def space_of(objective: Objective) -> Residual:
    """Three dimensions for each of four checkpoints."""
    groups, columns = make_groups("block", objective.pool.sizes), objective.pool.columns
    first, *others = [one_hot(groups, columns, name) for name in columns[:5]]
    return Residual(first, dict(zip(columns[1:5], others, strict=True)), 0.5)


def numbers(text: str) -> list[int]:
    """Numbers with commas between them."""
    return [int(each) for each in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "simulated"])
    parser.add_argument("--models", type=Path, required=True, help="a pool")
    parser.add_argument("--samples", type=int, default=5000, help="speed: of the validation split")
    parser.add_argument("--mixes", type=int, default=4, help="speed: scored together")
    parser.add_argument("--turns", type=int, default=5, help="speed: how often")
    parser.add_argument("--workers", type=int, default=2, help="speed: how many several are")
    parser.add_argument("--counts", type=numbers, default=None, help="memory, simulated: numbers of workers")
    parser.add_argument("--trials", type=int, default=64, help="simulated: trials timed")
    parser.add_argument("--seconds", type=float, default=1.0, help="simulated: of a trial without any other cost")
    parser.add_argument("--sampler", default="random", help="simulated: as of mixopt search")
    parser.add_argument("--population", type=int, default=16, help="simulated: trials asked together")
    given = parser.parse_args(arguments)
    given.counts = given.counts or {"memory": [1, 2, 4], "simulated": [8, 64]}.get(given.what)
    found = {"speed": speed, "memory": memory, "simulated": simulated}[given.what](given)
    print(json.dumps({"benchmark": "workers", "what": given.what, **found}))


if __name__ == "__main__":
    main()
