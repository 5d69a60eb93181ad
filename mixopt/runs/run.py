"""The verbs that make a run: search, compare. The others are in `mixopt.runs.verbs`. Nothing here prints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mixopt import study as searching
from mixopt.assemble import Assembly, assemble, ingredient_files
from mixopt.comparison.ensembles import ENSEMBLES
from mixopt.comparison.rows import Request, default_rows, requests_of, run_requests, soups_of_soups
from mixopt.errors import RunError, SpecError, listing, names
from mixopt.files import ENVIRONMENT, write_json
from mixopt.listener import Listener, TrialEvent
from mixopt.methods import Choice
from mixopt.reporting import Failure, Row, best_row, make_report
from mixopt.runs.export import base_entry, crown, make_row, samples_of, score_rows
from mixopt.runs.folder import RunFolder
from mixopt.runs.verbs import build, evaluate, inspect, report
from mixopt.spec import StudySpec, load_spec
from mixopt.stages.confirm import settle, told
from mixopt.stages.explore import explore, split_weights
from mixopt.stages.plan import (
    announce,
    announce_search,
    check_plan,
    start_tally,
    study_facts,
)
from mixopt.stages.refit import refit
from mixopt.stages.start import greedy_defaults, learned_start, run_baselines
from mixopt.values.metrics import smoothed
from mixopt.values.mix import Recipe
from mixopt.values.samples import VALIDATION
from mixopt.version import __version__

__all__ = ["CompareResult", "SearchResult", "build", "compare", "evaluate", "inspect", "report", "search"]

# The row of what a search found.
SEARCH_ROW = "search"

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search left.

    Attributes:
        folder: The run folder.
        recipe: The crowned mix and all that rebuilds it.
        report: The content of report.json.
        finished: Whether all trials were completed; False where ``timeout`` came first.
    """

    folder: Path
    recipe: Recipe
    report: dict[str, Any]
    finished: bool


@dataclass(frozen=True, eq=False)
class CompareResult:
    """What a comparison left.

    Attributes:
        folder: The run folder.
        recipe: The best row's mix and all that rebuilds it.
        report: The content of report.json.
        failed: Row name to the reason why it could not be made.
    """

    folder: Path
    recipe: Recipe
    report: dict[str, Any]
    failed: dict[str, str]


def search(
    models: str | Path | None = None,
    *,
    study: str | Path | None = None,
    listener: Listener | None = None,
    **options: Any,
) -> SearchResult:
    """Find the best mix of a pool: the main job. The same call again resumes.

    Args:
        models: The pool's folder.
        study: A study.toml.
        listener: Told about notices, progress and trials.
        **options: Any field of `mixopt.StudySpec`.

    Raises:
        MixoptError: Bad input; nothing already computed is lost.
    """
    spec = load_spec({"models": models, **options}, None if study is None else Path(study))
    return _in_folder("search", spec, listener, _search)


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
            `mixopt.comparison.rows.requests_of`.

    Raises:
        MixoptError: Bad input, or no method at all could choose a mix; nothing already computed is lost.
    """
    spec = load_spec({"models": models, **options}, None if study is None else Path(study))
    return _in_folder("compare", spec, listener, _compare)


def _in_folder(
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
            return work(folder.settled(spec), folder, _logged(listener or Listener(), folder))
        except OSError as error:
            if error.errno not in ENVIRONMENT:
                raise
            raise RunError(
                f"{error.filename or folder.path}: {error.strerror or error}; free space or check the disk. "
                "Nothing already computed is lost: the same command continues from here"
            ) from error


def _search(spec: StudySpec, folder: RunFolder, listener: Listener) -> SearchResult:
    started = time.monotonic()
    assembly = assemble(spec, listener)
    objective = assembly.objective
    if spec.signal == "smooth":
        objective.signal = smoothed(objective.metric)
    objectives = 1 + len(spec.weights) if spec.pareto else 1
    searching.check_sampler(spec.sampler_name, spec.seed, spec.population, objectives)
    check_plan(spec, objective)
    study = searching.open_study(
        searching.open_storage(folder.journal, spec.storage, objective.stopwatch),
        folder.path.resolve().name,
        objective.signal.direction,
        objectives=objectives,
    )
    facts = study_facts(spec, assembly)
    searching.check_facts(study, facts, folder.path)
    studies = [study, searching.open_second(study)] if spec.refine else [study]
    searching.check_facts(studies[-1], facts, folder.path)
    if not searching.has_begun(study) and folder.recipe.exists():
        raise RunError(f"{folder.path}: holds the result of another study; choose a new folder with --out")
    folder.write_spec(spec.model_copy(update=assembly.settled))
    announce_search(spec, objective, announce(spec, assembly, listener), listener)
    baselines = run_baselines(spec, assembly, listener)
    deadline = None if spec.timeout is None else started + spec.timeout
    explored = explore(spec, assembly, studies, facts, baselines, deadline, listener)
    counted = explored.objective
    tally = start_tally(spec, objective, baselines).merged(counted.tally)
    rows = score_rows(objective, base_entry(objective) | baselines, listener)
    settled = settle(counted, explored.start, list(explored.best.values()))
    tally = tally.merged(counted.tally)
    number = 0 if settled.chosen is None else list(explored.best)[settled.chosen]
    listener.info(told(settled, number, objective))
    learned = learned_start(spec, objective, baselines) if spec.refit == "on" else None
    refitted = refit(assembly, learned, explored.start, settled.mix, spec.seed, listener) if learned else None
    mix = settled.mix if refitted is None else refitted.mix
    tally = tally if refitted is None else tally.merged(refitted.tally)
    crowned = crown(spec, assembly, folder, SEARCH_ROW, mix, listener)
    notes = {"trial": number, "share": settled.share, **settled.evidence, "refit": refitted is not None}
    notes |= {} if refitted is None else {"held_back": refitted.held_back}
    row = make_row(SEARCH_ROW, Choice(mix, notes=notes), objective, tally, crowned.outcomes, crowned.metrics)
    # What all samples taught cannot be compared with others by some of them: the mix before is, in its place.
    before = row if refitted is None else replace(row, samples={VALIDATION: samples_of(settled.mix, objective)})
    facts = {
        "command": "search",
        # The search's own row wins over its start, where the two are equal.
        "best": best_row([before, *_made(rows)], spec.metric, objective.samples),
        "verification": {"trial": number, **crowned.verification},
        **_select_facts(spec, assembly),
        "sampler": spec.sampler_name,
        **explored.facts(number),
        **_run_facts(spec, assembly, started),
    }
    report = make_report([*rows, row], spec.metric, facts)
    write_json(folder.report, report)
    return SearchResult(folder.path, crowned.recipe, report, explored.finished)


def _compare(spec: StudySpec, folder: RunFolder, listener: Listener) -> CompareResult:
    started = time.monotonic()
    requests = _rows_wanted(spec, listener)
    # Splits that steer a search's trials beside the selection split steer no method.
    assembly = assemble(spec.model_copy(update={"select": {}, "shifts": "none"}), listener)
    objective = assembly.objective
    facts = _compared(spec, assembly)
    _check_same_comparison(folder, facts)
    folder.write_spec(spec.model_copy(update=assembly.settled))
    announce(spec, assembly, listener)
    entries = run_requests(objective, requests, seed=spec.seed, device=assembly.device, listener=listener)
    rows = score_rows(objective, base_entry(objective) | entries, listener)
    failed = {row.name: row.reason for row in rows if isinstance(row, Failure)}
    mixes = {name: entry.mix for name, entry in entries.items() if entry.mix is not None and name not in failed}
    if not mixes:
        raise RunError(
            listing("no method could choose a mix", [f"{name}: {reason}" for name, reason in failed.items()])
        )
    best = best_row([row for row in _made(rows) if row.name in mixes], spec.metric, objective.samples)
    crowned = crown(spec, assembly, folder, best, mixes[best], listener)
    more = {
        "command": "compare",
        "best": best,
        "verification": crowned.verification,
        "failed": failed,
        "compared": facts,
        **_run_facts(spec, assembly, started),
    }
    report = make_report(rows, spec.metric, more)
    write_json(folder.report, report)
    return CompareResult(folder.path, crowned.recipe, report, failed)


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


def _check_same_comparison(folder: RunFolder, facts: Mapping[str, Any]) -> None:
    """Refuse to replace a comparison of something else.

    Raises:
        RunError: The folder holds one of other checkpoints, data or metric.
    """
    before = folder.content().get("compared", facts)
    if changed := [key for key in facts if before.get(key) != facts[key]]:
        raise RunError(
            f"{folder.path}: holds a comparison with another {' and another '.join(changed)}; choose another folder "
            "with --out"
        )


def _made(rows: Sequence[Row | Failure]) -> list[Row]:
    return [row for row in rows if isinstance(row, Row)]


def _run_facts(spec: StudySpec, assembly: Assembly, started: float) -> dict[str, Any]:
    """What every report says of its run."""
    wall = time.monotonic() - started
    return {
        "splits": {
            name: {"samples": len(evaluator.split), "fingerprint": evaluator.split.fingerprint}
            for name, evaluator in assembly.objective.evaluators.items()
        },
        "steering": assembly.objective.samples,
        "signal": assembly.objective.signal.name,
        "batchnorm": assembly.batchnorm,
        "precision": assembly.precision,
        "stack": assembly.stack,
        "seed": spec.seed,
        "wall_seconds": round(wall, 3),
        "time": assembly.objective.stopwatch.shares(wall),
        "reused": assembly.objective.reused,
        "version": __version__,
    }


def _select_facts(spec: StudySpec, assembly: Assembly) -> dict[str, Any]:
    """What each split that steered the trials weighed; empty where the selection split did alone."""
    if not spec.weights:
        return {}
    return {"select": split_weights(spec.weights), **({"shifts": assembly.shifts} if assembly.shifts else {})}


def _logged(listener: Listener, folder: RunFolder) -> Listener:
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
