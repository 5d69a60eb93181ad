"""MLflow: a run in an experiment, and in it a run for every row.

A row is a nested run and not a table, because MLflow compares runs: its list sorts rows by the score on a split, folds
them under their parent, and draws them against each other. The parent has the best row's numbers, by the same names, so
that mixopt's runs compare as well, and the search's curve, by trials and by images, which are steps there.

The store is MLflow's own choice: ``MLFLOW_TRACKING_URI``, or else ``mlflow.db`` where the command runs. A database and
a server need no more than mlflow-skinny, which the whole mlflow contains; `mlflow ui` needs that one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from mixopt.listener import Listener
from mixopt.trackers import Logged, Place, library, without_password, writing
from mixopt.trackers.record import Param, RecordedRow, RunRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient

OPTION = "project"
DIGEST = "mixopt.report"
_CURE = "check MLFLOW_TRACKING_URI, and that what it names can be reached and written"
# What MLflow takes at once, and of one text; what it does not take in a name.
_MOST_METRICS, _MOST_PARAMS, _LONGEST = 1000, 100, 5000
_LONGEST_NAME = 200
_NO_NAME = re.compile(r"[^\w.\- :/]", re.ASCII)


def write(record: RunRecord, place: Place, listener: Listener) -> Logged:
    """Write a run, or only its files where a finished one of the same report is in the experiment."""
    with library("mlflow"):
        import mlflow
        from mlflow.exceptions import MlflowException
    store = without_password(mlflow.get_tracking_uri())
    project = place.project_or("MLFLOW_EXPERIMENT_NAME")
    with writing(
        "mlflow", store, _CURE, (MlflowException, SQLAlchemyError, ImportError)
    ):  # a store may need a library more
        client = mlflow.MlflowClient()
        known = client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else client.create_experiment(project)
        query = f"tags.`{DIGEST}` = '{record.digest}' and attributes.status = 'FINISHED'"
        found = client.search_runs([experiment], query, max_results=1)
        if found:
            run = found[0].info.run_id
            _put_files(client, run, record)
            listener.info(
                f"the same report is run {run} there: its numbers are left as they are, its files were put again; "
                "delete that run in MLflow to log it anew"
            )
        else:
            run = _write_all(client, experiment, record, _Names(listener))
    return Logged("mlflow", f"experiment {project} of {store}", run, bool(found))


class _Names:
    """Names as MLflow takes them: each its own, and what had to change is told once."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._given: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The name there of one of ours."""
        if name not in self._given:
            plain = _NO_NAME.sub("_", name)[:_LONGEST_NAME]
            others = set(self._given.values())
            free = (plain if number == 1 else f"{plain}_{number}" for number in count(1))
            self._given[name] = next(each for each in free if each not in others)
            if self._given[name] != name:
                self._listener.info(f"MLflow takes no {name!r} for a name; it is {self._given[name]!r} there")
        return self._given[name]


def _write_all(client: MlflowClient, experiment: str, record: RunRecord, names: _Names) -> str:
    """The run and those in it; it is finished last, so that one that was cut short is not taken for whole."""
    tags = {DIGEST: record.digest, "mlflow.source.name": "mixopt"}
    run = _start(client, experiment, record.name, tags, record.made - record.seconds)
    status = "FAILED"
    try:
        curve: list[tuple[str, float, int]] = []
        for point in record.curve:
            curve.append(("search/best_by_trial", point.best, point.trial))
            curve.append(("search/best_by_images", point.best, point.images))
        _put(client, run, record.params, [*_last(record.best.numbers), *curve], record.made, names)
        for row in record.rows:
            _write_row(client, experiment, run, row, record, names)
        _put_files(client, run, record)
        status = "FINISHED"
    finally:
        client.set_terminated(run, status, _milliseconds(record.made))
    return run


def _write_row(
    client: MlflowClient, experiment: str, parent: str, row: RecordedRow, record: RunRecord, names: _Names
) -> None:
    tags = {"mlflow.parentRunId": parent, "mlflow.source.name": "mixopt"}
    if row.error:
        tags["mixopt.error"] = row.error[:_LONGEST]
    start = record.made - row.numbers.get("cost/seconds", 0.0)
    run = _start(client, experiment, row.name, tags, start)
    params = {"method": row.name, **{name: record.params[name] for name in ("metric", "seed")}}
    _put(client, run, params, _last(row.numbers), record.made, names)
    client.set_terminated(run, "FAILED" if row.error else "FINISHED", _milliseconds(record.made))


def _start(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str], start: float) -> str:
    run: Any = client.create_run(experiment, _milliseconds(start), dict(tags), name[:_LONGEST_NAME])
    return str(run.info.run_id)


def _last(numbers: Mapping[str, float]) -> list[tuple[str, float, int]]:
    return [(name, value, 0) for name, value in numbers.items()]


def _put(
    client: MlflowClient,
    run: str,
    params: Mapping[str, Param],
    metrics: Iterable[tuple[str, float, int]],
    made: float,
    names: _Names,
) -> None:
    """Parameters, and metrics as name, value and step."""
    from mlflow.entities import Metric as Number
    from mlflow.entities import Param as Text

    texts = [Text(names.of(name), str(value)[:_LONGEST]) for name, value in params.items()]
    numbers = [Number(names.of(name), float(value), _milliseconds(made), step) for name, value, step in metrics]
    for first in range(0, len(texts), _MOST_PARAMS):
        client.log_batch(run, params=texts[first : first + _MOST_PARAMS])
    for first in range(0, len(numbers), _MOST_METRICS):
        client.log_batch(run, metrics=numbers[first : first + _MOST_METRICS])


def _put_files(client: MlflowClient, run: str, record: RunRecord) -> None:
    for path in record.files.values():
        client.log_artifact(run, str(path))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
