"""Reports of made-up rows, with what a run would say of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixopt.reporting.build import entries
from mixopt.reporting.rows import Failure, Row
from mixopt.reporting.schema import Report, SplitInfo, Verification


def report_of(rows: Sequence[Row | Failure], metric: str = "accuracy", **fields: Any) -> Report:
    """A report; ``fields`` replace or add to what stands here."""
    samples = {split: len(each.labels) for row in rows if isinstance(row, Row) for split, each in row.samples.items()}
    values: dict[str, Any] = {
        "version": "1",
        "command": "search",
        "best": next((row.name for row in rows if isinstance(row, Row)), ""),
        "verification": Verification(
            trial_score=0.5, file_score=0.5, difference=0.0, predictions_differing=0, samples=50
        ),
        "splits": {split: SplitInfo(samples=count, fingerprint="ff") for split, count in samples.items()},
        "tuning": samples.get("validation", 0),
        "signal": metric if metric == "nll" else f"{metric} with nll",
        "batchnorm": {"mode": "average", "layers": 0},
        "precision": {"mode": "fp32"},
        "stack": {"mode": "fp32", "place": "device"},
        "seed": 0,
        "wall_seconds": 1.0,
        "time": {},
        "reused": 0.0,
        **fields,
    }
    steering = list(values.get("select", {}))[1:]
    return Report(metric=metric, methods=entries(rows, metric, values["tuning"], steering), **values)
