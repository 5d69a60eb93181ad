"""What trainers left beside checkpoints about how they were trained: text and numbers, never executed.

Read are lines of a sweep's ``hparams.jsonl`` in the pool's folder, each naming its checkpoint; and beside a checkpoint,
or one or two folders above it within the pool's folder, ``hparams.yaml`` (Lightning), ``args.yaml`` (timm's train.py)
and ``trainer_state.json`` (transformers' Trainer).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mixopt.errors import MixoptError, RunError
from mixopt.untrusted.texts import MOST_JSON, read_json, read_text

SWEEP = "hparams.jsonl"
YAML = ("hparams.yaml", "args.yaml")
TRAINER = "trainer_state.json"
# Names under which a line of a sweep says which checkpoint it is of.
NAMED = ("model", "name", "run", "file", "checkpoint")
# Numbers of a Trainer's state that were chosen, not reached.
CHOSEN = ("num_train_epochs", "train_batch_size", "max_steps")
MOST = 40  # of one checkpoint
MOST_YAML = 50_000  # bytes: what a person writes, and what the reader, which is in Python, reads in no time
LONGEST = 60  # letters of a value

Value = float | bool | str
Values = dict[str, Value]


def hyperparameters(folder: Path, paths: Mapping[str, Path]) -> dict[str, Values]:
    """By checkpoint, what is known of its training; what cannot be read is left out.

    Args:
        folder: The pool's.
        paths: Checkpoint to its file or folder.
    """
    swept = _swept(folder)
    found = {}
    for name, path in paths.items():
        known = [names for names in (name, path.name, path.stem, path.parent.name) if names in swept]
        found[name] = swept[known[0]] if known else _beside(folder, path)
    return found


def _swept(folder: Path) -> dict[str, Values]:
    """Checkpoint to the values in a sweep's lines."""
    found = {}
    for line in _text(folder / SWEEP).splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and (key := next((key for key in NAMED if key in values), None)):
            name = str(values.pop(key))
            found[name] = _plain(values)
    return found


def _beside(folder: Path, path: Path) -> Values:
    for place in _places(folder, path):
        for name in YAML:
            if values := _yaml(place / name):
                return _plain(values)
        if (place / TRAINER).is_file():
            return _plain(_trainer(place / TRAINER))
    return {}


def _places(folder: Path, path: Path) -> Iterator[Path]:
    """The folder that a checkpoint is or lies in, and up to two above it, inside the pool's."""
    place = path if path.is_dir() else path.parent
    for _ in range(3):
        yield place
        if place == folder or not place.is_relative_to(folder):
            return
        place = place.parent


def _yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(_text(path, MOST_YAML))
    except (yaml.YAMLError, ValueError, RecursionError):  # tags of other programs' objects are refused
        return {}
    return values if isinstance(values, dict) else {}


def _trainer(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path, RunError)
    except MixoptError:
        return {}
    if not isinstance(values, dict):
        return {}
    history = values.get("log_history")
    rates = [each["learning_rate"] for each in history or () if isinstance(each, dict) and "learning_rate" in each]
    chosen = {key: values[key] for key in CHOSEN if key in values}
    numbers = [rate for rate in rates if isinstance(rate, (int, float))]
    return {**chosen, "highest learning rate": max(numbers)} if numbers else chosen


def _text(path: Path, most: int = MOST_JSON) -> str:
    if not path.is_file():
        return ""
    try:
        return read_text(path, RunError, most=most)
    except MixoptError:
        return ""


def _plain(values: Mapping[str, Any]) -> Values:
    """Numbers and short texts by name; lists as texts, everything else left out."""
    found: Values = {}
    for key, value in values.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        is_number = isinstance(value, (bool, int, float)) and math.isfinite(value) and abs(value) < 1e300
        if isinstance(value, str) or is_number:
            kept = value[:LONGEST] if isinstance(value, str) else value
            found[str(key)[:LONGEST]] = kept if isinstance(kept, (bool, str)) else float(kept)
        if len(found) == MOST:
            break
    return found
