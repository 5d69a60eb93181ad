"""Asking: a trial's parameters from its sampler, in its turn or ahead of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from mixopt.scoring.objective import Objective
from mixopt.spaces import Space
from mixopt.study.samplers import BOX, draws_alone
from mixopt.study.schedule import Schedule
from mixopt.study.storage import write_together
from mixopt.study.studies import mix_of
from mixopt.values.mix import Mix


def ask(
    study: optuna.Study, space: Space, number: int, fresh_sampler: Callable[[Sequence[FrozenTrial]], BaseSampler]
) -> None:
    """Make sure that trial ``number`` exists and has all its parameters."""
    known = study.get_trials(deepcopy=False)
    asked = known[number] if number < len(known) else None
    if asked and (asked.state != TrialState.RUNNING or len(asked.params) == space.dims):
        return
    study.sampler = fresh_sampler(known[:number])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trial = Trial(study, asked._trial_id) if asked else study.ask()
        if asked:
            # Killed half-way through its parameters: what was drawn one by one is drawn again, so that the
            # sampler's random state is where it was.
            for label in asked.params:
                if label not in trial.relative_params:
                    study.sampler.sample_independent(study, asked, label, BOX)
        suggest(trial, space)


def ask_ahead(
    study: optuna.Study,
    objective: Objective,
    space: Space,
    schedule: Schedule,
    batch: range,
    fresh_sampler: Callable[[Sequence[FrozenTrial]], BaseSampler],
) -> None:
    """Ask the trials after a batch where their sampler does not need its values, so that no worker waits for it.

    They are those that would be asked later, and stand as running in the study until it is their turn.
    """
    complete = sum(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False)[: batch.start])
    last = batch.stop + min(max(len(batch), objective.ahead), schedule.trials - complete - len(batch))
    later = [number for number in range(batch.stop, last) if draws_alone(schedule.sampler, number)]
    with objective.stopwatch("optimizer"), write_together(study):
        for number in later:
            ask(study, space, number, fresh_sampler)
    if not schedule.race:
        known = study.get_trials(deepcopy=False)
        objective.expect([mix_of(known[number], space) for number in (*batch, *later)])


def suggest(trial: Trial, space: Space) -> Mix:
    """Ask for one float in [-1, 1] per dimension of the space."""
    point = [trial.suggest_float(label, BOX.low, BOX.high) for label in space.labels]
    return space.to_mix(np.array(point))
