"""Searches with all defaults on the tiny pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixopt
from mixopt.runs.search import SearchResult
from tests.study.killing import Killed, kill_after

SAMPLES, HELD = 96, 19


STEERING = SAMPLES - HELD


TRIALS = 16  # the start, a generation of 12, and some of the next


def options_of(pool: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "models": pool,
        "trials": TRIALS,
        "device": "cpu",
        "precision": "fp32",
        "out": folder / "run",
        "cache": folder / "cache",
        **more,
    }


def rows_of(result: SearchResult) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result.report.as_dict()["methods"]}


def run_killed(writes: tuple[int, ...], **options: Any) -> SearchResult:
    """Run a search that is killed at its so many-th journal write, each time it goes on."""
    for count in writes:
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, count, torn=True)
            with pytest.raises(Killed):
                mixopt.search(**options)
    return mixopt.search(**options)


def lacking(pool: Path) -> None:
    """Take a class out of the validation split."""
    with np.load(pool / "val.npz") as arrays:
        kept = arrays["y"] != 3
        found = {name: arrays[name][kept] if name != "classes" else arrays[name] for name in arrays.files}
    np.savez(pool / "val.npz", **found)
