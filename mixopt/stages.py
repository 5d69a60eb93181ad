"""The stages of a search: announcing, baselines, space, crowning. `mixopt.run.search` strings them together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixopt import checkpoints, saving
from mixopt.assemble import BATCHNORM, PRECISION, Assembly, saved_dtype
from mixopt.errors import PoolError, names
from mixopt.evaluator import Outcomes
from mixopt.files import write_text
from mixopt.groups import Groups, block_names, make_groups
from mixopt.listener import Listener
from mixopt.methods import Choice, method
from mixopt.methods.individual import ranking
from mixopt.mix import Mix, Recipe, one_hot, rows_on
from mixopt.objective import SEARCH, Objective, Tally
from mixopt.pool import Pool
from mixopt.report import Row
from mixopt.runfolder import RunFolder
from mixopt.spaces import Space
from mixopt.spaces.simplex import Simplex
from mixopt.spec import StudySpec
from mixopt.version import __version__

BASELINES = ("individual", "uniform", "greedy")
# CMA-ES and TPE gain little in more dimensions with some hundred trials; see studies/.
DIMENSIONS = 32
INGREDIENTS = 8


@dataclass(frozen=True, eq=False)
class Baseline:
    """A method's choice, what it cost, and its score on the selection split.

    Attributes:
        choice: What it chose.
        tally: What it asked for.
        scoring: The evaluation that gave ``value``; in ``tally`` already, but for methods that ask for nothing.
        value: The choice's score.
    """

    choice: Choice
    tally: Tally
    scoring: Tally
    value: float


def ingredient_mixes(objective: Objective) -> dict[str, Mix]:
    """Every ingredient alone, as a one-row mix."""
    pool = objective.pool
    whole = make_groups("whole", pool.sizes)
    return {name: one_hot(whole, pool.columns, name) for name in pool.ingredients}


def announce(spec: StudySpec, assembly: Assembly, listener: Listener) -> None:
    """Say what was found, time one evaluation, and say how much work is planned."""
    objective = assembly.objective
    pool = objective.pool
    base = f"base {pool.base}" if pool.base else "no base"
    listener.say(
        f"{len(pool.ingredients)} ingredients ({names(pool.ingredients, 3)}), {base}; family {spec.family}, "
        f"on {assembly.device}",
        False,
    )
    listener.say(
        f"{len(pool.mixed)} tensors with {pool.stack.shape[1]:,} parameters are mixed; {len(pool.fixed)} are the "
        "same in all, or not floating-point, and kept as they are",
        False,
    )
    sizes = ", ".join(f"{name} {len(evaluator.split):,}" for name, evaluator in objective.evaluators.items())
    listener.say(f"samples: {sizes}; every choice is made on {SEARCH} alone, by {spec.metric}", False)
    groups, count = plan_space(spec, pool)
    dims = len(groups) * count
    listener.say(
        f"search over {len(groups)} layer groups ({names(groups.names, 3)}) x {count} ingredients = {dims} dimensions",
        False,
    )
    images = len(objective.evaluators[SEARCH].split)
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        listener.progress("timing one evaluation", done, images)

    first = objective.counting(on_batch=on_batch).score(next(iter(ingredient_mixes(objective).values())))
    planned = 2 * len(pool.ingredients) + spec.trials
    listener.say(
        f"one evaluation: {images:,} images in {first.seconds:.2f} s ({images / first.seconds:,.0f} images/s); "
        f"at most {planned} evaluations are planned, about {_duration(planned * first.seconds)} without the cache",
        False,
    )


def run_baselines(spec: StudySpec, objective: Objective, listener: Listener) -> dict[str, Baseline]:
    """The recipes that every search is compared with; their evaluations come from the cache where they can.

    Raises:
        ScoreError: A baseline's score is not finite.
    """
    columns = ingredient_mixes(objective)
    found = {}
    scored: set[str] = set()

    def on_score(key: str) -> None:
        scored.add(key)
        listener.progress("baselines", len(scored), 2 * len(columns))

    for name in BASELINES:
        counted = objective.counting(on_score)
        options = {"rule": spec.greedy_rule} if name == "greedy" else {}
        choice = method(name)(counted, columns, seed=spec.seed, **options)
        scoring = objective.counting(on_score)
        value = scoring.score(choice.mix).value
        found[name] = Baseline(choice, counted.tally, scoring.tally, value)
    listener.say("baselines: " + ", ".join(f"{name} {baseline.value:.4f}" for name, baseline in found.items()), False)
    return found


def plan_space(spec: StudySpec, pool: Pool) -> tuple[Groups, int]:
    """Layer groups, and the number of ingredients to search over.

    What is not given is chosen so that the dimensions stay at 32 or fewer: the ingredients that rank first, and
    blocks or, where those are too many, contiguous segments along depth.
    """
    if spec.groups is not None:
        groups = make_groups(spec.groups, pool.sizes)
        count = spec.top or max(2, DIMENSIONS // len(groups))
    else:
        count = min(spec.top or INGREDIENTS, len(pool.ingredients))
        most = max(1, DIMENSIONS // count)
        blocks = len(set(block_names(pool.sizes).values()))
        groups = make_groups("block" if blocks <= most else min(most, len(pool.sizes)), pool.sizes)
    return groups, min(count, len(pool.ingredients))


def check_plan(spec: StudySpec, objective: Objective) -> None:
    """Find out before any work whether layer groups and start can be used.

    Raises:
        MixoptError: They cannot.
    """
    pool = objective.pool
    if len(pool.ingredients) < 2:
        raise PoolError(f"{spec.models}: a search needs at least two ingredients, found {names(pool.ingredients)}")
    plan_space(spec, pool)
    if spec.start.endswith((".json", ".safetensors")):
        start_mix(spec, objective, {})


def make_space(spec: StudySpec, objective: Objective, baselines: Mapping[str, Baseline]) -> Space:
    """The space of a new study, around its start.

    Raises:
        MixoptError: A start that does not fit the pool or the space.
    """
    pool = objective.pool
    start = start_mix(spec, objective, baselines)
    groups, count = plan_space(spec, pool)
    groups = groups.refine(start.groups)
    ranked = [name for name, _ in ranking(objective.counting(), ingredient_mixes(objective))]
    used = set(start.support())
    preferred = [name for name in ranked if name in used] + [name for name in ranked if name not in used]
    chosen = set(preferred[:count])
    active = [name for name in pool.columns if name in chosen]
    return Simplex(Mix(groups, pool.columns, rows_on(start, groups)), active, spec.radius)


def start_mix(spec: StudySpec, objective: Objective, baselines: Mapping[str, Baseline]) -> Mix:
    """The mix at the centre of the space: the best baseline, one by name, or a recipe's.

    Raises:
        PoolError: The recipe uses a checkpoint that the pool does not hold, or other tensors.
    """
    if spec.start in baselines:
        return baselines[spec.start].choice.mix
    if spec.start == "best":
        return baselines[best_baseline(objective, baselines)].choice.mix
    recipe = saving.load_recipe(Path(spec.start))
    pool = objective.pool
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


def start_tally(spec: StudySpec, baselines: Mapping[str, Baseline]) -> Tally:
    """What it takes to find the start and the ingredients to search over, from nothing."""
    tally = baselines["individual"].tally
    for name, baseline in baselines.items():
        if spec.start in ("best", name):
            tally = tally.merged(baseline.tally).merged(baseline.scoring)
    return tally


def best_baseline(objective: Objective, baselines: Mapping[str, Baseline]) -> str:
    """The name of the best; of equals, the last in the table, which is the richer mix."""
    best = next(iter(baselines))
    for name, baseline in baselines.items():
        if objective.metric.at_least(baseline.value, baselines[best].value):
            best = name
    return best


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
        "ingredients": spec.top,
        f"data {SEARCH}": objective.evaluators[SEARCH].split.fingerprint[:12],
        "metric": spec.metric,
        "sampler": spec.sampler,
        "population": spec.population,
        "space": spec.space,
        "radius": spec.radius,
        "start": start,
        "greedy_rule": spec.greedy_rule,
        "seed": spec.seed,
        "dtype": spec.dtype,
        # A journal lies in its run folder; a database may be shared, and one study belongs to one folder.
        "run folder": None if spec.storage is None else str(spec.folder.resolve()),
        "batchnorm": BATCHNORM,
        "precision": PRECISION,
        "device": assembly.device.type,
    }


def baseline_rows(objective: Objective, baselines: Mapping[str, Baseline], listener: Listener) -> list[Row]:
    """The rows of the base and the baselines, scored on every split."""
    pool = objective.pool
    chosen: dict[str, tuple[Mix, Tally, dict[str, Any]]] = {}
    if pool.base is not None:
        counted = objective.counting()
        mix = one_hot(make_groups("whole", pool.sizes), pool.columns, pool.base)
        counted.score(mix)
        chosen["base"] = (mix, counted.tally, {})
    for name, baseline in baselines.items():
        chosen[name] = (baseline.choice.mix, baseline.tally, baseline.choice.notes)
    rows = []
    total = len(chosen) * len(objective.evaluators)
    for done, (name, (mix, tally, notes)) in enumerate(chosen.items()):
        scores = {}
        for number, split in enumerate(objective.evaluators):
            listener.progress("scoring on every split", done * len(objective.evaluators) + number, total)
            scores[split] = objective.score(mix, split)
        outcomes = {split: score.outcomes for split, score in scores.items()}
        metrics = {split: score.metrics for split, score in scores.items()}
        rows.append(_row(name, mix, objective, tally, outcomes, metrics, notes))
    listener.progress("scoring on every split", total, total)
    return rows


def crown(
    spec: StudySpec,
    assembly: Assembly,
    folder: RunFolder,
    found: tuple[int, Mix],
    tally: Tally,
    listener: Listener,
) -> tuple[Recipe, Row, dict[str, Any]]:
    """Save the best trial's mix by the exact builder, load it back from disk, and score it again.

    ``found`` is the best trial's number and mix, ``tally`` all that led to it.

    Returns:
        Its recipe, its row (scored from the saved file), and how the file compares with the trial.
    """
    objective, family, pool = assembly.objective, assembly.family, assembly.objective.pool
    number, mix = found
    trial = objective.score(mix)
    splits = {name: evaluator.split for name, evaluator in objective.evaluators.items()}
    draft = Recipe(
        method=SEARCH,
        mix=mix,
        ingredients=pool.fingerprints,
        base=pool.base,
        family=family.identity(),
        dtypes=saving.compact_dtypes(pool.saved_dtypes(saved_dtype(spec))),
        buffers_from=pool.buffers_from,
        batchnorm=BATCHNORM,
        metric=spec.metric,
        data={name: split.fingerprint for name, split in splits.items()},
        scores={SEARCH: trial.metrics},
        seed=spec.seed,
        output_hash="",
        version=__version__,
    )
    tensors, tied = saving.fuse(draft, pool.paths, family.read, listener)
    recipe = saving.with_output(draft, tensors)
    write_text(folder.recipe, recipe.to_json(indent=2) + "\n")
    for name, text in family.companions().items():
        write_text(folder.path / name, text)
    saving.save_model(folder.model, tensors, tied, recipe)

    reread = checkpoints.read(folder.model)
    saving.check_output(recipe, reread.tensors, str(folder.model))
    scored = saving.score_checkpoint(reread, family, objective.evaluators, assembly.device)
    outcomes, metrics = scored[SEARCH]
    verification = {
        "trial": number,
        "trial_score": trial.value,
        "file_score": metrics[spec.metric],
        "difference": metrics[spec.metric] - trial.value,
        "predictions_differing": int(np.sum(outcomes.predicted != trial.outcomes.predicted)),
        "samples": len(outcomes),
    }
    outcomes_of = {name: result for name, (result, _) in scored.items()}
    metrics_of = {name: values for name, (_, values) in scored.items()}
    row = _row(SEARCH, mix, objective, tally, outcomes_of, metrics_of, {"trial": number})
    return recipe, row, verification


def _row(
    name: str,
    mix: Mix,
    objective: Objective,
    tally: Tally,
    outcomes: Mapping[str, Outcomes],
    metrics: dict[str, dict[str, float]],
    notes: dict[str, Any],
) -> Row:
    labels = {split: evaluator.split.labels for split, evaluator in objective.evaluators.items()}
    return Row(
        name=name,
        metrics=metrics,
        correct={split: result.predicted == labels[split] for split, result in outcomes.items()},
        evaluations=tally.evaluations,
        computed=tally.computed,
        images=tally.images,
        seconds=tally.seconds,
        ingredients=len(mix.support()),
        notes=notes,
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
