"""A made-up run for trackers: numbers that are told apart, a row that failed, names that no tool likes."""

from __future__ import annotations

from pathlib import Path

from mixopt.trackers.record import CurvePoint, RecordedRow, RunRecord

SPLITS = ("validation", "test, blurred")


def row(name: str, score: float) -> RecordedRow:
    """A row whose numbers all follow from one."""
    numbers: dict[str, float] = {}
    for place, split in enumerate(SPLITS):
        numbers |= {f"score/{split}": score - place / 10, f"low/{split}": score - 0.3, f"high/{split}": score + 0.3}
    return RecordedRow(name, numbers | {"cost/images": 1000.0, "cost/seconds": 2.5, "ingredients": 3.0})


def record_in(folder: Path, digest: str = "ab" * 32) -> RunRecord:
    """A record whose files lie in a folder."""
    files = {}
    for name in ("report.html", "report.json", "recipe.json"):
        files[name] = folder / name
        files[name].write_text(f"<p>{name}", encoding="utf-8")
    rows = (
        row("greedy", 0.5),
        row("wise_ft:a|b", 0.6),
        RecordedRow("model_stock", {}, "needs a base"),
        row("search", 0.7),
    )
    return RunRecord(
        name="pool",
        digest=digest,
        made=1_700_000_000.0,
        seconds=60.0,
        params={"metric": "accuracy", "seed": 3, "finished": True, "best": "search", "family": "open_clip"},
        best=rows[-1],
        rows=rows,
        curve=(CurvePoint(0, 100, 0.25), CurvePoint(1, 150, 0.25), CurvePoint(2, 250, 0.5)),
        files=files,
    )
