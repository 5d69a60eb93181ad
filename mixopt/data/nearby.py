"""Files and folders that may be splits, by their names and what lies first in them; none is read."""

from __future__ import annotations

from pathlib import Path

from mixopt.data.images import SUFFIXES
from mixopt.files import natural_key

_FILES = frozenset({".npz", ".csv", ".tsv", ".jsonl", ".parquet", ".tar"})
# What trainers write about themselves.
_ABOUT = frozenset({"hparams.jsonl", "log.jsonl", "metrics.csv", "results.csv", "summary.csv", "history.csv"})


def splits_nearby(folder: Path) -> list[Path]:
    """What in a folder may be a split: data files, saved datasets, and folders of class folders, in natural order."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".") and _may_be_split(path)]
    return sorted(found, key=lambda path: natural_key(path.name))


def _may_be_split(path: Path) -> bool:
    if path.is_dir():
        return (path / "dataset_info.json").is_file() or _holds_classes(path)
    return path.suffix.lower() in _FILES and path.name not in _ABOUT and ".pth" not in path.suffixes


def _holds_classes(folder: Path) -> bool:
    """Whether the first folder in a folder begins with an image."""
    inner = next((path for path in sorted(folder.iterdir()) if path.is_dir()), None)
    if inner is None:
        return False
    first = next((path for path in inner.iterdir() if path.is_file()), None)
    return first is not None and first.suffix.lower() in SUFFIXES
