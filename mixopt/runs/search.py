"""Search: the best mix of a pool; the main job."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

from mixopt import study as studies
from mixopt.assemble import Assembly
from mixopt.comparison.running import BASE, checkpoint_mix
from mixopt.diagnosis import Outcome
from mixopt.errors import RunError
from mixopt.listener import Listener
from mixopt.methods import Chosen
from mixopt.reporting.build import best_row, entries
from mixopt.reporting.rows import Failure, Row
from mixopt.reporting.schema import Front, Race, Refined, Report, SpaceInfo
from mixopt.runs.export import Exported, base_entry, export, make_row, samples_of, score_rows
from mixopt.runs.folder import RunFolder
from mixopt.runs.page import write_page
from mixopt.runs.session import finish, in_folder, made_rows, run_fields
from mixopt.scoring.objective import Objective
from mixopt.scoring.tally import Tally
from mixopt.spec import StudySpec, load_spec
from mixopt.stages.announce import HELD, HELD_OF_SURFACE, announce, announce_search
from mixopt.stages.confirm import Choice, confirm, describe
from mixopt.stages.crossfit import CrossFitted, choose_by_folds, describe_cross_fitted, doubt, judges_from
from mixopt.stages.evidence import evidence_of_pool
from mixopt.stages.explore import Beginning, Explored, explore
from mixopt.stages.plan import SearchPlan, plan_search, steered
from mixopt.stages.refit import Refitted, refit
from mixopt.stages.robust import Robust, describe_robust, step_under_shift
from mixopt.stages.shift_evidence import Evidence, open_evidence
from mixopt.stages.space import make_space
from mixopt.stages.start import Start, find_start
from mixopt.values.mix import Mix
from mixopt.values.recipe import Recipe
from mixopt.values.samples import VALIDATION
from mixopt.workers import assembled

# The row of what a search found.
SEARCH_ROW = "search"


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search left.

    Attributes:
        folder: The run folder.
        recipe: The mix that was saved, and all that rebuilds it.
        report: What report.json holds.
        finished: Whether all trials were completed; False where ``timeout`` came first.
    """

    folder: Path
    recipe: Recipe
    report: Report
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
    with assembled(spec, listener) as assembly:
        return _search_with(spec, folder, listener, assembly, started)


def _search_with(
    spec: StudySpec, folder: RunFolder, listener: Listener, assembly: Assembly, started: float
) -> SearchResult:
    """The same, with a pool that is open."""
    assembly = replace(assembly, objective=steered(spec, assembly.objective))
    plan = plan_search(spec, assembly)
    if plan.surface:
        assembly = replace(assembly, objective=assembly.objective.needing("logits"))
    evidence = open_evidence(spec, assembly, listener) if plan.robust else None
    with studies.storage_errors(folder.journal, spec.storage):
        return _run(spec, folder, listener, _Opened(assembly, plan, evidence), started)


@dataclass(frozen=True, eq=False)
class _Opened:
    """What a search works with.

    Attributes:
        assembly: Pool and splits.
        plan: What is decided.
        evidence: Tells of shifts; None where nothing does, or no step for them is wanted.
    """

    assembly: Assembly
    plan: SearchPlan
    evidence: Evidence | None


def _run(spec: StudySpec, folder: RunFolder, listener: Listener, opened: _Opened, started: float) -> SearchResult:
    """The steps that use the study."""
    assembly, plan = opened.assembly, opened.plan
    objective = assembly.objective
    own = _open_studies(spec, plan, folder, objective)
    folder.write_spec(spec.model_copy(update=assembly.resolved))
    held = HELD_OF_SURFACE if plan.surface else HELD
    announce_search(plan, objective, announce(spec, assembly, listener, held), listener)
    start = find_start(plan, assembly, listener)
    deadline = None if plan.trials.timeout is None else started + plan.trials.timeout
    # A surface learns from logits, not from labels: every sample steers, and judges in turn.
    steering = objective.whole() if plan.surface else objective
    first = judges_from(start, objective)
    beginning = Beginning(
        partial(make_space, plan, start, objective), partial(evidence_of_pool, plan, start, objective), first
    )
    explored = explore(plan, steering, own, beginning, deadline, listener)
    rows = score_rows(objective, {**base_entry(objective), **start.baselines}, listener)
    weighed = steering.weighing(plan.weights)
    crossed = choose_by_folds(plan, weighed, start, explored, first) if plan.surface else None
    choice = confirm(weighed, explored) if crossed is None else crossed.choice
    listener.info(describe(choice, objective) if crossed is None else describe_cross_fitted(crossed))
    if crossed is not None and (doubted := doubt(crossed)):
        listener.warn(doubted)
    refitted = refit(plan, assembly, start, explored, choice, listener)
    mix = choice.mix if refitted is None else refitted.mix
    robust = None
    if opened.evidence is not None:
        robust = step_under_shift(objective, opened.evidence, start, explored, choice.mix, mix)
        listener.info(describe_robust(robust, objective.metric.name))
        mix = robust.mix
    saved = export(spec, assembly, folder, SEARCH_ROW, mix, listener)
    searched = _Searched(plan, assembly, weighed, start, explored, choice, crossed, refitted, robust, mix, saved)
    report = _report(searched, spec, rows, started)
    finish(folder, report, saved.recipe)
    write_page(spec, assembly, folder, _outcome(searched, rows, report.best), searched.tally, listener)
    return SearchResult(folder.path, saved.recipe, report, explored.finished)


def _open_studies(spec: StudySpec, plan: SearchPlan, folder: RunFolder, objective: Objective) -> list[studies.Study]:
    """The run's study, and with ``--refine`` that of the second round; new, or as they were left.

    Raises:
        RunError: They belong to other options or files, or the folder to another study.
    """
    direction = objective.signal.direction
    study = studies.open_study(
        studies.open_storage(folder.journal, spec.storage, objective.stopwatch),
        folder.path.resolve().name,
        direction,
        objectives=plan.trials.objectives,
        metric=objective.metric.name,
    )
    studies.check_identity(study, plan.identity, folder.path, [direction] * plan.trials.objectives)
    own = [study]
    if plan.refine:
        own.append(studies.open_second(study, metric=objective.metric.name))
        studies.check_identity(own[1], plan.identity, folder.path, [direction])
    if not studies.has_begun(study) and folder.recipe.exists():
        raise RunError(f"{folder.path}: holds the result of another study; choose a new folder with --out")
    return own


@dataclass(frozen=True, eq=False)
class _Searched:
    """What the steps of a search gave."""

    plan: SearchPlan
    assembly: Assembly
    steering: Objective
    start: Start
    explored: Explored
    choice: Choice
    crossed: CrossFitted | None
    refitted: Refitted | None
    robust: Robust | None
    mix: Mix
    saved: Exported

    @property
    def tally(self) -> Tally:
        """What all of them took, from nothing."""
        steps = (self.start, self.explored, self.choice, self.refitted, self.robust)
        return reduce(Tally.merged, (step.tally for step in steps if step is not None))


def _report(searched: _Searched, spec: StudySpec, rows: Sequence[Row | Failure], started: float) -> Report:
    objective, plan, row = searched.assembly.objective, searched.plan, _row(searched)
    # What all samples taught cannot be compared with others by some of them: the mix before is, in its place.
    before = row
    if searched.refitted is not None or plan.surface:
        earlier = searched.explored.start if plan.surface else searched.choice.mix
        before = replace(row, samples={VALIDATION: samples_of(earlier, objective)})
    own = [study for study, _ in searched.explored.rounds]
    # The search's own row wins over its start, where the two are equal.
    best = best_row([before, *made_rows(rows)], objective.metric.name, objective.tuning)
    return Report(
        command="search",
        methods=entries([*rows, row], objective.metric.name, objective.tuning, list(plan.weights), best),
        best=best,
        verification=searched.saved.verification.model_copy(update={"trial": searched.choice.trial}),
        select=plan.split_weights if plan.weights else {},
        shifts=dict(searched.assembly.shifts) if plan.weights else {},
        sampler=plan.trials.sampler,
        trials=_states(own),
        race=_race(own, searched.steering.images),
        finished=searched.explored.finished,
        space=_space(searched.explored),
        front=_front(searched, own) if plan.weights else None,
        **run_fields(spec, searched.assembly, started),
    )


def _row(searched: _Searched) -> Row:
    """The search's own row."""
    choice, refitted = searched.choice, searched.refitted
    notes = {"trial": choice.trial, "share": choice.share, **choice.evidence, "refit": refitted is not None}
    notes |= {} if refitted is None else {"held_back": refitted.held_out}
    notes |= {} if searched.crossed is None else searched.crossed.notes
    notes |= {} if searched.robust is None else searched.robust.notes
    saved, chosen = searched.saved, Chosen(searched.mix, notes=notes)
    return make_row(SEARCH_ROW, chosen, searched.assembly.objective, searched.tally, saved.outcomes, saved.metrics)


def _outcome(searched: _Searched, rows: Sequence[Row | Failure], best: str) -> Outcome:
    """What the page is made from."""
    objective = searched.assembly.objective
    base = {} if objective.pool.base is None else {BASE: checkpoint_mix(objective, objective.pool.base)}
    made = {name: entry.mix for name, entry in searched.start.baselines.items() if entry.mix is not None}
    trials = studies.trial_mixes(searched.explored.rounds, objective.metric.name)
    return Outcome([*made_rows(rows), _row(searched)], {**base, **made, SEARCH_ROW: searched.mix}, best, trials)


def _states(own: Sequence[studies.Study]) -> dict[str, int]:
    """How many trials are in each state."""
    return dict(sum((Counter(studies.count_states(study)) for study in own), Counter[str]()))


def _race(own: Sequence[studies.Study], whole: int) -> Race:
    """What racing spared, given the samples of a whole trial."""
    counted: Counter[str] = Counter()
    for study in own:
        counted.update(studies.race_counts(study, whole))
    return Race(**counted)


def _space(explored: Explored) -> SpaceInfo:
    _, space = explored.rounds[0]
    second = explored.refined
    refined = (
        None
        if second is None
        else Refined(
            kind=second.space.kind,
            dims=second.space.dims,
            labels=second.space.labels,
            around=second.around,
            groups=second.space.moving,
            effects=dict(second.effects),
        )
    )
    return SpaceInfo(kind=space.describe()["kind"], dims=space.dims, labels=space.labels, refined=refined)


def _front(searched: _Searched, own: Sequence[studies.Study]) -> Front:
    weights, signal = searched.plan.split_weights, searched.assembly.objective.signal
    return studies.front(studies.numbered(own), weights, signal, searched.choice.trial)
