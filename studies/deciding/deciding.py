"""The deciding study's tables: what every arm and row scores on each split of a pool, from `studies/winning`.

    python studies/deciding/deciding.py RUNS/cifar10-res/results.json [RUNS/demo0-res/results.json ...] --name cifar10
    python studies/deciding/deciding.py --show studies/deciding/cifar10.json ...

The results of one pool, or of several pools of one kind that were made with other seeds, become one file ``NAME.json``
beside this one (``--into``: elsewhere) with what the tables show. Means are over seeds, with 95 % intervals by
Student's t of seeds where there are several; of a row that is the same for every seed, that of its samples.
Below, by split, the default less greedy in points, and p of exact McNemar tests, seed by seed. Prints the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mixopt.files import write_json

HERE = Path(__file__).parent
KEPT = ("test", "interval", "mcnemar_p", "images", "seconds", "search")


def kept(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several results, by row or arm, what each seed scored; rows that failed are left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for each in results:
        for row in each["rows"]:
            if "test" in row:
                name = "manifold, as many images" if row["name"].startswith("manifold") else row["name"]
                found.setdefault(name, []).append({key: row.get(key) for key in KEPT})
        for arm, runs in each["arms"].items():
            for run in runs:
                step = (run["row"]["notes"].get("robust") or {}) if "notes" in run["row"] else {}
                told = {"steps": not run["start_stayed"], "towards": step.get("towards"), "share": step.get("share")}
                row = {key: run["row"].get(key) for key in KEPT}
                found.setdefault(f"search, {arm}", []).append({**row, **told})
    first = results[0]
    return {
        "splits": first["splits"],
        "tuning": first["tuning"],
        "precision": first["precision"]["mode"],
        "rows": found,
    }


def table(done: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown."""
    splits = [name for name in done["splits"] if name != "validation"]
    header = ["row", *splits, *(["mean of shifts"] if len(splits) > 2 else []), "images", "seconds"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, runs in done["rows"].items():
        shown = f"**{name}**" if name.startswith("search") else name
        cells = [shown, *(_score(runs, split) for split in splits)]
        if len(splits) > 2:
            cells.append(_spread([float(np.mean([run["test"][split] for split in splits[1:]])) for run in runs]))
        cells += [f"{np.mean([run[key] for run in runs]):,.0f}" for key in ("images", "seconds")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def steps(done: Mapping[str, Any]) -> list[str]:
    """In how many seeds a step of the trials was taken, and the last steps, by arm."""
    lines = []
    for name, runs in done["rows"].items():
        if name.startswith("search"):
            last = [f"{run['share']:.3g} to {run['towards']}" if run["share"] else "none" for run in runs]
            taken = sum(run["steps"] for run in runs)
            lines.append(f"- {name}: a step from the start in {taken} of {len(runs)}; last steps: {', '.join(last)}.")
    return lines


def against_greedy(done: Mapping[str, Any], row: str = "search, default") -> list[str]:
    """By split, a row less greedy, seed by seed: points, and p."""
    lines, greedy = [], done["rows"]["greedy"]
    for split in [name for name in done["splits"] if name != "validation"]:
        cells = []
        for number, run in enumerate(done["rows"][row]):
            theirs = greedy[number if len(greedy) > 1 else 0]["test"][split]
            cells.append(f"{100 * (run['test'][split] - theirs):+.1f} ({_p(run['mcnemar_p']['greedy'][split])})")
        lines.append(f"- {row} less greedy, {split}: {', '.join(cells)}.")
    return lines


def _score(runs: Sequence[Mapping[str, Any]], split: str) -> str:
    values = [run["test"][split] for run in runs]
    shown = _spread(values)
    if len(runs) == 1 and runs[0]["interval"].get(split):
        low, high = runs[0]["interval"][split]
        shown += f" ± {(high - low) / 2:.4f}"
    return shown


def _spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.4f}"
    if len(set(values)) < 2:
        return mean
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean} ± {half:.4f}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Keep results and print their table; or tables of what was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--into", type=Path, default=HERE)
    parser.add_argument("--show", nargs="+", type=Path)
    given = parser.parse_args(argv)
    if not given.show:
        if not (given.results and given.name):
            parser.error("expected results and --name, or --show")
        every = [json.loads(path.read_text(encoding="utf-8")) for path in given.results]
        write_json(given.into / f"{given.name}.json", kept(every))
    for path in given.show or [given.into / f"{given.name}.json"]:
        done = json.loads(path.read_text(encoding="utf-8"))
        print("\n".join([f"### {path.stem}", "", *table(done), "", *against_greedy(done), *steps(done), ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
