"""TensorBoard: a folder of event files for a run, and in it one for every row.

TensorBoard compares what lies in different folders, and its HParams page lists them: a row of the report is a row of
that table, with its scores as columns. The folder of the run has the search's curve, by trials and by images (which
are steps there), the best row's numbers and the report's table as text. TensorBoard keeps no files; those of the run
are copied beside the events.

An event file is written whole under a name that does not change, so that to log the same report again replaces it by
the same. Its numbers are those of 32 bits, as everywhere in TensorBoard.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mixopt.files import atomic_write
from mixopt.listener import Listener
from mixopt.trackers import Logged, Place, library, writing
from mixopt.trackers.record import RecordedRow, RunRecord

OPTION = "logdir"
EVENTS = "events.out.tfevents.0.mixopt"
FILES = "files"
_CURE = "check that the folder of --logdir can be written, and the disk"
# What stands in no name of a folder on any system; TensorBoard shows them as they are.
_NO_NAME = re.compile(r"[^\w.=+-]")
_LONGEST_NAME = 100

# A summary, and its step.
_Step = tuple[Any, int]


def write(record: RunRecord, place: Place, listener: Listener) -> Logged:
    """Write a run's folder, or write it again as it was."""
    with library("tensorboard"):
        import tensorboard  # noqa: F401 (whether it is there)
    folder = place.logdir / _run_name(record)
    was_there = (folder / EVENTS).is_file()
    with writing("tensorboard", str(folder), _CURE):
        for name, path in record.files.items():
            with path.open("rb") as source, atomic_write(folder / FILES / name) as target:
                shutil.copyfileobj(source, target)
        for number, row in enumerate(record.rows, start=1):
            _write_events(folder / "rows" / f"{number:02d}-{_plain(row.name)}", _row(record, row), record.made)
        # Last: where it is, the run is whole.
        _write_events(folder, _run(record), record.made)
    if was_there:
        listener.info(f"the same report was there: {folder} was written again")
    return Logged("tensorboard", str(place.logdir), folder.name, was_there)


def _run_name(record: RunRecord) -> str:
    return f"{_plain(record.name)}-{record.digest[:8]}"


def _plain(name: str) -> str:
    """A name for a folder."""
    return _NO_NAME.sub("_", name)[:_LONGEST_NAME].lstrip(".") or "run"


def _run(record: RunRecord) -> Iterable[_Step]:
    yield from _scalars(record.best.numbers)
    for point in record.curve:
        yield from _scalars({"search/best_by_trial": point.best}, point.trial)
        yield from _scalars({"search/best_by_images": point.best}, point.images)
    yield _text("rows", _table(["row", *record.columns, "failed"], record)), 0
    params = [[name, str(value)] for name, value in record.params.items()]
    yield _text("parameters", _markdown(["parameter", "value"], params)), 0


def _row(record: RunRecord, row: RecordedRow) -> Iterable[_Step]:
    """A session of HParams: its name and what the run was made with, its numbers, and how it ended."""
    from tensorboard.plugins.hparams import summary_v2

    params = {"method": row.name, **record.params}
    yield summary_v2.hparams_pb(params, trial_id=f"{_run_name(record)}/{row.name}", start_time_secs=record.made), 0
    yield from _scalars(row.numbers)
    if row.error:
        yield _text("failed", row.error), 0
    yield _end(bool(row.error), record.made), 0


def _end(has_failed: bool, made: float) -> Any:
    """How a session ended; TensorBoard's own function for it needs TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    status = api_pb2.STATUS_FAILURE if has_failed else api_pb2.STATUS_SUCCESS
    content = HParamsPluginData(session_end_info=SessionEndInfo(status=status, end_time_secs=made))
    described = metadata.create_summary_metadata(content)
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=described, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _scalars(numbers: Mapping[str, float], step: int = 0) -> Iterable[_Step]:
    from tensorboard.compat.proto.summary_pb2 import Summary

    for name, value in numbers.items():
        yield Summary(value=[Summary.Value(tag=name, simple_value=value)]), step


def _text(name: str, text: str) -> Any:
    from tensorboard.plugins.text.summary_v2 import text_pb

    return text_pb(name, text)


def _table(header: list[str], record: RunRecord) -> str:
    cells = [
        [row.name, *(f"{row.numbers[name]:.6g}" if name in row.numbers else "" for name in record.columns), row.error]
        for row in record.rows
    ]
    return _markdown(header, cells)


def _markdown(header: list[str], cells: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """A text that ends no cell and starts no other mark."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _write_events(folder: Path, steps: Iterable[_Step], made: float) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    with atomic_write(folder / EVENTS) as stream:
        writer = RecordWriter(stream)
        writer.write(Event(wall_time=made, file_version="brain.Event:2").SerializeToString())
        for summary, step in steps:
            writer.write(Event(wall_time=made, step=step, summary=summary).SerializeToString())
