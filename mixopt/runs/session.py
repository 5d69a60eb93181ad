"""A run's work inside its folder: held, logged, and what every report says of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mixopt.assemble import Assembly
from mixopt.errors import RunError
from mixopt.files import ENVIRONMENT, remove_leftovers, scratch_of, write_text
from mixopt.imports import is_import_path
from mixopt.ingredients import ingredient_files
from mixopt.listener import Listener, TrialEvent
from mixopt.reporting.card import model_card
from mixopt.reporting.rows import Failure, Row
from mixopt.reporting.schema import Report, SplitInfo
from mixopt.runs.folder import RunFolder
from mixopt.runs.replacing import check_outputs
from mixopt.spec import StudySpec
from mixopt.values.recipe import Recipe
from mixopt.version import __version__

Result = TypeVar("Result")


def in_folder(
    command: str,
    spec: StudySpec,
    listener: Listener | None,
    work: Callable[[StudySpec, RunFolder, Listener], Result],
) -> Result:
    """Do a run's work while holding its folder; a full disk becomes one message.

    Where no folder was named, and the usual one holds the other command's result, the work goes beside it.
    """
    folder = RunFolder(spec.folder)
    if spec.out is None and folder.holds() not in (None, command):
        folder = RunFolder(folder.path.with_name(f"{folder.path.name}-{command}"))
    with folder.locked():
        try:
            folder.check_free_for(command)
            if not spec.force:
                check_outputs(folder.outputs, inputs_of(spec), folder.path)
            remove_leftovers(scratch_of(spec.cache))
            return work(folder.resolved(spec), folder, logged(listener or Listener(), folder))
        except OSError as error:
            if error.errno not in ENVIRONMENT:
                raise
            raise RunError(
                f"{error.filename or folder.path}: {error.strerror or error}; free space or check the disk. "
                "Nothing already computed is lost: the same command continues from here"
            ) from error


def inputs_of(spec: StudySpec) -> list[Path]:
    """The files and folders that a run reads."""
    files, base = ingredient_files(spec)
    splits = [spec.data.validation, *spec.data.test.values(), *(path for path, _ in spec.select.values())]
    named = [Path(spec.start)] if spec.start.endswith((".json", ".safetensors")) else []
    named += [path for path in (spec.class_map, spec.unlabelled) if path is not None]
    found = [*files.values(), *([base[1]] if base else []), *(path for path in splits if path is not None), *named]
    return [path for path in found if not is_import_path(str(path))]


def logged(listener: Listener, folder: RunFolder) -> Listener:
    """The listener, with notices and trials kept in the run's log as well."""

    def info(text: str) -> None:
        folder.note(text)
        listener.info(text)

    def warn(text: str) -> None:
        folder.note(f"warning: {text}")
        listener.warn(text)

    def trial(event: TrialEvent) -> None:
        value = "failed" if event.value is None else f"{event.value:.6f}"
        folder.note(f"trial {event.number}: {value}, best {event.best:.6f}, {event.complete} of {event.total} complete")
        listener.trial(event)

    return Listener(info=info, warn=warn, progress=listener.progress, trial=trial)


def run_fields(spec: StudySpec, assembly: Assembly, started: float) -> dict[str, Any]:
    """What every report says of its run: fields of `mixopt.reporting.schema.Report`."""
    wall, objective = time.monotonic() - started, assembly.objective
    return {
        "version": __version__,
        "metric": objective.metric.name,
        "family": assembly.family.identity()["name"],
        "splits": {
            name: SplitInfo(
                samples=len(split),
                fingerprint=split.fingerprint,
                among=len(split.among) if split.among else None,
                notes=split.notes,
            )
            for name, split in ((name, evaluator.split) for name, evaluator in objective.evaluators.items())
        },
        "tuning": objective.tuning,
        "signal": objective.signal.name,
        "batchnorm": assembly.batchnorm.as_dict(),
        "precision": assembly.precision.as_dict(),
        "stack": {"mode": assembly.stack.mode, "place": assembly.stack.place},
        "seed": spec.seed,
        "wall_seconds": round(wall, 3),
        "time": objective.stopwatch.shares(wall),
        "reused": objective.reused,
    }


def finish(folder: RunFolder, report: Report, recipe: Recipe) -> None:
    """Write the report, and the model card beside the model."""
    write_text(folder.report, report.to_json())
    write_text(folder.card, model_card(report, recipe, folder.path.resolve().name))


def made_rows(rows: Sequence[Row | Failure]) -> list[Row]:
    """Those that could be made."""
    return [row for row in rows if isinstance(row, Row)]
