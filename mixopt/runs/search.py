"""Search: the best mix of a pool; the main job."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixopt import study as studies
from mixopt.assemble import Assembly, assemble
from mixopt.errors import RunError
from mixopt.files import write_json
from mixopt.listener import Listener
from mixopt.methods import Choice as Chosen
from mixopt.reporting import Failure, Row, best_row, make_report
from mixopt.runs.export import Exported, base_entry, export, make_row, samples_of, score_rows
from mixopt.runs.folder import RunFolder
from mixopt.runs.session import in_folder, made_rows, run_facts
from mixopt.scoring.objective import Objective
from mixopt.scoring.tally import Tally
from mixopt.spec import StudySpec, load_spec
from mixopt.stages.announce import announce, announce_search
from mixopt.stages.confirm import Choice, confirm, describe
from mixopt.stages.explore import Explored, explore
from mixopt.stages.plan import SearchPlan, plan_search, steered
from mixopt.stages.refit import Refitted, refit
from mixopt.stages.space import make_space
from mixopt.stages.start import Start, find_start
from mixopt.values.mix import Mix
from mixopt.values.recipe import Recipe
from mixopt.values.samples import VALIDATION

# The row of what a search found.
SEARCH_ROW = "search"


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search left.

    Attributes:
        folder: The run folder.
        recipe: The mix that was saved, and all that rebuilds it.
        report: The content of report.json.
        finished: Whether all trials were completed; False where ``timeout`` came first.
    """

    folder: Path
    recipe: Recipe
    report: dict[str, Any]
    finished: bool


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
    return in_folder("search", spec, listener, _search)


def _search(spec: StudySpec, folder: RunFolder, listener: Listener) -> SearchResult:
    """The steps of a search, each a function of what those before it gave."""
    started = time.monotonic()
    assembly = assemble(spec, listener)
    assembly = replace(assembly, objective=steered(spec, assembly.objective))
    objective = assembly.objective
    plan = plan_search(spec, assembly)
    own = _open_studies(spec, plan, folder, objective)
    folder.write_spec(spec.model_copy(update=assembly.resolved))
    announce_search(plan, objective, announce(spec, assembly, listener), listener)
    start = find_start(plan, assembly, listener)
    deadline = None if plan.trials.timeout is None else started + plan.trials.timeout
    explored = explore(plan, objective, own, lambda: make_space(plan, start, objective), deadline, listener)
    rows = score_rows(objective, {**base_entry(objective), **start.baselines}, listener)
    choice = confirm(objective.weighing(plan.weights), explored)
    listener.info(describe(choice, objective))
    refitted = refit(plan, assembly, start, explored, choice, listener)
    mix = choice.mix if refitted is None else refitted.mix
    saved = export(spec, assembly, folder, SEARCH_ROW, mix, listener)
    searched = _Searched(plan, assembly, start, explored, choice, refitted, saved)
    report = _report(searched, spec, rows, started)
    write_json(folder.report, report)
    return SearchResult(folder.path, saved.recipe, report, explored.finished)


def _open_studies(spec: StudySpec, plan: SearchPlan, folder: RunFolder, objective: Objective) -> list[studies.Study]:
    """The run's study, and with ``--refine`` that of the second round; new, or as they were left.

    Raises:
        RunError: They belong to other options or files, or the folder to another study.
    """
    study = studies.open_study(
        studies.open_storage(folder.journal, spec.storage, objective.stopwatch),
        folder.path.resolve().name,
        objective.signal.direction,
        objectives=plan.trials.objectives,
    )
    studies.check_identity(study, plan.identity, folder.path)
    own = [study, studies.open_second(study)] if plan.refine else [study]
    studies.check_identity(own[-1], plan.identity, folder.path)
    if not studies.has_begun(study) and folder.recipe.exists():
        raise RunError(f"{folder.path}: holds the result of another study; choose a new folder with --out")
    return own


@dataclass(frozen=True, eq=False)
class _Searched:
    """What the steps of a search gave."""

    plan: SearchPlan
    assembly: Assembly
    start: Start
    explored: Explored
    choice: Choice
    refitted: Refitted | None
    saved: Exported

    @property
    def mix(self) -> Mix:
        return self.choice.mix if self.refitted is None else self.refitted.mix

    @property
    def tally(self) -> Tally:
        """What all of them took, from nothing."""
        last = Tally() if self.refitted is None else self.refitted.tally
        return self.start.tally.merged(self.explored.tally).merged(self.choice.tally).merged(last)


def _report(searched: _Searched, spec: StudySpec, rows: Sequence[Row | Failure], started: float) -> dict[str, Any]:
    objective, row = searched.assembly.objective, _row(searched)
    # What all samples taught cannot be compared with others by some of them: the mix before is, in its place.
    samples = {VALIDATION: samples_of(searched.choice.mix, objective)}
    before = row if searched.refitted is None else replace(row, samples=samples)
    facts = {
        "command": "search",
        # The search's own row wins over its start, where the two are equal.
        "best": best_row([before, *made_rows(rows)], spec.metric, objective.samples),
        "verification": {"trial": searched.choice.trial, **searched.saved.verification},
        **_steering(searched),
        "sampler": searched.plan.trials.sampler,
        **_trials(searched),
        **run_facts(spec, searched.assembly, started),
    }
    return make_report([*rows, row], spec.metric, facts)


def _row(searched: _Searched) -> Row:
    """The search's own row."""
    choice, refitted = searched.choice, searched.refitted
    notes = {"trial": choice.trial, "share": choice.share, **choice.evidence, "refit": refitted is not None}
    notes |= {} if refitted is None else {"held_back": refitted.held_out}
    saved, chosen = searched.saved, Chosen(searched.mix, notes=notes)
    return make_row(SEARCH_ROW, chosen, searched.assembly.objective, searched.tally, saved.outcomes, saved.metrics)


def _steering(searched: _Searched) -> dict[str, Any]:
    """What each split that steered the trials weighed; empty where the validation split did alone."""
    if not searched.plan.weights:
        return {}
    shifts = searched.assembly.shifts
    return {"select": searched.plan.split_weights, **({"shifts": dict(shifts)} if shifts else {})}


def _trials(searched: _Searched) -> dict[str, Any]:
    """What became of the trials, and in which space."""
    explored, plan = searched.explored, searched.plan
    objective = searched.assembly.objective.weighing(plan.weights)
    own = [study for study, _ in explored.rounds]
    states: Counter[str] = Counter()
    races: Counter[str] = Counter()
    for study in own:
        states.update(studies.count_states(study))
        races.update(studies.race_counts(study, objective.images))
    _, space = explored.rounds[0]
    facts: dict[str, Any] = {
        "trials": dict(states),
        "race": dict(races),
        "finished": explored.finished,
        "space": {"kind": space.describe()["kind"], "dims": space.dims, "labels": list(space.labels)},
    }
    if second := explored.refined:
        facts["space"]["refined"] = {
            "kind": second.space.kind,
            "dims": second.space.dims,
            "labels": list(second.space.labels),
            "around": second.around,
            "groups": list(second.space.moving),
            "effects": dict(second.effects),
        }
    if plan.weights:
        numbered = studies.numbered(own)
        facts["front"] = studies.front(numbered, plan.split_weights, objective.signal, searched.choice.trial)
    return facts
