"""Arrow tables as tables of records: what Parquet files and folders that `datasets` saved have in common.

The only module that imports pyarrow, which is an extra: ``pip install 'mixopt[parquet]'``. What is read is validated in
full before a value of it is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from mixopt.data.table import Table
from mixopt.errors import DataError
from mixopt.memory import available_memory, gigabytes
from mixopt.untrusted import refusing

# The key under which `datasets` keeps the types of columns in a schema.
_HUGGING_FACE = b"huggingface"
_CURE = "write it anew, or restore it from a copy"


def parquet_table(path: Path, files: Sequence[Path], notices: Sequence[str] = (), *, first_only: bool = False) -> Table:
    """Parquet files of one schema, one after the other.

    Args:
        path: What the user named.
        files: The files.
        notices: What is to be told of them.
        first_only: Read the first row of the first alone, which shows what all are.

    Raises:
        DataError: pyarrow is absent, or a file is damaged, of another schema, or larger than the memory.
    """
    pa = _pyarrow(path)
    import pyarrow.parquet as pq

    parts = []
    needed = 0
    for file in files[:1] if first_only else files:
        with _reading(pa, file, "not a readable Parquet file"):
            opened = pq.ParquetFile(file, memory_map=True)
            if first_only:
                batches = list(islice(opened.iter_batches(batch_size=1), 1))
                parts.append(pa.Table.from_batches(batches, schema=opened.schema_arrow))
                continue
            groups = [opened.metadata.row_group(number) for number in range(opened.num_row_groups)]
            needed += sum(group.total_byte_size for group in groups)
            _check_memory(file, needed)
            parts.append(opened.read())
    return _table_of(pa, path, files, parts, {}, notices)


def ipc_table(path: Path, files: Sequence[Path], features: Mapping[str, Any]) -> Table:
    """Arrow files in the streaming format, memory-mapped, one after the other.

    Args:
        path: What the user named.
        files: The files.
        features: The types of their columns, as `datasets` writes them beside.

    Raises:
        DataError: pyarrow is absent, or a file is damaged.
    """
    pa = _pyarrow(path)
    parts = []
    for file in files:
        with _reading(pa, file, "not a readable Arrow file"):
            if not file.is_file():
                raise DataError(f"{file}: no such file, but {path} names it; {_CURE}")
            with pa.ipc.open_stream(pa.memory_map(str(file))) as stream:
                parts.append(stream.read_all())
    return _table_of(pa, path, files, parts, features, ())


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise DataError(f"{path}: needs pyarrow: pip install 'mixopt[parquet]'") from error
    return pyarrow


def _table_of(
    pa: Any,
    path: Path,
    files: Sequence[Path],
    parts: Sequence[Any],
    features: Mapping[str, Any],
    notices: Sequence[str],
) -> Table:
    with _reading(pa, path, "not one table"):
        for part in parts:
            part.validate(full=True)
        table = pa.concat_tables([part.replace_schema_metadata(None) for part in parts])
        schema = parts[0].schema
        found = {**_features_of(schema.metadata or {}), **features}
        # Numbers of codes, as categories of pandas are kept, for the texts that they stand for.
        for place, each in enumerate(table.schema):
            if pa.types.is_dictionary(each.type):
                decoded = table.column(place).cast(each.type.value_type)
                table = table.set_column(place, each.name, decoded)
        table = table.combine_chunks()
        names = tuple(table.column_names)
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two of its columns have one name; {_CURE}")

    def value(number: int, name: str) -> Any:
        with _reading(pa, path, f"no value of {name} in row {number + 1}"):
            return table.column(name)[number].as_py()

    def column(name: str) -> list[Any]:
        with _reading(pa, path, f"no values of {name}"):
            return list(table.column(name).to_pylist())

    return Table(
        path=path,
        files=tuple(files),
        columns=names,
        count=table.num_rows,
        row=lambda number: {name: value(number, name) for name in names},
        column=column,
        where=lambda number: f", row {number + 1}",
        classes={name: classes for name in names if (classes := _classes_of(found.get(name)))},
        notices=tuple(notices),
    )


@contextmanager
def _reading(pa: Any, path: Path, found: str) -> Iterator[None]:
    """What pyarrow raises is one error; the names of its exceptions are not all of Python's."""
    with refusing(DataError, str(path), found=found, cure=_CURE, also=(pa.ArrowException,)):
        yield


def _check_memory(file: Path, needed: int) -> None:
    free = available_memory()
    if free and needed > free:
        raise DataError(f"{file}: asks for {gigabytes(needed)} of memory, and {gigabytes(free)} is free; split it")


def _features_of(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The types of columns that `datasets` kept in a schema; what is no such note is none."""
    try:
        found = json.loads(metadata[_HUGGING_FACE])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _classes_of(feature: Any) -> tuple[str, ...]:
    """The names of a `ClassLabel`."""
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)
