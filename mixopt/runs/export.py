"""What a run ends with: every row scored on every split, and a mix saved, read back and scored again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mixopt.assemble import Assembly, saved_dtype
from mixopt.comparison.ensembles import Ensemble
from mixopt.comparison.requests import Request
from mixopt.comparison.running import BASE, Entry, checkpoint_mix
from mixopt.errors import LISTED, PoolError, RunError, ScoreError, names, short
from mixopt.families import Compared, Family
from mixopt.files import write_content, write_text
from mixopt.listener import Listener
from mixopt.methods import Chosen
from mixopt.reporting.rows import Failure, LabelledOutcomes, Row
from mixopt.reporting.schema import SweepPoint, Verification
from mixopt.runs.folder import RunFolder
from mixopt.scoring.objective import Objective
from mixopt.scoring.outcomes import Outcomes
from mixopt.scoring.score import Score
from mixopt.scoring.tally import Tally
from mixopt.scoring.work import AnyEvaluator
from mixopt.spec import StudySpec
from mixopt.values.metrics import Metric
from mixopt.values.mix import Mix
from mixopt.values.recipe import RECIPE_VALIDATION, Recipe
from mixopt.values.samples import VALIDATION
from mixopt.version import __version__
from mixopt.weights import checkpoints, saving
from mixopt.weights.alignment import align, signature_of
from mixopt.weights.checkpoints import Weights
from mixopt.weights.recorded import reading_of


@dataclass(frozen=True, eq=False)
class Exported:
    """A mix, as it was saved.

    Attributes:
        recipe: All that rebuilds it.
        outcomes: Split name to what the saved file did.
        metrics: Split name to its metrics.
        verification: How the file compares with the mix as it was scored before.
    """

    recipe: Recipe
    outcomes: dict[str, Outcomes]
    metrics: dict[str, dict[str, float]]
    verification: Verification


def base_entry(objective: Objective) -> dict[str, Entry]:
    """The base as a row, where the pool has one."""
    if objective.pool.base is None:
        return {}
    counted = objective.counting()
    mix = checkpoint_mix(objective, objective.pool.base)
    with suppress(ScoreError):  # told as a row that failed, once all rows are scored
        counted.score(mix)
    return {BASE: Entry(Request(BASE, BASE), Chosen(mix), counted.tally)}


def score_rows(objective: Objective, entries: Mapping[str, Entry], listener: Listener) -> list[Row | Failure]:
    """Every entry's row, scored on whole splits; one that failed, or whose scores are not finite, keeps its reason."""
    rows: list[Row | Failure] = []
    whole = objective.whole()
    for split in objective.evaluators:
        whole.expect([entry.mix for entry in entries.values() if entry.mix is not None], split)
    for done, (name, entry) in enumerate(entries.items()):
        listener.progress("scoring on every split", done, len(entries))
        try:
            rows.append(_scored(name, entry, whole))
        except ScoreError as error:
            listener.warn(f"{name} failed: {error}")
            rows.append(Failure(name, str(error)))
    listener.progress("scoring on every split", len(entries), len(entries))
    return rows


def _scored(name: str, entry: Entry, objective: Objective) -> Row | Failure:
    if entry.choice is None:
        return Failure(name, str(entry.error))
    scores = {split: _score(objective, entry.choice, split) for split in objective.evaluators}
    outcomes = {split: score.outcomes for split, score in scores.items()}
    metrics = {split: score.metrics for split, score in scores.items()}
    return make_row(name, entry.choice, objective, entry.tally, outcomes, metrics, entry.peak_memory)


def samples_of(mix: Mix, objective: Objective) -> LabelledOutcomes:
    """What a mix does on every sample of the validation split."""
    found = objective.whole().score(mix).outcomes
    return LabelledOutcomes.of(objective.evaluators[VALIDATION].split.labels, found)


def make_row(
    name: str,
    choice: Chosen | Ensemble,
    objective: Objective,
    tally: Tally,
    outcomes: Mapping[str, Outcomes],
    metrics: dict[str, dict[str, float]],
    peak_memory: int | None = None,
) -> Row:
    """A row of the report from what was chosen, what it cost and what it did on every split."""
    labels = {split: evaluator.split.labels for split, evaluator in objective.evaluators.items()}
    members = list(choice.members.values()) if isinstance(choice, Ensemble) else [choice.mix]
    used = {column for mix in members for column in mix.support() if column != objective.pool.base}
    return Row(
        name=name,
        metrics=metrics,
        samples={split: LabelledOutcomes.of(labels[split], found) for split, found in outcomes.items()},
        evaluations=tally.evaluations,
        computed=tally.computed(objective.scorer.ran),
        images=tally.images,
        gradient_images=tally.gradient_images,
        seconds=tally.seconds,
        ingredients=len(used),
        models=len(members),
        peak_memory=peak_memory,
        notes=choice.notes,
        curves=choice.curves,
        sweep=_sweep(objective, choice),
    )


def export(spec: StudySpec, assembly: Assembly, folder: RunFolder, name: str, mix: Mix, listener: Listener) -> Exported:
    """Save a mix by the exact builder, load it back from disk, and score it again.

    Args:
        spec: The run's options.
        assembly: The objective and the family.
        folder: Where to.
        name: The row that chose the mix.
        mix: The mix.
        listener: Told about progress, and how the file compares.
    """
    objective, family, pool = assembly.objective.whole(), assembly.family, assembly.objective.pool
    score = objective.score(mix)
    splits = {split: evaluator.split for split, evaluator in objective.evaluators.items()}
    draft = Recipe(
        method=name,
        mix=mix,
        ingredients=pool.fingerprints,
        base=pool.base,
        family=family.identity(),
        dtypes=saving.compact_dtypes(pool.saved_dtypes(saved_dtype(spec))),
        buffers_from=pool.buffers_from,
        batchnorm=assembly.batchnorm.mode,
        metric=objective.metric.name,
        data={RECIPE_VALIDATION if split == VALIDATION else split: each.fingerprint for split, each in splits.items()},
        scores={RECIPE_VALIDATION: score.metrics},
        seed=spec.seed,
        output_hash="",
        reading=reading_of(pool, spec.weights),
        version=__version__,
    )
    statistics = objective.scorer.engine.statistics(mix)
    companions = family.companions()
    if not spec.force:
        _check_companions(folder, companions)
    draft = saving.keep_statistics(folder.path, draft, statistics, assembly.batchnorm.images)
    tensors, tied = saving.fuse(draft, pool.paths, assembly.reader, listener, statistics)
    recipe = saving.with_output(draft, tensors)
    write_text(folder.recipe, recipe.to_json(indent=2) + "\n")
    for file, content in companions.items():
        write_content(folder.path / file, content)
    saved = saving.save_model(folder.model, tensors, tied, recipe, spec.shard_size * 1e9)

    reread = checkpoints.read(saved)
    saving.check_output(recipe, reread.tensors, str(saved))
    scored = score_checkpoint(reread, family, objective.evaluators, assembly.device, objective.metric, listener)
    outcomes, metrics = scored[VALIDATION]
    verification = Verification(
        trial_score=score.value,
        file_score=metrics[objective.metric.name],
        difference=metrics[objective.metric.name] - score.value,
        predictions_differing=int(np.sum(outcomes.predicted != score.outcomes.predicted)),
        samples=len(outcomes),
    )
    listener.info(
        f"saved {saved} ({name}); scored again from the file: {verification.file_score:.4f}, its score "
        f"before {score.value:.4f} (difference {verification.difference:+.4f}, "
        f"{verification.predictions_differing} of {verification.samples} predictions differ)",
    )
    return Exported(
        recipe,
        {split: found for split, (found, _) in scored.items()},
        {split: values for split, (_, values) in scored.items()},
        verification,
    )


def _check_companions(folder: RunFolder, companions: Mapping[str, str | bytes]) -> None:
    """Refuse to write over what no run has written: without a recipe, none has ended here.

    Raises:
        RunError: Names the files.
    """

    def is_other(path: Path, content: str | bytes) -> bool:
        return path.exists() and path.read_bytes() != (content.encode() if isinstance(content, str) else content)

    strange = [name for name, content in companions.items() if is_other(folder.path / name, content)]
    if strange and not folder.recipe.exists():
        raise RunError(
            f"{folder.path}: the run would replace {names(strange)}, which mixopt did not write; choose another --out, "
            "or --force to replace. Nothing already computed is lost: scores come from the cache"
        )


def score_checkpoint(
    checkpoint: checkpoints.Checkpoint,
    family: Family,
    evaluators: Mapping[str, AnyEvaluator],
    device: torch.device,
    metric: Metric,
    listener: Listener,
    weights: Weights = "auto",
) -> dict[str, tuple[Outcomes, dict[str, float]]]:
    """Score one checkpoint as it stands in its file, in a model of its own.

    Returns:
        Split name to outcomes and every metric.

    Raises:
        PoolError: The checkpoint does not fit the family's model.
        ScoreError: A loss is not finite.
    """
    module = family.build()
    checkpoint = align(checkpoint, signature_of(module, family.rename), weights)
    if isinstance(family, Compared):
        checkpoint = family.fitted(checkpoint)
    for notice in checkpoint.notices:
        listener.info(f"{checkpoint.path}: {notice}")
    state = {
        **checkpoint.tensors,
        **{alias: checkpoint.tensors[name] for alias, name in checkpoint.tied.items()},
    }
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise PoolError(
            f"{checkpoint.path}: does not fit the model that --family and --model describe: "
            + "\n".join(map(short, str(error).splitlines()[:LISTED]))
        ) from error
    # As the module of the trials, so that a compiled pass of theirs serves here too.
    module = module.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
    with torch.no_grad():
        predict = family.predict(module, frozenset())
    scored = {}
    for name, evaluator in evaluators.items():
        outcomes = evaluator.on(module).run(predict)
        if not np.all(np.isfinite(outcomes.losses)):
            raise ScoreError(
                f"{checkpoint.path}: losses on {name} are not finite; the model's weights overflow, or predict of "
                "--family gives logits that are no numbers"
            )
        scored[name] = (outcomes, evaluator.measure(outcomes, metric))
    return scored


def _score(objective: Objective, choice: Chosen | Ensemble, split: str) -> Score:
    if isinstance(choice, Ensemble):
        return objective.score_ensemble(list(choice.members.values()), split)
    return objective.score(choice.mix, split)


def _sweep(objective: Objective, choice: Chosen | Ensemble) -> tuple[SweepPoint, ...]:
    """Every mix along a sweep, on every split."""
    if isinstance(choice, Ensemble):
        return ()

    def value(mix: Mix, split: str) -> float | None:
        try:
            return objective.score(mix, split).value
        except ScoreError:
            return None  # a point of a curve that is not finite is a gap in it

    tests = [name for name, each in objective.evaluators.items() if name != VALIDATION and not each.split.steers]
    for split in (VALIDATION, *tests):
        objective.expect(choice.sweep.values(), split)
    return tuple(
        SweepPoint(x=x, search=value(mix, VALIDATION), test={split: value(mix, split) for split in tests})
        for x, mix in choice.sweep.items()
    )
