"""Plan: every decision of a search that depends on the options, taken once, before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mixopt.assemble import Assembly
from mixopt.comparison.requests import Request, requests_of, source_names
from mixopt.errors import PoolError, SpecError, names
from mixopt.scoring.objective import Objective
from mixopt.spaces.linear import POINTS
from mixopt.spec import AUTO, StudySpec
from mixopt.stages.checks import check_surface
from mixopt.stages.identity import study_identity
from mixopt.study import SURFACE, check_sampler
from mixopt.values.groups import Groups, block_names, make_groups
from mixopt.values.metrics import smoothed
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION
from mixopt.weights import saving
from mixopt.weights.pool import Pool

# CMA-ES and TPE gain little in more dimensions with some hundred trials; see studies/.
DIMENSIONS = 32
INGREDIENTS = 8
RADII = {"simplex": 0.5, "residual": 0.5, "affine": 0.1, "shared": 0.1, "depth": 0.1, "composed": 0.5}
BASELINES = ("individual", "uniform", "greedy")
# Of the gradient-learned soups, the one that generalises best: see studies/.
LEARNED = "learned_by_layer:affine:groups=block:cosine"
BEST = "best"

Kind = Literal["residual", "composed", "simplex", "affine", "shared", "depth", "by start"]


@dataclass(frozen=True, eq=False)
class SpacePlan:
    """What the sampler's box is to move.

    Attributes:
        kind: A name of `mixopt.spaces.SPACES`, or ``by start``: ``simplex``, but ``affine`` around a start with
            negative entries.
        groups: The layer groups that move.
        count: How many ingredients, or mixes of ``--from``, move.
        by_gradient: Whether those are taken that the gradient at the uniform soup says help, not those that rank first.
        radius: As given; that of the kind without.
    """

    kind: Kind
    groups: Groups
    count: int
    by_gradient: bool
    radius: float | None

    def radius_of(self, kind: str) -> float:
        """How far the box goes."""
        return self.radius or RADII[kind]


@dataclass(frozen=True)
class TrialPlan:
    """How trials are run.

    Attributes:
        sampler: Its name.
        trials: Complete trials in all, the start included.
        seed: The run's.
        population: Trials asked at a time; the sampler's own without.
        race: Whether trials are to be given up that will not reach the best.
        objectives: How many values the sampler is told of each trial.
        timeout: Start no trial after so many seconds from the beginning of the run.
        stop: Whether a search stops where its sampler promises no more than samples can tell.
    """

    sampler: str
    trials: int
    seed: int
    population: int | None
    race: bool
    objectives: int
    timeout: float | None
    stop: bool


@dataclass(frozen=True, eq=False)
class RefinePlan:
    """The second round of trials.

    Attributes:
        count: How many layer groups move.
        groups: Which of these.
        ingredients: How many ingredients move.
    """

    count: int
    groups: Groups
    ingredients: int


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """What a search will do.

    Attributes:
        requests: The rows that it is compared with, and those that ``--from`` names.
        sources: Rows and checkpoints whose mixes take the place of the ingredients.
        start: Where it starts: ``best``, a row's name, or a recipe's file.
        recipe: The recipe's mix on this pool, where the start is one.
        space: What the sampler moves.
        trials: How trials are run.
        weights: What each split that steers beside the validation split weighs.
        refine: The second round of trials, if any.
        evidence: Of a sampler that learns from logits: ``run``, or ``cache``, see `mixopt.stages.evidence`.
        refit: Whether a learned start is learned again from all validation samples in the end.
        robust: Whether a last step for shifted samples is looked for.
        identity: What must not change between the sessions of one study.
    """

    requests: Mapping[str, Request]
    sources: tuple[str, ...]
    start: str
    recipe: Mix | None
    space: SpacePlan
    trials: TrialPlan
    weights: Mapping[str, float]
    refine: RefinePlan | None
    evidence: Literal["run", "cache"]
    refit: bool
    robust: bool
    identity: Mapping[str, Any]

    @property
    def races(self) -> bool:
        """Whether trials are given up; not where several splits steer."""
        return self.trials.race and not self.weights

    @property
    def surface(self) -> bool:
        """Whether the sampler learns from logits, on a response surface."""
        return self.trials.sampler == SURFACE

    @property
    def split_weights(self) -> dict[str, float]:
        """What each split that steers weighs, the validation split first."""
        return {VALIDATION: 1 - sum(self.weights.values()), **self.weights}


def plan_search(spec: StudySpec, assembly: Assembly) -> SearchPlan:
    """Resolve the options of a search against its pool.

    Raises:
        MixoptError: Layer groups, start, space, sampler or rows that cannot be used.
    """
    objective = assembly.objective
    pool = objective.pool
    trials = TrialPlan(
        sampler=spec.sampler_name,
        trials=spec.trials,
        seed=spec.seed,
        population=spec.population,
        race=spec.race == "on",
        objectives=1 + len(spec.steering) if spec.pareto else 1,
        timeout=spec.timeout,
        stop=spec.stop,
    )
    check_sampler(trials.sampler, trials.seed, trials.population, trials.objectives)
    if trials.sampler == SURFACE:
        check_surface(spec, objective)
    if spec.space == "residual" and (spec.groups is not None or spec.ingredient_count is not None):
        option = "--groups" if spec.groups is not None else "--ingredients"
        raise SpecError(
            f"--space residual: moves towards whole mixes, not towards checkpoints by layer group; leave out {option}, "
            "or choose simplex, affine, shared or depth"
        )
    if len(pool.ingredients) < 2:
        raise PoolError(f"{spec.models}: a search needs at least two ingredients, found {names(pool.ingredients)}")
    space = _plan_space(spec, pool)
    refine = None if spec.refine is None else plan_refine(spec, spec.refine, pool)
    defaults = greedy_defaults(spec)
    requests = requests_of([], pool.columns, spec.from_, defaults)
    requests = requests_of((*BASELINES, LEARNED), pool.columns, defaults=defaults) | requests
    sources = source_names(spec.from_, pool.columns, defaults)
    if sources:
        _check_sources(spec, sources)
    is_recipe = spec.start.endswith((".json", ".safetensors"))
    return SearchPlan(
        requests=requests,
        sources=sources,
        start=LEARNED if spec.start == "learned" else spec.start,
        recipe=_recipe_mix(spec, pool) if is_recipe else None,
        space=space,
        trials=trials,
        weights=spec.steering,
        refine=refine,
        evidence=spec.evidence,
        refit=spec.refit == "on",
        # What splits that steer say of shifts is in the choice already.
        robust=spec.robust == "on" and not spec.steering,
        identity=study_identity(spec, assembly, sources),
    )


def steered(spec: StudySpec, objective: Objective) -> Objective:
    """The objective with the signal that ``--signal`` asks for."""
    return objective.steered_by(smoothed(objective.metric)) if spec.signal == "smooth" else objective


def greedy_defaults(spec: StudySpec) -> dict[str, dict[str, Any]]:
    """The run's rule for greedy rows that name none."""
    return {name: {"rule": spec.greedy_rule} for name in ("greedy", "greedy_ensemble")}


def _plan_space(spec: StudySpec, pool: Pool) -> SpacePlan:
    """What is not given is chosen so that the dimensions stay at 32 or fewer.

    Those are the ingredients that rank first, and blocks or, where those are too many, contiguous segments along depth.
    Of the spaces whose groups move together, all groups are blocks.
    """
    wanted = spec.ingredient_count if isinstance(spec.ingredient_count, int) else None
    if spec.space in (together := {"shared": 1, "depth": POINTS}):
        groups = make_groups(spec.groups or "block", pool.sizes)
        count = wanted or DIMENSIONS // together[spec.space] + 1
    elif spec.groups is not None:
        groups = make_groups(spec.groups, pool.sizes)
        count = len(spec.from_) or wanted or max(2, DIMENSIONS // len(groups))
    else:
        count = len(spec.from_) or min(wanted or INGREDIENTS, len(pool.ingredients))
        most = max(1, DIMENSIONS // count)
        blocks = len(set(block_names(pool.sizes).values()))
        groups = make_groups("block" if blocks <= most else min(most, len(pool.sizes)), pool.sizes)
    if not spec.from_:
        count = min(count, len(pool.ingredients))
    return SpacePlan(_kind(spec), groups, count, spec.ingredient_count == AUTO, spec.radius)


def _kind(spec: StudySpec) -> Kind:
    """Between whole mixes by default; by layer group where columns or groups are asked for."""
    asked = spec.from_ or spec.groups is not None or spec.ingredient_count is not None
    if spec.space == AUTO and not asked:
        return "residual"
    if spec.from_ and spec.space != "residual":
        return "composed"
    return "by start" if spec.space == "auto" else spec.space


def plan_refine(spec: StudySpec, count: int, pool: Pool) -> RefinePlan:
    """The layer groups that the second round chooses from: blocks, where none are given."""
    groups = make_groups(spec.groups or "block", pool.sizes)
    if count > len(groups):
        raise SpecError(f"--refine {count}: expected at most {len(groups)}, the layer groups; or finer --groups")
    return RefinePlan(
        count,
        groups,
        spec.ingredient_count if isinstance(spec.ingredient_count, int) else max(2, DIMENSIONS // count + 1),
    )


def _check_sources(spec: StudySpec, sources: tuple[str, ...]) -> None:
    if len(sources) == 1:
        raise SpecError(f"--from {sources[0]}: a search over mixes needs at least two of them")
    if spec.start not in (BEST, *sources):
        raise SpecError(f"--start {spec.start}: with --from, expected best or one of {names(sources, 20)}")
    if spec.space not in (AUTO, "simplex", "residual"):
        raise SpecError(f"--space {spec.space}: with --from, expected simplex or residual")
    if spec.ingredient_count is not None:
        raise SpecError(
            f"--ingredients {spec.ingredient_count}: with --from, the search is over its mixes; leave one of them out"
        )


def _recipe_mix(spec: StudySpec, pool: Pool) -> Mix:
    """The mix of a recipe, over this pool's columns.

    Raises:
        PoolError: The recipe uses a checkpoint that the pool does not hold, or other tensors.
    """
    recipe = saving.load_recipe(Path(spec.start))
    by_hash = {digest: column for column, digest in pool.fingerprints.items()}
    rows = np.zeros((len(recipe.mix.groups), len(pool.columns)))
    for column in recipe.mix.support():
        own = by_hash.get(recipe.ingredients[column])
        if own is None:
            raise PoolError(f"--start {spec.start}: its checkpoint {column} is not in the pool {spec.models}")
        rows[:, pool.columns.index(own)] += recipe.mix.coefficients[:, recipe.mix.columns.index(column)]
    mixed = set(pool.sizes)
    kept = [(name, tuple(tensor for tensor in tensors if tensor in mixed)) for name, tensors in recipe.mix.groups.items]
    if {tensor for _, tensors in kept for tensor in tensors} != mixed:
        raise PoolError(f"--start {spec.start}: it has no coefficients for some tensors that this pool mixes")
    filled = [number for number, (_, tensors) in enumerate(kept) if tensors]
    groups = Groups(tuple(kept[number] for number in filled))
    return Mix(groups, pool.columns, rows[filled])
