"""The stages of a search: announcing, the plan, the space. `mixopt.runs.run.search` strings them together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.assemble import BATCHNORM, Assembly
from mixopt.comparison.rows import (
    Entry,
    checkpoint_mix,
    ingredient_mixes,
)
from mixopt.errors import PoolError, ScoreError, SpecError, names
from mixopt.listener import Listener
from mixopt.methods.individual import ranking
from mixopt.scoring.objective import Objective
from mixopt.scoring.score import Score, Tally
from mixopt.spaces import Space
from mixopt.spaces.composed import Composed
from mixopt.spaces.linear import POINTS, Affine, Depth, Residual, Shared
from mixopt.spaces.simplex import Simplex
from mixopt.spec import AUTO, StudySpec
from mixopt.stages.start import LEARNED, search_requests, source_mixes, sources_of, start_mix
from mixopt.values.groups import Groups, block_names, make_groups
from mixopt.values.mix import Mix, constant, one_hot, rows_on
from mixopt.values.samples import VALIDATION
from mixopt.weights import saving
from mixopt.weights.pool import Pool

# CMA-ES and TPE gain little in more dimensions with some hundred trials; see studies/.
DIMENSIONS = 32
RADII = {"simplex": 0.5, "residual": 0.5, "affine": 0.1, "shared": 0.1, "depth": 0.1}
INGREDIENTS = 8


def announce(spec: StudySpec, assembly: Assembly, listener: Listener) -> float:
    """Say what was found, and time one evaluation: its seconds are returned."""
    objective = assembly.objective
    pool = objective.pool
    base = f"base {pool.base}" if pool.base else "no base"
    listener.info(
        f"{len(pool.ingredients)} ingredients ({names(pool.ingredients, 3)}), {base}; family {spec.family}, "
        f"on {assembly.device}",
    )
    listener.info(
        f"{len(pool.mixed)} tensors with {pool.stack.shape[1]:,} parameters are mixed; {len(pool.fixed)} are the "
        "same in all, or not floating-point, and kept as they are",
    )
    sizes = ", ".join(f"{name} {len(evaluator.split):,}" for name, evaluator in objective.evaluators.items())
    held = len(objective.evaluators[VALIDATION].split) - objective.samples
    confirmed = f", the last {held:,} of which steer nothing and decide last" if held else ""
    others = ", ".join(f"{name} ({weight:g})" for name, weight in spec.weights.items())
    choice = f"every choice but that between trials, in which {others} weighs too, is" if others else "every choice is"
    listener.info(f"samples: {sizes}; {choice} made on {VALIDATION} alone{confirmed}, by {spec.metric}")
    images = objective.samples
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        listener.progress("timing one evaluation", done, images)

    first = _first_score(objective.counting(on_batch=on_batch))
    listener.info(
        f"one evaluation: {images:,} images in {first.seconds:.2f} s ({images / first.seconds:,.0f} images/s)"
    )
    return first.seconds


def _first_score(objective: Objective) -> Score:
    """The score of the first ingredient that has a finite one."""
    *others, last = ingredient_mixes(objective).values()
    for mix in others:
        with suppress(ScoreError):
            return objective.score(mix)
    return objective.score(last)


def announce_search(spec: StudySpec, objective: Objective, seconds: float, listener: Listener) -> None:
    """Say over what a search will run, and how long at most, given the seconds of one evaluation."""
    pool = objective.pool
    if not _is_residual(spec):
        groups, count = plan_space(spec, pool)
        what = "mixes" if spec.from_ else "ingredients"
        listener.info(f"search over {len(groups)} layer groups ({names(groups.names, 3)}) and {count} {what}")
    first = 2 * len(pool.ingredients)
    # A trial is scored on every split that steers.
    took = seconds * (first + spec.trials * objective.weighing(spec.weights).samples / objective.samples)
    listener.info(f"about {first + spec.trials} evaluations are planned, {_duration(took)} without the cache")
    if spec.weights and spec.race == "on":
        listener.info("race: off, because several splits steer (--select, --shifts)")


def plan_space(spec: StudySpec, pool: Pool) -> tuple[Groups, int]:
    """Layer groups, and the number of ingredients (or of mixes, with ``--from``) to search over.

    What is not given is chosen so that the dimensions stay at 32 or fewer: the ingredients that rank first, and
    blocks or, where those are too many, contiguous segments along depth. Of the spaces whose groups move together, all
    groups are blocks.
    """
    top = spec.ingredient_count if isinstance(spec.ingredient_count, int) else None
    if spec.space in (together := {"shared": 1, "depth": POINTS}):
        groups = make_groups(spec.groups or "block", pool.sizes)
        count = top or DIMENSIONS // together[spec.space] + 1
    elif spec.groups is not None:
        groups = make_groups(spec.groups, pool.sizes)
        count = len(spec.from_) or top or max(2, DIMENSIONS // len(groups))
    else:
        count = len(spec.from_) or min(top or INGREDIENTS, len(pool.ingredients))
        most = max(1, DIMENSIONS // count)
        blocks = len(set(block_names(pool.sizes).values()))
        groups = make_groups("block" if blocks <= most else min(most, len(pool.sizes)), pool.sizes)
    return groups, count if spec.from_ else min(count, len(pool.ingredients))


def refined_groups(spec: StudySpec, pool: Pool) -> Groups:
    """The layer groups that the second stage chooses from: blocks, where none are given."""
    return make_groups(spec.groups or "block", pool.sizes)


def check_plan(spec: StudySpec, objective: Objective) -> None:
    """Find out before any work whether layer groups and start can be used.

    Raises:
        MixoptError: They cannot.
    """
    pool = objective.pool
    if spec.space == "residual" and (spec.groups is not None or spec.ingredient_count is not None):
        option = "--groups" if spec.groups is not None else "--ingredients"
        raise SpecError(
            f"--space residual: moves towards whole mixes, not towards checkpoints by layer group; leave out {option}, "
            "or choose simplex, affine, shared or depth"
        )
    if len(pool.ingredients) < 2:
        raise PoolError(f"{spec.models}: a search needs at least two ingredients, found {names(pool.ingredients)}")
    plan_space(spec, pool)
    if spec.refine is not None and spec.refine > (most := len(refined_groups(spec, pool))):
        raise SpecError(f"--refine {spec.refine}: expected at most {most}, the layer groups; or finer --groups")
    search_requests(spec, pool)
    if spec.from_:
        _check_sources(spec, pool)
    if spec.start.endswith((".json", ".safetensors")):
        start_mix(spec, objective, {})


def _check_sources(spec: StudySpec, pool: Pool) -> None:
    sources = sources_of(spec, pool)
    if len(sources) == 1:
        raise SpecError(f"--from {sources[0]}: a search over mixes needs at least two of them")
    if spec.start not in ("best", *sources):
        raise SpecError(f"--start {spec.start}: with --from, expected best or one of {names(sources, 20)}")
    if spec.space not in (AUTO, "simplex", "residual"):
        raise SpecError(f"--space {spec.space}: with --from, expected simplex or residual")
    if spec.ingredient_count is not None:
        raise SpecError(
            f"--ingredients {spec.ingredient_count}: with --from, the search is over its mixes; leave one of them out"
        )


def make_space(spec: StudySpec, objective: Objective, baselines: Mapping[str, Entry]) -> Space:
    """The space of a new study, around its start.

    Raises:
        MixoptError: A start that does not fit the pool or the space.
    """
    pool = objective.pool
    groups, count = plan_space(spec, pool)
    if _is_residual(spec):
        return _residual(spec, objective, baselines)
    if spec.from_:
        return _space_of_mixes(spec, objective, baselines, groups)
    start = start_mix(spec, objective, baselines)
    groups = groups.refine(start.groups)
    if spec.ingredient_count == AUTO:
        preferred = helpful(objective.counting())
    else:
        ranked = [name for name, _ in ranking(objective.counting(), ingredient_mixes(objective))]
        used = set(start.support())
        preferred = [name for name in ranked if name in used] + [name for name in ranked if name not in used]
    chosen = set(preferred[:count])
    active = [name for name in pool.columns if name in chosen]
    centre = Mix(groups, pool.columns, rows_on(start, groups))
    kind = spec.space
    if kind == AUTO:  # a start that the gradient found lies off the simplex
        kind = "affine" if np.any(centre.coefficients < 0) else "simplex"
    kinds: dict[str, type[Simplex | Affine]] = {"affine": Affine, "shared": Shared, "depth": Depth, "simplex": Simplex}
    return kinds[kind](centre, active, spec.radius or RADII[kind])


def helpful(objective: Objective) -> list[str]:
    """The ingredients that lower the loss of the uniform soup when it moves towards them, the most helpful first.

    One pass for the gradient of the loss with respect to all coefficients, however many. Two at least.
    """
    pool = objective.pool
    row = [(name in pool.ingredients) / len(pool.ingredients) for name in pool.columns]
    soup = constant(make_groups("whole", pool.sizes), pool.columns, row)
    slopes = objective.gradient(soup, np.arange(objective.samples)).coefficients[0]
    # Moving towards one moves away from all: its slope counts against that of the soup.
    steep = {name: slopes[pool.columns.index(name)] - float(slopes @ np.array(row)) for name in pool.ingredients}
    found = sorted(steep, key=lambda name: steep[name])
    return found[: max(2, sum(slope < 0 for slope in steep.values()))]


def _is_residual(spec: StudySpec) -> bool:
    """Whether the search moves between mixes: the default, unless columns or groups are asked for."""
    asked = spec.from_ or spec.groups is not None or spec.ingredient_count is not None
    return spec.space == "residual" or (spec.space == "auto" and not asked)


def _residual(spec: StudySpec, objective: Objective, baselines: Mapping[str, Entry]) -> Residual:
    """From the start towards the other baselines and the base, or towards the mixes of ``--from``."""
    pool = objective.pool
    start = start_mix(spec, objective, baselines)
    others = {name: entry.mix for name, entry in baselines.items() if entry.mix is not None}
    if spec.from_:
        others = source_mixes(spec, objective, baselines)
    elif pool.base is not None:
        others[pool.base] = checkpoint_mix(objective, pool.base)
    return Residual(start, others, spec.radius or RADII["residual"])


def _space_of_mixes(spec: StudySpec, objective: Objective, baselines: Mapping[str, Entry], groups: Groups) -> Composed:
    """The simplex of other rows' mixes, around the best of them or the one that ``--start`` names."""
    mixes = source_mixes(spec, objective, baselines)
    start = ranking(objective.counting(), mixes)[0][0] if spec.start == "best" else spec.start
    return Composed(Simplex(one_hot(groups, tuple(mixes), start), tuple(mixes), spec.radius or RADII["simplex"]), mixes)


def start_tally(spec: StudySpec, objective: Objective, baselines: Mapping[str, Entry]) -> Tally:
    """What it takes to find the start and the columns to search over, from nothing."""
    if spec.from_:
        columns, tally = source_mixes(spec, objective, baselines), Tally()
    else:  # the ingredients to search over are those that rank first
        columns = {name: entry.mix for name, entry in baselines.items() if entry.mix is not None}
        tally = baselines["individual"].tally
    if spec.ingredient_count == AUTO:
        screening = objective.counting()
        helpful(screening)
        tally = tally.merged(screening.tally)
    start = LEARNED if spec.start == "learned" else spec.start
    for name, mix in columns.items():
        # A residual space moves towards all of them.
        if name in baselines and (spec.from_ or _is_residual(spec) or start in ("best", name)):
            tally = tally.merged(baselines[name].tally)
        if start in ("best", name):
            scoring = objective.counting()
            scoring.score(mix)  # counted where choosing it asked for nothing
            tally = tally.merged(scoring.tally)
    return tally


def study_facts(spec: StudySpec, assembly: Assembly) -> dict[str, Any]:
    """What must not change between the sessions of one study."""
    objective = assembly.objective
    pool = objective.pool
    family = json.dumps(assembly.family.identity(), sort_keys=True)
    start = spec.start
    if start.endswith((".json", ".safetensors")):
        start = hashlib.sha256(saving.load_recipe(Path(start)).to_json().encode()).hexdigest()[:12]
    return {
        **{f"checkpoint {name}": digest[:12] for name, digest in pool.fingerprints.items()},
        "base": pool.base,
        "family": hashlib.sha256(family.encode()).hexdigest()[:12],
        "groups": "auto" if spec.groups is None else make_groups(spec.groups, pool.sizes).as_dict(),
        "ingredients": spec.ingredient_count,
        **({"from": list(sources_of(spec, pool))} if spec.from_ else {}),
        f"data {VALIDATION}": objective.evaluators[VALIDATION].split.fingerprint[:12],
        "select": {
            name: [weight, objective.evaluators[name].split.fingerprint[:12]] for name, weight in spec.weights.items()
        }
        or None,
        "shifts": assembly.shifts or None,
        "metric": spec.metric,
        "sampler": spec.sampler_name,
        **({"pareto": True} if spec.pareto else {}),
        **({"refine": spec.refine} if spec.refine else {}),
        "population": spec.population,
        "space": spec.space,
        "radius": spec.radius,
        "start": start,
        "greedy_rule": spec.greedy_rule,
        "seed": spec.seed,
        "confirm": spec.confirm,
        "race": spec.race,
        "signal": spec.signal,
        "dtype": spec.dtype,
        # A journal lies in its run folder; a database may be shared, and one study belongs to one folder.
        "run folder": None if spec.storage is None else str(spec.folder.resolve()),
        "batchnorm": assembly.batchnorm.get("key", BATCHNORM),
        **assembly.settled,
        **({"compile": True} if spec.compile else {}),
        "device": assembly.device.type,
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
