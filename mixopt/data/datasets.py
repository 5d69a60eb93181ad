"""Splits as a folder that Hugging Face's ``Dataset.save_to_disk`` wrote: Arrow files, and what their columns are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixopt.data.arrow import ipc_table
from mixopt.data.source import Listing, Reading, Source
from mixopt.data.table import Table, inside, listing_of, source_of
from mixopt.errors import DataError, names, short
from mixopt.untrusted.texts import read_json

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_WHAT = "not a folder that datasets saved"


def matches(path: Path) -> bool:
    """Whether the path is the folder of a dataset, or of several splits of one."""
    return (path / SPLITS).is_file() or ((path / STATE).is_file() and (path / INFO).is_file())


def files(path: Path, reading: Reading) -> Listing:
    """Its Arrow files and what is said of them, and the images that they name."""
    return listing_of(_table(path), reading)


def open_source(path: Path, reading: Reading) -> Source:
    """Map the records.

    Raises:
        DataError: pyarrow is absent, the folder holds several splits or is damaged, or its columns are not what they
            should be.
    """
    return source_of(_table(path), reading)


def _table(path: Path) -> Table:
    if (path / SPLITS).is_file():
        stored = read_json(path / SPLITS, DataError, found=_WHAT)
        found = stored.get("splits") if isinstance(stored, dict) else None
        splits = [str(name) for name in found] if isinstance(found, list) else []
        first = path / short(splits[0]) if splits else path
        raise DataError(f"{path}: holds several splits ({names(splits, 20) or 'none'}); name one, such as {first}")
    state, info = (read_json(path / name, DataError, found=_WHAT) for name in (STATE, INFO))
    if not isinstance(state, dict) or not isinstance(info, dict):
        raise DataError(f"{path}: {_WHAT}; its {STATE} and {INFO} should be JSON objects; save it again")
    if state.get("_indices_data_files"):
        raise DataError(f"{path}: a selection of rows beside whole files; save it again after flatten_indices()")
    stored = state.get("_data_files")
    parts = [_part(path, each) for each in stored] if isinstance(stored, list) else []
    if not parts:
        raise DataError(f"{path}: its {STATE} names no data files; save it again")
    features = info.get("features")
    table = ipc_table(path, parts, features if isinstance(features, dict) else {})
    return Table(**{**vars(table), "files": (path / STATE, path / INFO, *parts)})


def _part(path: Path, stored: Any) -> Path:
    name = stored.get("filename") if isinstance(stored, dict) else None
    try:
        return inside(path, name if isinstance(name, str) else "")
    except ValueError as error:
        raise DataError(f"{path / STATE}: names {short(repr(name))} as a data file, {error}; save it again") from error
