"""The tables of a report, as header and cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixopt.values.samples import VALIDATION

REFERENCES = ("individual", "greedy")


def table(
    report: Mapping[str, Any], intervals: bool = False, details: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table that a terminal or a README shows.

    Args:
        report: Of `make_report`.
        intervals: Show half the width of every score's 95 % interval beside it.
        details: Show images and peak memory as well.
    """
    methods = report["methods"]
    tests = [*(f"{name} (steers)" for name in steering_of(report)), *tests_of(report)]
    measured = details and any(entry.get("peak_memory") for entry in methods)
    ensembles = any(entry.get("models", 1) > 1 for entry in methods)
    header = ["method", "selection", *tests, "evaluations", *(["images"] if details else []), "seconds", "ingredients"]
    header += [*(["peak MB"] if measured else []), *(["inference"] if ensembles else [])]
    cells = []
    for entry in methods:
        if entry["search"] is None:
            cells.append([entry["name"], *("-" for _ in header[1:])])
            continue
        scores = {VALIDATION: entry["search"], **entry.get("select", {}), **entry["test"]}
        peak = entry.get("peak_memory")
        cells.append(
            [
                entry["name"],
                *(_score(scores[split], entry["interval"][split] if intervals else None) for split in scores),
                str(entry["evaluations"]),
                *([f"{entry['images']:,}"] if details else []),
                f"{entry['seconds']:.1f}",
                str(entry["ingredients"]),
                *([f"{peak / 1e6:,.0f}" if peak else "-"] if measured else []),
                *([f"{entry['models']}x"] if ensembles else []),
            ]
        )
    return header, cells


def widths(report: Mapping[str, Any]) -> dict[str, float]:
    """Column name to half the width of its widest 95 % interval."""
    made = [entry for entry in report["methods"] if entry["search"] is not None]
    columns = {VALIDATION: "selection", **{name: name for name in tests_of(report)}}
    return {
        shown: max((_half(entry["interval"][split]) for entry in made), default=0.0) for split, shown in columns.items()
    }


def ties(report: Mapping[str, Any]) -> list[str]:
    """The other rows that score exactly as the best does on the selection split, and are single models too."""
    made = {entry["name"]: entry for entry in report["methods"] if entry["search"] is not None}
    best = made[report["best"]]
    return [
        name
        for name, entry in made.items()
        if entry is not best and entry["models"] == 1 and entry["search"] == best["search"]
    ]


def comparisons(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the paired differences in accuracy against the references, with McNemar p-values.

    The header alone names ``method`` where the report holds none of the references.
    """
    made = [entry for entry in report["methods"] if entry["search"] is not None]
    accuracy = {entry["name"]: {split: each["accuracy"] for split, each in entry["metrics"].items()} for entry in made}
    references = [name for name in REFERENCES if name in accuracy]
    splits = [VALIDATION, *tests_of(report)]
    shown = {split: "selection" if split == VALIDATION else split for split in splits}
    header = ["method", *(f"{shown[split]} - {name}" for name in references for split in splits)]
    cells = [
        [
            entry["name"],
            *(
                "-"
                if name == entry["name"]
                else f"{accuracy[entry['name']][split] - accuracy[name][split]:+.4f} "
                f"({_p_value(entry['mcnemar_p'][name][split])})"
                for name in references
                for split in splits
            ),
        ]
        for entry in made
    ]
    return header, cells


def front(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the trials on the Pareto front, and of the picked one, which is marked.

    Where no trial was confirmed to be better, the start is picked, on the front or not.
    """
    found = report["front"]
    marks = {True: "picked", False: "picked, not on the front: no trial was confirmed"}
    header = ["trial", *(f"{each['name']} (weight {each['weight']:g})" for each in found["objectives"]), ""]
    cells = [
        [
            str(point["trial"]),
            *(f"{value:.4f}" for value in point["values"]),
            marks[point["on_front"]] if point["trial"] == found["picked"] else "",
        ]
        for point in found["points"]
        if point["on_front"] or point["trial"] == found["picked"]
    ]
    return header, cells


def tests_of(report: Mapping[str, Any]) -> list[str]:
    """The names of the test splits."""
    return next((list(entry["test"]) for entry in report["methods"] if entry["search"] is not None), [])


def steering_of(report: Mapping[str, Any]) -> list[str]:
    """The splits that steered a search beside the selection split."""
    return [name for name in report.get("select", {}) if name != VALIDATION]


def _score(value: float, bounds: Sequence[float] | None) -> str:
    return f"{value:.4f}" if bounds is None else f"{value:.4f} ±{_half(bounds):.4f}"


def _half(bounds: Sequence[float]) -> float:
    return (bounds[1] - bounds[0]) / 2


def _p_value(value: float) -> str:
    return "p<0.001" if value < 0.001 else f"p={value:.3f}"
