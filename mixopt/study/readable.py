"""What people read of a study and its trials, in Optuna's dashboard for one.

Code reads `mixopt.study.records.Record` instead, and nothing here is read again.
"""

from __future__ import annotations

import warnings

import optuna

from mixopt.scoring.objective import Objective
from mixopt.scoring.score import Score
from mixopt.study.records import Record
from mixopt.untrusted.printed import printable
from mixopt.values.metrics import Metric, shown_metric, smoothed
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION

# Coefficients that are named, and the smallest that is worth it.
NAMED, WORTH = 5, 0.005
_VALUE = "value of a trial"
_LOSS, _COEFFICIENTS, _GIVEN_UP = "loss", "largest coefficients", "given up early"
# What a user's own metric may not be written as: it would be read as something else.
_TAKEN = {*Record.model_fields, _LOSS, _COEFFICIENTS, _GIVEN_UP, "group"}


def name_objectives(study: optuna.Study, objective: Objective) -> None:
    """Name what the trials of a study are told and say what it is, where that is not done.

    Optuna would say "Objective 0", of a number that is neither the metric nor the loss.

    Args:
        study: New, or of a version that gave no names.
        objective: Tells its signal; on each split that steers, where the study has several values.
    """
    name, splits = objective.signal.name, [VALIDATION, *objective.weights]
    meaning = f"{_meaning(objective)}; {'higher' if objective.signal.sign == 1 else 'lower'} is better"
    if len(study.directions) > 1:
        names = [f"{name} on {split}" for split in splits]
    elif objective.weights:
        names = [f"{name}, weighted over {', '.join(splits)}"]
    else:
        names = [name]
    # Only where they differ: a journal would keep every time that they are set.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if study.metric_names != names:
            study.set_metric_names(names)
        if study.user_attrs.get(_VALUE) != meaning:
            study.set_user_attr(_VALUE, meaning)


def _meaning(objective: Objective) -> str:
    """What a value is."""
    metric = objective.metric
    if objective.signal.name != smoothed(metric).name or objective.signal.name == metric.name:
        return objective.signal.name
    return f"{metric.name} {'less' if metric.sign == 1 else 'plus'} the loss in nats"


def attributes_of(objective: Objective, mix: Mix, score: Score | None) -> dict[str, str | float]:
    """User attributes of a trial, each a number or a line of text; they follow from the mix and its score alone.

    The driving metric and the loss, by split where several steer; the largest coefficients; whether the trial was given
    up early: then the metric is an estimate, and the loss, which would be of fewer samples, is left out.

    Args:
        objective: Gave the score.
        mix: What was scored.
        score: None where the trial failed.
    """
    found: dict[str, str | float] = {}
    if score is not None:
        for split, each in ({"": score} | {f" on {name}": beside for name, beside in score.beside.items()}).items():
            found |= _measured(objective.metric, each, split)
    found[_COEFFICIENTS] = largest_coefficients(mix)
    if score is not None:
        found[_GIVEN_UP] = "no"
        if score.estimated:
            found[_GIVEN_UP] = f"after {len(score.outcomes):,} of {objective.count(VALIDATION):,} samples"
    return found


def _measured(metric: Metric, score: Score, where: str) -> dict[str, str | float]:
    shown = shown_metric(metric.name, score.metrics)
    value = score.metrics[shown]
    if score.estimated:  # what the incumbent has, plus a difference on few samples, may be more than can be
        value = min(max(score.value, metric.bounds[0]), metric.bounds[1])
    found: dict[str, str | float] = {
        f"{shown} (measured){where}" if shown in _TAKEN else f"{shown}{where}": _short(value)
    }
    if "nll" in score.metrics and shown != "nll" and not score.estimated:
        found[f"{_LOSS}{where}"] = _short(score.metrics["nll"])
    return found


def largest_coefficients(mix: Mix) -> str:
    """The columns that weigh most, such as ``model_04 0.41, model_10 0.22 and 3 more``: the mean over layer groups.

    Those below `WORTH` are neither named nor counted.
    """
    means = dict(zip(mix.columns, mix.coefficients.mean(axis=0).tolist(), strict=True))
    ranked = sorted((name for name in means if abs(means[name]) >= WORTH), key=lambda name: -abs(means[name]))
    more = f" and {len(ranked) - NAMED} more" if len(ranked) > NAMED else ""
    return ", ".join(f"{printable(name)} {means[name]:.2f}" for name in ranked[:NAMED]) + more


def _short(value: float) -> float:
    return float(f"{value:.6g}")
