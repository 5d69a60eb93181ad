"""The table and the picture of a study: ``python studies/winning/show.py studies/NAME/results.json``.

Prints Markdown and writes ``best_so_far.svg`` beside the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

# Okabe and Ito's, which colour-blind readers tell apart; the dashes do without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
DASHES = ("-", "--", "-.", ":")
Floats = NDArray[np.float64]


def spread(values: Sequence[float], digits: int = 4, sign: str = "") -> str:
    """Mean and, of two or more, its 95 % interval by Student's t."""
    mean = f"{np.mean(values):{sign},.{digits}f}"
    if len(values) < 2:
        return mean
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean} ± {half:,.{digits}f}"


def against_greedy(row: Mapping[str, Any], greedy: Mapping[str, Any], split: str) -> str:
    """The p-value of McNemar's test on a split, and the direction where the row is the worse one."""
    p = row.get("mcnemar_p", {}).get("greedy", {}).get(split)
    if p is None:
        return "-"
    shown = "< 0.001" if p < 0.001 else f"{p:.3f}"
    return f"{shown} (worse)" if row["test"][split] < greedy["test"][split] else shown


def columns_of(row: Mapping[str, Any], first: str | None) -> dict[str, float]:
    """A row's numbers by column; the splits after the first are averaged."""
    others = [value for name, value in row["test"].items() if name != first]
    found = {"selection": row["search"]}
    if first is not None:
        found["test"] = row["test"][first]
    if others:
        found["shift"] = float(np.mean(others))
    if first is not None:
        found["optimism"] = 100 * (row["search"] - row["test"][first])
    return found | {key: row[key] for key in ("evaluations", "images", "seconds")}


def cell(column: str, values: Sequence[float]) -> str:
    """A column's text for one or several runs."""
    if column == "optimism":
        return spread(values, 1, "+")
    if column in ("evaluations", "images", "seconds"):
        return f"{np.mean(values):,.0f}"
    return spread(values)


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a line per row of the comparison, and one per arm with the means over its seeds."""
    rows = [row for row in results["rows"] if row.get("search") is not None]
    greedy = next(row for row in rows if row["name"] == "greedy")
    first = next(iter(greedy["test"]), None)
    columns = list(columns_of(greedy, first))
    heads = ["row", *columns, "wall s", "p against greedy", "start stayed"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        name = row["name"] if row["models"] == 1 else f"{row['name']} ({row['models']}x)"
        own = columns_of(row, first)
        cells = [name, *(cell(column, [own[column]]) for column in columns), "-"]
        lines.append("| " + " | ".join([*cells, against_greedy(row, greedy, first or ""), "-"]) + " |")
    for arm, runs in results["arms"].items():
        found = [columns_of(each["row"], first) for each in runs]
        walls = [each["wall_seconds"] for each in runs if each["wall_seconds"] is not None]
        cells = [f"**search, {arm}**", *(cell(column, [each[column] for each in found]) for column in columns)]
        cells.append(f"{np.mean(walls):,.0f}" if walls else "-")
        cells.append(", ".join(against_greedy(each["row"], greedy, first or "") for each in runs))
        cells.append(f"{sum(each['start_stayed'] for each in runs)} of {len(runs)}")
        lines.append("| " + " | ".join(cells) + " |")
    others = [name for name in greedy["test"] if name != first]
    notes = [
        f"Means over {len(next(iter(results['arms'].values())))} seeds with 95 % intervals by Student's t; "
        f"at most {results['trials']} trials each. Optimism is selection less {first}, in points. `p`: exact McNemar's "
        f"test on {first}, seed by seed.",
        f"`shift` is {'the mean of ' if len(others) > 1 else ''}{', '.join(others)}." if others else "",
        "`seconds` are what a row's evaluations took when first computed; `wall s` what a search took, with baselines "
        "from the cache where another run had left them.",
    ]
    return "\n".join([*lines, "", " ".join(note for note in notes if note)])


def steps(curve: Sequence[Sequence[float]], places: Floats) -> Floats:
    """The best so far at places, not before the curve begins."""
    images, best = np.array(curve).T
    return np.asarray(best[np.searchsorted(images, places, side="right") - 1])


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Best signal so far against images scored in trials: the mean over seeds, and from the least to the most."""
    mpl.rcParams["svg.hashsalt"] = "mixopt"  # the same file from the same numbers
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    signal = next(iter(results["arms"].values()))[0]["signal"]  # others are on other scales
    drawn = {
        arm: runs
        for arm, runs in results["arms"].items()
        if all(each["best_so_far"] and each["signal"] == signal for each in runs)
    }
    for number, (arm, runs) in enumerate(drawn.items()):
        curves = [each["best_so_far"] for each in runs]
        begin, end = max(curve[0][0] for curve in curves), max(curve[-1][0] for curve in curves)
        places = np.unique([begin, end, *(x for curve in curves for x, _ in curve if x >= begin)])
        values = np.array([steps(curve, places) for curve in curves])
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        axes.step(places, values.mean(axis=0), where="post", color=colour, linestyle=dash, linewidth=2, label=arm)
        axes.fill_between(places, values.min(axis=0), values.max(axis=0), step="post", color=colour, alpha=0.15)
    axes.set_xlabel("images scored in trials (without what the start cost)")
    axes.set_ylabel(f"best {signal} so far, where it steered")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"{results['pool']}: mean over seeds, from the least to the most")
    axes.grid(color="#e4e4e4")
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})


def show(path: Path) -> None:
    """Print the table of a results.json, and draw its picture beside it."""
    results = json.loads(path.read_text())
    print(table(results))
    draw(results, path.with_name("best_so_far.svg"))


if __name__ == "__main__":
    show(Path(sys.argv[1]))
