"""Compare: the published recipes on one pool, in one table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from mixopt.assemble import Assembly
from mixopt.comparison.ensembles import ENSEMBLES
from mixopt.comparison.requests import Request, default_rows, requests_of, soups_of_soups
from mixopt.comparison.running import run_requests
from mixopt.diagnosis import Outcome
from mixopt.errors import RunError, SpecError, listing, names
from mixopt.ingredients import ingredient_files
from mixopt.listener import Listener
from mixopt.reporting.build import best_row, entries
from mixopt.reporting.rows import Failure
from mixopt.reporting.schema import Report
from mixopt.runs.export import base_entry, export, score_rows
from mixopt.runs.folder import RunFolder
from mixopt.runs.page import write_page
from mixopt.runs.session import finish, in_folder, made_rows, run_fields
from mixopt.scoring.tally import Tally
from mixopt.spec import StudySpec, load_spec
from mixopt.stages.announce import announce
from mixopt.stages.plan import greedy_defaults
from mixopt.values.recipe import Recipe
from mixopt.values.samples import VALIDATION
from mixopt.workers import assembled


@dataclass(frozen=True, eq=False)
class CompareResult:
    """What a comparison left.

    Attributes:
        folder: The run folder.
        recipe: The best row's mix and all that rebuilds it.
        report: What report.json holds.
        failed: Row name to the reason why it could not be made.
    """

    folder: Path
    recipe: Recipe
    report: Report
    failed: dict[str, str]


def compare(
    models: str | Path | None = None,
    *,
    study: str | Path | None = None,
    listener: Listener | None = None,
    **options: Any,
) -> CompareResult:
    """Run the published recipes on a pool, through one objective and one cache, and put them in one table.

    A method that fails leaves a row that says why, and the others still run. The mix of the best row is saved.

    Args:
        models: The pool's folder.
        study: A study.toml.
        listener: Told about notices and progress.
        **options: Any field of `mixopt.StudySpec`; ``methods`` names the rows, see
            `mixopt.comparison.requests.requests_of`.

    Raises:
        MixoptError: Bad input, or no method at all could choose a mix; nothing already computed is lost.
    """
    spec = load_spec({"models": models, **options}, None if study is None else Path(study))
    return in_folder("compare", spec, listener, _compare)


def _compare(spec: StudySpec, folder: RunFolder, listener: Listener) -> CompareResult:
    started = time.monotonic()
    requests = _rows_wanted(spec, listener)
    # Splits that steer a search's trials beside the validation split steer no method.
    unsteered = spec.model_copy(update={"select": {}, "shifts": "none"})
    with assembled(unsteered, listener) as assembly:
        return _compare_with(spec, folder, listener, assembly, requests, started)


def _compare_with(
    spec: StudySpec,
    folder: RunFolder,
    listener: Listener,
    assembly: Assembly,
    requests: Mapping[str, Request],
    started: float,
) -> CompareResult:
    """The same, with a pool that is open."""
    objective = assembly.objective
    compared = _compared(spec, assembly)
    _check_same_comparison(folder, compared)
    folder.write_spec(spec.model_copy(update=assembly.resolved))
    announce(spec, assembly, listener)
    chosen = run_requests(objective, requests, seed=spec.seed, device=assembly.device, listener=listener)
    rows = score_rows(objective, base_entry(objective) | chosen, listener)
    failed = {row.name: row.reason for row in rows if isinstance(row, Failure)}
    mixes = {name: entry.mix for name, entry in chosen.items() if entry.mix is not None and name not in failed}
    if not mixes:
        raise RunError(
            listing("no method could choose a mix", [f"{name}: {reason}" for name, reason in failed.items()])
        )
    best = best_row([row for row in made_rows(rows) if row.name in mixes], objective.metric.name, objective.tuning)
    saved = export(spec, assembly, folder, best, mixes[best], listener)
    report = Report(
        command="compare",
        methods=entries(rows, objective.metric.name, objective.tuning, best=best),
        best=best,
        verification=saved.verification,
        failed=failed,
        compared=compared,
        **run_fields(spec, assembly, started),
    )
    finish(folder, report, saved.recipe)
    tally = reduce(Tally.merged, (entry.tally for entry in chosen.values()))
    base = {name: entry.mix for name, entry in base_entry(objective).items() if entry.mix is not None}
    write_page(spec, assembly, folder, Outcome(made_rows(rows), {**base, **mixes}, best), tally, listener)
    return CompareResult(folder.path, saved.recipe, report, failed)


def _rows_wanted(spec: StudySpec, listener: Listener) -> dict[str, Request]:
    """The rows of a comparison, from file names alone: a wrong one is told before anything is opened."""
    if spec.ingredient_count is not None:
        raise SpecError(
            f"ingredients = {spec.ingredient_count}: this is for a search; here a row takes so many: uniform:top=4"
        )
    files, base = ingredient_files(spec)
    columns = [*files, *([base[0]] if base else [])]
    wanted = spec.methods or (soups_of_soups() if spec.from_ else default_rows(len(files)))
    requests = requests_of(wanted, columns, spec.from_, greedy_defaults(spec))
    if all(request.method in ENSEMBLES for request in requests.values()):
        raise SpecError("--methods: only ensembles, and no mix to save; name a method that chooses one as well")
    listener.info(f"rows: {names(requests, len(requests))}")
    return requests


def _compared(spec: StudySpec, assembly: Assembly) -> dict[str, Any]:
    """What must not change between comparisons in one folder."""
    pool = assembly.objective.pool
    return {
        "checkpoints": {name: digest[:12] for name, digest in pool.fingerprints.items()},
        "base": pool.base,
        "metric": spec.metric,
        "data": assembly.objective.evaluators[VALIDATION].split.fingerprint[:12],
    }


def _check_same_comparison(folder: RunFolder, compared: Mapping[str, Any]) -> None:
    """Refuse to replace a comparison of something else.

    Raises:
        RunError: The folder holds one of other checkpoints, data or metric.
    """
    before = folder.content().get("compared", compared)
    if changed := [key for key in compared if before.get(key) != compared[key]]:
        raise RunError(
            f"{folder.path}: holds a comparison with another {' and another '.join(changed)}; choose another folder "
            "with --out"
        )
