"""Several seeds of the whole demo, pool and search, in one table: accuracy and loss of every row, split by split.

    for seed in 0 1 2 3 4; do OMP_NUM_THREADS=1 mixopt demo --seed $seed --out runs/demo-$seed; done
    python studies/demo/seeds.py runs/demo-{0,1,2,3,4}

Reads the runs' reports, prints Markdown and writes ``seeds.json`` beside this file (``--results``: elsewhere).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mixopt
from mixopt.reporting.below import why_below
from mixopt.reporting.schema import Report

HERE = Path(__file__).parent
LEARNED = "learned"  # by gradient, of whatever variant; a search may start from it
ROWS = ("base", "individual", "uniform", "greedy", LEARNED, "search")
REFERENCES = ("individual", "greedy")


def named(report: Report) -> dict[str, Any]:
    """A report's rows by the names of `ROWS`: the only other one there is learned."""
    return {row.name if row.name in ROWS else LEARNED: row for row in report.made}


def kept(folder: Path) -> dict[str, Any]:
    """What is kept of a run: its rows' scores, losses and tests, and what its checkpoints score on validation."""
    report = mixopt.report(folder / "run")
    rows = named(report)
    return {
        "seed": report.seed,
        "trials": report.trials,
        "why": why_below(report),
        "learned": next((row.name for row in report.made if row.name not in ROWS), None),
        "rows": {
            name: {
                "accuracy": {split: each["accuracy"] for split, each in row.metrics.items()},
                "nll": {split: each["nll"] for split, each in row.metrics.items()},
                "mcnemar_p": row.mcnemar_p,
                "evaluations": row.evaluations,
                "seconds": row.seconds,
            }
            for name, row in rows.items()
        },
        "notes": rows["search"].notes,
    }


def table(runs: Sequence[Mapping[str, Any]], measured: str) -> str:
    """Markdown: a line per row, the mean over seeds and every seed on test."""
    splits = list(runs[0]["rows"]["search"][measured])
    heads = ["row", *("selection" if split == "validation" else split for split in splits), "mean of the shifts"]
    lines = ["| " + " | ".join([*heads, "test, seed by seed"]) + " |", "|" + "---|" * (len(heads) + 1)]
    for name in (name for name in ROWS if all(name in run["rows"] for run in runs)):
        values = np.array([[run["rows"][name][measured][split] for split in splits] for run in runs])
        cells = [f"{value:.4f}" for value in [*values.mean(axis=0), values[:, 2:].mean()]]
        lines.append("| " + " | ".join([name, *cells, ", ".join(f"{value:.4f}" for value in values[:, 1])]) + " |")
    return "\n".join(lines)


def against(runs: Sequence[Mapping[str, Any]], reference: str) -> str:
    """In words: what the search gains on a row by test and over the shifts, seed by seed."""
    gains, shifts, values = [], [], []
    for run in runs:
        ours, theirs = (run["rows"][name]["accuracy"] for name in ("search", reference))
        gains.append(ours["test"] - theirs["test"])
        shifts.append(np.mean([ours[split] - theirs[split] for split in list(ours)[2:]]))
        values.append(run["rows"]["search"]["mcnemar_p"][reference]["test"])
    test, shift = (", ".join(f"{100 * gain:+.2f}" for gain in each) for each in (gains, shifts))
    return (
        f"search less {reference}, points: test {test} (mean {100 * np.mean(gains):+.2f}; exact McNemar p "
        f"{', '.join(f'{p:.3f}' for p in values)}); shifts {shift} (mean {100 * np.mean(shifts):+.2f})"
    )


def main(given: Sequence[str] | None = None) -> int:
    """Print the tables and write the file; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--results", type=Path, default=HERE)
    options = parser.parse_args(given)
    runs = [kept(folder) for folder in options.folders]
    print("\n\n".join([table(runs, "accuracy"), table(runs, "nll"), *(against(runs, name) for name in REFERENCES)]))
    (options.results / "seeds.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
