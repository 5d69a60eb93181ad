"""Cluster: what a trial costs on the wire, with workers on simulated machines.

    OMP_NUM_THREADS=1 python benchmarks/cluster.py --models DIR [--machines 4] [--samples 5000] [--schemes whole,block]

Each machine is a network namespace behind 1 Gbit/s, with a `dask worker` of its own (`machines.py` says what that
needs); scheduler and run are outside. Random mixes are scored a generation at a time, as trials are, after some that
are not counted; a mix has as many rows of coefficients as its layer groups. Counted is what passes the machines' cables
both ways, frames and all, in a stretch without work as well: heartbeats. With `--machines 0` two workers run beside the
scheduler, and no bytes are counted. Prints a table, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machines import NETWORK, networks, passed, started
from workers import random_mixes, timed

from mixopt import Objective, load_spec
from mixopt.listener import Listener
from mixopt.workers import assembled

IDLE = 5.0  # seconds


def measure(given: argparse.Namespace, objective: Objective, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each scheme of layer groups."""
    timed(objective, random_mixes(objective, 2 * max(2, len(names)), 10_000))
    before = passed(names)
    time.sleep(IDLE)
    idle = (passed(names) - before) / IDLE
    rows = []
    for scheme in given.schemes.split(","):
        mixes = random_mixes(objective, given.mixes, 0, scheme)
        before = passed(names)
        seconds = timed(objective, mixes)
        count = (passed(names) - before) / len(mixes)
        rows.append(
            {
                "rows": len(mixes[0].groups),
                "bytes": count,
                "per_sample": count / objective.samples,
                "idle_bytes_per_second": idle,
                "seconds": seconds / len(mixes),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Score, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="a pool")
    parser.add_argument("--machines", type=int, default=4)
    parser.add_argument("--rate", default="1gbit", help="of each machine's cable, as for tc")
    parser.add_argument("--samples", type=int, default=5000, help="of the validation split")
    parser.add_argument("--mixes", type=int, default=8, help="of a generation")
    parser.add_argument("--schemes", default="whole,block,tensor", help="layer groups of the mixes")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as kept, networks(given.machines, given.rate) as names:
        folder = Path(kept)
        with started(folder, f"{NETWORK}.1" if names else "127.0.0.1") as cluster:
            for number in range(max(2, len(names))):
                cluster.add(inside=names[number] if names else None)
            options = {"models": given.models, "device": "cpu", "precision": "fp32", "confirm": 0, "cache": folder}
            spec = load_spec({**options, "limit": given.samples, "scheduler": cluster.address})
            with assembled(spec, Listener()) as assembly:
                rows = measure(given, assembly.objective, names)
                samples = assembly.objective.samples
    print(f"{len(names)} machines at {given.rate}, {given.mixes} mixes of {samples:,} samples\n")
    print("| rows of a mix | kB a mix | bytes a sample | s a mix |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['rows']} | {row['bytes'] / 1000:.0f} | {row['per_sample']:.1f} | {row['seconds']:.2f} |")
    print(f"\nwithout work: {rows[0]['idle_bytes_per_second'] / 1000:.1f} kB/s")
    print(json.dumps({"benchmark": "cluster", "machines": len(names), "samples": samples, "rows": rows}))


if __name__ == "__main__":
    main()
