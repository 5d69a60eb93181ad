"""Checkpoints and trials one by one, on as many samples of the test splits as a page may spend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from mixopt.comparison.running import checkpoint_mix
from mixopt.errors import ScoreError
from mixopt.listener import Listener
from mixopt.reporting.diagnosis import TrialScores
from mixopt.scoring.objective import Objective
from mixopt.values.metrics import shown_metric
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION

# Samples of a test split on which a checkpoint's score tells something: its standard error is below 3 points.
LEAST_ALONE = 300


@dataclass
class Spent:
    """Samples that were asked for, parts that are missing and why, and how much of each test split checkpoints saw."""

    images: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)


def alone(objective: Objective, images: float, spent: Spent, listener: Listener) -> dict[str, dict[str, float]]:
    """Every checkpoint on the validation split, and on each test split or its first samples, as many as may be."""
    names = objective.pool.ingredients
    tests = tests_of(objective)
    spent.samples = _affordable_samples(objective, tests, images / max(1, len(names)))
    if len(spent.samples) < len(tests):
        left_out = ", ".join(split for split in tests if split not in spent.samples)
        spent.missing["checkpoints"] = (
            f"checkpoints alone were not scored on {left_out}, which takes more images than a page may (--page full "
            "of a search or a comparison scores them)"
        )
    scores: dict[str, dict[str, float]] = {}
    mixes = [checkpoint_mix(objective, name) for name in names]
    objective.whole().expect(mixes)
    for split, count in spent.samples.items():
        objective.expect(mixes, split, count)
    for done, name in enumerate(names):
        listener.progress("checkpoints on every split", done, len(names))
        mix, scores[name] = checkpoint_mix(objective, name), {}
        with suppress(ScoreError):  # its loss is not finite: it has no place in the picture
            scores[name][VALIDATION] = objective.whole().score(mix).value
            for split, count in spent.samples.items():
                seen = objective.outcomes(mix, split, count)
                spent.images += count
                measured = objective.measure(seen, split)
                scores[name][split] = measured[shown_metric(objective.metric.name, measured)]
    listener.progress("checkpoints on every split", len(names), len(names))
    return scores


def _affordable_samples(objective: Objective, tests: Sequence[str], images: float) -> dict[str, int]:
    """Test split to how many of its samples one mix may be scored on.

    All of them where that can be; else the first ones in the table's order, so many that each has `LEAST_ALONE`
    samples, two at least: a picture has two sides.
    """
    for count in range(len(tests), 0, -1):
        found = _shared({split: len(objective.evaluators[split].split) for split in tests[:count]}, images)
        if (count > 1 or len(tests) == 1) and all(_tells(objective, split, each) for split, each in found.items()):
            return found
    return {}


def _shared(sizes: Mapping[str, int], images: float) -> dict[str, int]:
    """So many samples of each split, alike many, what small splits leave given to the others."""
    left, found = images, dict[str, int]()
    for number, split in enumerate(sorted(sizes, key=lambda each: sizes[each])):
        found[split] = int(min(sizes[split], left / (len(sizes) - number)))
        left -= found[split]
    return {split: found[split] for split in sizes}


def _tells(objective: Objective, split: str, count: int) -> bool:
    """Whether so many samples are enough; a user's own function scores whole mixes alone."""
    evaluator = objective.evaluators[split]
    whole = len(evaluator.split)
    return count >= (min(whole, LEAST_ALONE) if evaluator.split.arrays else whole)


def tried(
    objective: Objective, trials: Mapping[int, tuple[Mix, float]], images: float, spent: Spent
) -> tuple[TrialScores, ...]:
    """Trials on whole test splits: the few samples that are cheap cannot tell mixes apart that are so much alike."""
    tests = tests_of(objective)
    whole = len(trials) * sum(len(objective.evaluators[split].split) for split in tests)
    if not tests or not trials:
        return ()
    if whole > images:
        spent.missing["trials"] = (
            f"trials were not scored on test splits, which takes {whole:,} images, more than a page may (--page full "
            "of a search or a comparison scores them)"
        )
        return ()
    found = []
    for split in tests:
        objective.expect([mix for mix, _ in trials.values()], split)
    for number, (mix, value) in trials.items():
        scores = {}
        for split in tests:
            with suppress(ScoreError):
                scores[split] = objective.score(mix, split).value
                spent.images += len(objective.evaluators[split].split)
        found.append(TrialScores(trial=number, search=value, test=scores))
    return tuple(found)


def tests_of(objective: Objective) -> list[str]:
    """The splits that are only reported."""
    return [name for name, each in objective.evaluators.items() if name != VALIDATION and not each.split.steers]
