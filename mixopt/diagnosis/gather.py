"""All that a page shows beyond the report, scored where it is not known yet, within a stated number of images."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixopt.diagnosis.alone import Spent, alone, tests_of, tried
from mixopt.diagnosis.changes import TextOf, changes, fewer
from mixopt.diagnosis.hyperparameters import Values, hyperparameters
from mixopt.diagnosis.midpoints import midpoints_within
from mixopt.diagnosis.mixes import shown
from mixopt.listener import Listener
from mixopt.reporting.diagnosis import Changes, CheckpointInfo, Diagnosis
from mixopt.reporting.rows import Row
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION
from mixopt.version import __version__
from mixopt.weights.inspection import describe_pool

LIBRARIES = ("torch", "optuna", "numpy", "safetensors", "open_clip_torch", "timm", "transformers", "peft")
# Of what the page may spend: between checkpoints, and on checkpoints under test splits; trials have what these leave.
BETWEEN, ALONE = 0.4, 0.6


@dataclass(frozen=True)
class Budget:
    """What a diagnosis may spend beyond what is cached.

    Attributes:
        images: Samples that may go through a model; None for whole splits and `mixopt.diagnosis.midpoints.MOST`
            samples of every pair.
    """

    images: int | None

    def part(self, share: float) -> float:
        """A share of it."""
        return float("inf") if self.images is None else self.images * share


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a run ended.

    Attributes:
        rows: That were made, scored on every split.
        mixes: By row, where it is one model.
        row: The row that the run chose.
        trials: Trial number to its mix and the driving metric on what it was chosen by.
    """

    rows: Sequence[Row]
    mixes: Mapping[str, Mix]
    row: str
    trials: Mapping[int, tuple[Mix, float]] = field(default_factory=dict)


def diagnose_pool(objective: Objective, known: Mapping[str, Values], budget: Budget, listener: Listener) -> Diagnosis:
    """Checkpoints one by one and half-way between each two, without a run.

    Args:
        objective: Scores; nothing is tallied.
        known: Hyperparameters by checkpoint.
        budget: For the mixes between, and for checkpoints on test splits.
        listener: Told about progress.
    """
    started, spent = time.monotonic(), Spent()
    scores = alone(objective, budget.part(0.5), spent, listener)
    between = midpoints_within(objective, scores, budget.part(0.5), spent, listener)
    return _diagnosis(objective, scores, known, spent, started, midpoints=between)


def diagnose_run(
    objective: Objective,
    outcome: Outcome,
    known: Mapping[str, Values],
    encoding_text: TextOf,
    budget: Budget,
    listener: Listener,
) -> Diagnosis:
    """All that the page of a run shows.

    Args:
        objective: Of the run; nothing is tallied.
        outcome: How the run ended.
        known: Hyperparameters by checkpoint.
        encoding_text: What a record says, see `mixopt.values.samples.Encoding.text_of`.
        budget: For what the run did not score.
        listener: Told about progress.
    """
    started, spent = time.monotonic(), Spent()
    between_images, alone_images = budget.part(BETWEEN), budget.part(ALONE)
    scores = alone(objective, alone_images, spent, listener)
    between = midpoints_within(objective, scores, between_images, spent, listener)
    tested = tried(objective, outcome.trials, budget.part(1) - spent.images, spent)
    reference = "individual" if outcome.row != "individual" else "greedy"
    return _diagnosis(
        objective,
        scores,
        known,
        spent,
        started,
        midpoints=between,
        mixes=tuple(shown(name, mix, objective) for name, mix in outcome.mixes.items()),
        row=outcome.row,
        reference=reference,
        changes=_changes(objective, outcome, reference, encoding_text, spent),
        trials=tested,
    )


def known_of(objective: Objective, folder: Path) -> dict[str, Values]:
    """Hyperparameters of the pool's ingredients, see `mixopt.diagnosis.hyperparameters`."""
    paths = objective.pool.paths
    return hyperparameters(folder, {name: paths[name] for name in objective.pool.ingredients})


def _diagnosis(
    objective: Objective,
    scores: Mapping[str, dict[str, float]],
    known: Mapping[str, Values],
    spent: Spent,
    started: float,
    **fields: Any,
) -> Diagnosis:
    described = describe_pool(objective.pool, "whole")
    return Diagnosis(
        version=__version__,
        metric=objective.metric.name,
        base=objective.pool.base,
        checkpoints=tuple(
            CheckpointInfo(
                name=each["name"],
                hash=each["hash"],
                distance=each["distance"],
                base_cosine=each["base_cosine"],
                mean_cosine=each["mean_cosine"],
                scores=scores[each["name"]],
                hyperparameters=known.get(each["name"], {}),
            )
            for each in described["ingredients"]
        ),
        samples=spent.samples,
        versions=versions(),
        missing=spent.missing,
        images=spent.images,
        seconds=round(time.monotonic() - started, 3),
        **fields,
    )


def versions() -> dict[str, str]:
    """Of mixopt, Python and the libraries that scores depend on."""
    found = {"mixopt": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _changes(
    objective: Objective, outcome: Outcome, reference: str, text_of: TextOf, spent: Spent
) -> tuple[Changes, ...]:
    """What the chosen row changed on the test splits, or without any on the validation split."""
    by_name = {row.name: row for row in outcome.rows}
    if reference not in by_name or outcome.row not in by_name:
        spent.missing["changes"] = f"there is no row {reference} to compare with"
        return ()
    before, after = by_name[reference].samples, by_name[outcome.row].samples
    splits = [split for split in tests_of(objective) or [VALIDATION] if before[split].are_classified]
    if not splits:
        spent.missing["changes"] = "a function of the user's own scores, and there are no predictions to compare"
        return ()
    opened = {split: objective.evaluators[split].split for split in splits}
    return fewer([changes(opened[each], before[each], after[each], opened[each].classes, text_of) for each in splits])
