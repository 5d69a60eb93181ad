"""A pool with splits that steer a search beside the validation split."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt import Objective, load_spec, open_objective
from tests.conftest import make_images

TRIALS = 6


@pytest.fixture(scope="module")
def pool(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pool with one split more, of 40 samples."""
    folder = Path(shutil.copytree(clip_pool_template, tmp_path_factory.mktemp("select") / "pool"))
    np.savez(folder / "extra.npz", **make_images(40, seed=9))
    return folder


def options_of(pool: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "models": pool,
        "trials": TRIALS,
        "sampler": "random",
        "groups": "2",
        "space": "simplex",
        "signal": "smooth",
        "race": "on",
        "confirm": 0.25,
        "start": "uniform",
        "device": "cpu",
        "precision": "fp32",
        "out": folder / "run",
        "cache": folder / "cache",
        "select": {"extra": f"{pool / 'extra.npz'}:0.2"},
        "shifts": "synthetic:0.3",
        **more,
    }


def objective_of(pool: Path, folder: Path, **more: Any) -> Objective:
    return open_objective(load_spec(options_of(pool, folder, **more)))
