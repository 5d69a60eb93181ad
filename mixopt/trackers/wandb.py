"""Weights & Biases: one run, its rows as a table.

W&B has no runs in runs, and its users look at one run's page: the rows are a table that sorts and filters there, every
row's numbers are in the summary as ``ROW/score/SPLIT``, and the best row's by themselves, so that the project's list
compares mixopt's runs. The search's curve is the history, drawn against images; the page is shown as it is, and lies
with the other files in an artifact.

The run's id comes from the digest of its report, because W&B takes up a run of a known id where it ended. What W&B
finds out by itself of the machine and the folder that the command runs in is switched off: it is not that of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mixopt.errors import SpecError
from mixopt.listener import Listener
from mixopt.trackers import Logged, Place, library, writing
from mixopt.trackers.record import RunRecord

OPTION = "project"
_CURE = "check `wandb login`, WANDB_BASE_URL and the network; WANDB_MODE=offline keeps the run here, for `wandb sync`"
_QUIET = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


def write(record: RunRecord, place: Place, listener: Listener) -> Logged:
    """Write a run, or what is missing of one of the same id."""
    with library("wandb"):
        import wandb
    project, name = place.project_or("WANDB_PROJECT"), f"mixopt-{record.digest[:16]}"
    with writing("wandb", f"project {project}", _CURE, (wandb.Error,)):
        settings = wandb.setup().settings
        if settings.mode == "disabled":
            raise SpecError("--to wandb: WANDB_MODE is disabled, which keeps nothing; set it to online or offline")
        kept = sorted(Path(settings.wandb_dir).glob(f"offline-run-*-{name}")) if settings.mode == "offline" else []
        if kept:
            listener.info(f"the same report is in {kept[-1]}: nothing was written; remove that folder to log it anew")
            return Logged("wandb", str(kept[-1]), name, True)
        options: dict[str, Any] = {"project": project, "id": name, "name": record.name, "resume": "allow"}
        with wandb.init(**options, config=dict(record.params), settings=wandb.Settings(**_QUIET)) as run:
            was_there, is_kept_here = bool(run.resumed), bool(run.offline)
            where = str(run.sync_dir if is_kept_here else run.url)
            _write_all(wandb, run, record)
    if was_there:
        listener.info(f"the same report is run {name} there: what it had is left as it is, its files were put again")
    if is_kept_here:
        listener.info(f"kept here; to upload it: wandb sync {where}")
    return Logged("wandb", where, name, was_there)


def _write_all(wandb: Any, run: Any, record: RunRecord) -> None:
    run.define_metric("search/images", hidden=True)
    run.define_metric("search/*", step_metric="search/images")
    # A run that is taken up has its first steps; W&B counts on from there.
    for step, values in enumerate(_history(wandb, record)):
        if step >= run.starting_step:
            run.log(values, step=step)
    run.summary.update(
        {
            **record.best.numbers,
            **{f"{row.name}/{name}": value for row in record.rows for name, value in row.numbers.items()},
        }
    )
    artifact = wandb.Artifact(f"mixopt-{record.digest[:16]}", type="mixopt-run")
    for name, path in record.files.items():
        artifact.add_file(str(path), name=name)
    run.log_artifact(artifact)


def _history(wandb: Any, record: RunRecord) -> Iterator[Mapping[str, Any]]:
    """The curve, trial by trial, then the table and the page."""
    for point in record.curve:
        yield {"search/images": point.images, "search/trial": point.trial, "search/best": point.best}
    cells = [[row.name, *(row.numbers.get(name) for name in record.columns), row.error or None] for row in record.rows]
    shown = {"rows": wandb.Table(columns=["row", *record.columns, "failed"], data=cells, allow_mixed_types=True)}
    if page := record.files.get("report.html"):
        shown["report"] = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    yield shown
