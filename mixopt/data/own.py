"""Users' own objectives among the splits of a run: functions that score the fused module, in place of a path."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mixopt.errors import SpecError
from mixopt.imports import is_import_path
from mixopt.scoring.evaluator import Evaluator
from mixopt.scoring.own_objective import SCORE, OwnEvaluator, own_evaluator
from mixopt.scoring.work import AnyEvaluator
from mixopt.spec import StudySpec
from mixopt.values.metrics import Metric, check_metric, metric_named, own_metric
from mixopt.values.samples import VALIDATION

DEFAULT_METRIC = "accuracy"


def with_own(
    spec: StudySpec, evaluators: Mapping[str, AnyEvaluator], module: nn.Module, device: torch.device
) -> dict[str, AnyEvaluator]:
    """The evaluators in the order of the splits, those of the user's own functions included and called once."""
    functions = own_functions(spec)
    own = {
        name: own_evaluator(
            name, path, module, device, _asked_number(spec) if name == VALIDATION else None
        ).called_once()
        for name, path in functions.items()
    }
    if VALIDATION in own and spec.compile:
        raise SpecError(f"--compile: your own function ({functions[VALIDATION]}) runs the model itself; leave it out")
    every = {**evaluators, **own}
    order = [VALIDATION, *(name for name in evaluators if name not in spec.data.test), *spec.data.test]
    return {name: every[name] for name in dict.fromkeys(order)}


def own_functions(spec: StudySpec) -> dict[str, str]:
    """Split name to import path, of the splits that a user's own functions score."""
    paths = {VALIDATION: spec.data.validation, **spec.data.test}
    return {name: str(path) for name, path in paths.items() if path is not None and is_import_path(str(path))}


def _asked_number(spec: StudySpec) -> str | None:
    """Which of the function's numbers drives: the metric's usual name stands for the first."""
    return None if spec.metric == DEFAULT_METRIC else spec.metric


def driving_metric(spec: StudySpec, evaluators: Mapping[str, AnyEvaluator]) -> Metric:
    """What drives: the metric asked for, or a user's own number.

    Raises:
        SpecError: The metric is not for a split that steers.
    """
    validation = evaluators[VALIDATION]
    if isinstance(validation, OwnEvaluator):
        return own_metric(validation.metric or SCORE)
    metric = metric_named(spec.metric)
    for name in (VALIDATION, *spec.steering):
        if isinstance(evaluator := evaluators[name], Evaluator):
            split = evaluator.split
            check_metric(metric, split.labels, split.class_count, split.source)
    return metric
