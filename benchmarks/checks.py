"""What the checks of a run cost: content of splits, decoded copies, cached entries and the journal, as shares of a run.

Each is measured by itself on the files of a finished run, best of several, and set against the seconds of that run. The
peer's way is to trust all of it, which costs nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import mixopt
from mixopt.data.content import content_of
from mixopt.data.encoded_store import load_decoded
from mixopt.study import read_trials
from mixopt.untrusted.arrays import unpacked


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="a pool with a pool.toml")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        cache, out = Path(folder) / "cache", Path(folder) / "run"
        options = {"trials": given.trials, "cache": cache, "out": out, "precision": "fp32"}
        started = time.perf_counter()
        mixopt.search(given.models, **options)
        whole = time.perf_counter() - started
        splits = [cache / "splits" / path.name for path in (cache / "splits").iterdir()]
        entries = [*(cache / "outcomes").rglob("*.npz"), *(cache / "gradients").rglob("*.npz")]
        spec = mixopt.load_spec({"models": given.models})
        sources = [path for path in (spec.data.validation, *spec.data.test.values()) if path is not None]
        files = [path for path in sources if path.is_file()]

        def new_cache() -> Path:  # in which no stamp is known
            return Path(tempfile.mkdtemp(dir=folder))

        parts: dict[str, tuple[int, Callable[[], object]]] = {
            "content of splits": (
                _size(files),
                lambda: [content_of(file, [file], new_cache()) for file in files],
            ),
            "decoded copies": (
                sum(_size(path.iterdir()) for path in splits),
                lambda: [load_decoded(path) for path in splits],
            ),
            "cached entries": (_size(entries), lambda: [unpacked(path) for path in entries]),
            "journal": (_size([out / "study.journal"]), lambda: read_trials(out / "study.journal")),
        }
        rows: list[dict[str, Any]] = []
        for name, (size, check) in parts.items():
            seconds = min(_seconds(check) for _ in range(given.repeats))
            rows.append({"check": name, "bytes": size, "seconds": seconds, "share": seconds / whole})
    print(f"a search of {given.trials} trials: {whole:.1f} s")
    print(f"{'check':20} {'MB':>8} {'ms':>8} {'of the run':>10}")
    for row in rows:
        print(f"{row['check']:20} {row['bytes'] / 1e6:8.2f} {1e3 * row['seconds']:8.1f} {row['share']:10.2%}")
    total = sum(row["share"] for row in rows)
    print(f"{'all':20} {'':8} {'':8} {total:10.2%}")
    print(json.dumps({"benchmark": "checks", "seconds": whole, "rows": rows, "share": total}))


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
