"""The trials of a study: whole generations asked, scored, and told in number order, resumable at any point."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from mixopt.errors import ScoreError, listing
from mixopt.listener import Listener, TrialEvent
from mixopt.scoring.objective import Objective
from mixopt.scoring.score import Score
from mixopt.spaces import Space
from mixopt.study.asking import ask, ask_ahead, suggest
from mixopt.study.boundary import name_of
from mixopt.study.readable import attributes_of, name_objectives
from mixopt.study.samplers import BOX, start_attributes
from mixopt.study.schedule import Schedule, samplers_of
from mixopt.study.storage import write_together
from mixopt.study.studies import best_trial, mix_of
from mixopt.values.samples import VALIDATION

FAILURES_ALLOWED = 2


def optuna_objective(objective: Objective, space: Space) -> Callable[[Trial], float]:
    """An ordinary Optuna objective, for people's own studies and samplers.

    It suggests one float in [-1, 1] per dimension of the space, scores the mix, records the rows as applied in the
    trial's user attribute ``coefficients``, beside others that say what was measured, and returns the objective's
    signal, by default the driving metric. Create the study with ``direction=objective.signal.direction``. A mix whose
    loss is not finite raises `ScoreError`; pass ``catch=(ScoreError,)`` to ``study.optimize`` to go on after one.

    Args:
        objective: From `mixopt.open_objective`.
        space: From `mixopt.spaces`.
    """

    def call(trial: Trial) -> float:
        mix = suggest(trial, space)
        trial.set_user_attr("coefficients", mix.coefficients.tolist())
        score = objective.score(mix)
        for key, value in {**attributes_of(objective, mix, score), **_record_of(objective, score)}.items():
            trial.set_user_attr(key, value)
        return score.signal

    return call


def run_trials(
    study: optuna.Study, objective: Objective, space: Space, schedule: Schedule, listener: Listener | None = None
) -> bool:
    """Bring a study to so many complete trials, the start included.

    A study of several objectives is told the signal on each split that steers, any other their weighted mean.

    Trial 0 is the start. After it, whole generations are asked, scored, and told in number order. Before every ask
    the sampler is fresh and seeded from (seed, trial number), and a batch's extent follows from the trials before
    it and the number wanted; so the same call, killed at any point, goes on exactly as if it had not been. Running
    trials that a killed process left are finished under their own numbers. A run folder's journal is written once per
    generation asked and once per trial told: a kill loses at most what is asked again, or scored again from the cache.

    Args:
        study: New or partly run.
        objective: Scores the mixes.
        space: The study's space.
        schedule: How many, and how.
        listener: Told every finished trial, and warned of failed ones.

    Returns:
        Whether all trials were completed, or were enough (False: the deadline passed).

    Raises:
        ScoreError: Three trials in a row were not finite.
    """
    size = schedule.size(space)
    heard = listener or Listener()
    earlier = schedule.earlier
    trials, where = schedule.trials, name_of(study._storage)

    def announce(number: int, score: Score | None) -> None:
        _announce(study, heard, objective.metric.name, _Finished(number, score, trials, earlier))

    fresh_sampler, enough = samplers_of(schedule, objective, space, where)
    if study.get_trials(deepcopy=False):
        with write_together(study):
            name_objectives(study, objective)  # where the study is of a version that gave no names
    else:
        _add_start(study, objective, space, start_attributes(schedule.sampler), announce)
    first = 1
    while True:
        known = study.get_trials(deepcopy=False)
        complete = sum(trial.state == TrialState.COMPLETE for trial in known[:first])
        if complete >= trials:
            return True
        batch = range(first, first + min(size - (complete - 1) % size, trials - complete))
        first = batch.stop
        if len(known) >= batch.stop and all(known[number].state.is_finished() for number in batch):
            continue
        if _late(schedule.deadline):
            return False
        if len(known) < batch.stop - len(batch) + 1:
            with objective.stopwatch("optimizer"):
                why = enough(known)
            if why:
                heard.info(f"stopped after {complete} trials: {why}")
                return True
        with objective.stopwatch("optimizer"), write_together(study):
            for number in batch:
                ask(study, space, number, fresh_sampler)
        if objective.ahead:
            ask_ahead(study, objective, space, schedule, batch, fresh_sampler)
        if not _tell_batch(study, objective, space, batch, schedule, announce):
            if objective.ahead:
                objective.forget()
            return False


def _add_start(
    study: optuna.Study,
    objective: Objective,
    space: Space,
    attributes: dict[str, Any],
    announce: Callable[[int, Score | None], None],
) -> None:
    start = space.to_mix(np.zeros(space.dims))
    score = objective.score(start)
    record = _record_of(objective, score)
    readable = attributes_of(objective, start, score)
    with write_together(study):
        name_objectives(study, objective)
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                values=_values(study, record, score),
                params=dict.fromkeys(space.labels, 0.0),
                distributions=dict.fromkeys(space.labels, BOX),
                user_attrs={**readable, **record, "coefficients": start.coefficients.tolist()},
                system_attrs=attributes,
            )
        )
    announce(0, score)


@dataclass(frozen=True, eq=False)
class _Finished:
    """A trial that was told.

    Attributes:
        number: Its number in its study.
        score: Its score; None where it failed.
        wanted: Complete trials wanted of the study.
        earlier: The trials of an earlier round.
    """

    number: int
    score: Score | None
    wanted: int
    earlier: Sequence[FrozenTrial]


def _announce(study: optuna.Study, listener: Listener, metric: str, finished: _Finished) -> None:
    number, score, earlier = finished.number, finished.score, finished.earlier
    known = study.get_trials(deepcopy=False)
    done = sum(trial.state == TrialState.COMPLETE for trial in earlier)
    shown = len(earlier) + number
    if score is None:
        attributes = known[number].user_attrs
        listener.warn(f"trial {shown} failed and is replaced: {attributes['error']}")
    listener.trial(
        TrialEvent(
            number=shown,
            complete=done + sum(trial.state == TrialState.COMPLETE for trial in known),
            total=done + finished.wanted,
            value=None if score is None else score.value,
            best=float(best_trial(study, known).user_attrs["metrics"][metric]),
            images_per_second=None if score is None or score.cached else score.images / score.seconds,
        )
    )


def _tell_batch(
    study: optuna.Study,
    objective: Objective,
    space: Space,
    batch: Sequence[int],
    schedule: Schedule,
    announce: Callable[[int, Score | None], None],
) -> bool:
    """Score and tell the batch's running trials in number order; False where the deadline passed first."""
    incumbent: Score | None = None
    known = study.get_trials(deepcopy=False)
    running = [known[number] for number in batch if known[number].state == TrialState.RUNNING]
    mixes = {each.number: mix_of(each, space) for each in running}
    for frozen in running:
        if _late(schedule.deadline):
            return False
        number, mix = frozen.number, mixes[frozen.number]
        trial = Trial(study, frozen._trial_id)
        score: Score | None = None
        started = time.perf_counter()
        try:
            if schedule.race and incumbent is None:
                before = study.get_trials(deepcopy=False)[: batch[0]]
                incumbent = objective.score(mix_of(best_trial(study, before), space))
                if objective.ahead:
                    objective.expect_race(mixes.values(), incumbent, schedule.level)
            score = objective.score(mix) if incumbent is None else objective.race(mix, incumbent, schedule.level)
            record = _record_of(objective, score)
        except ScoreError as error:
            record = {
                "images": objective.samples,
                "seconds": time.perf_counter() - started,
                "error": str(error),
                "group": error.group,
            }
        readable = attributes_of(objective, mix, score)
        with write_together(study):
            for key, value in {**readable, **record, "coefficients": mix.coefficients.tolist()}.items():
                trial.set_user_attr(key, value)
            if score is None:
                study.tell(number, state=TrialState.FAIL)
            else:
                study.tell(number, _values(study, record, score))
        announce(number, score)
        if score is None:
            _stop_after_failures(study, number)
    return True


def _stop_after_failures(study: optuna.Study, number: int) -> None:
    known = study.get_trials(deepcopy=False)
    last = known[max(0, number - FAILURES_ALLOWED) : number + 1]
    if len(last) > FAILURES_ALLOWED and all(trial.state == TrialState.FAIL for trial in last):
        errors = [f"trial {trial.number}: {trial.user_attrs.get('error')}" for trial in last]
        raise ScoreError(
            listing("three trials in a row had losses that are not finite", errors)
            + "\nUse a smaller --radius, other --groups, or leave out the ingredient that overflows"
        )


def _record_of(objective: Objective, score: Score) -> dict[str, Any]:
    record: dict[str, Any] = {"images": score.images, "seconds": score.seconds, "seen": len(score.outcomes)}
    record["metrics"] = score.metrics
    if score.beside:
        record["beside"] = {name: each.metrics for name, each in score.beside.items()}
        labels = objective.evaluators[VALIDATION].split.labels[: len(score.outcomes)]
        own = objective.signal.of(labels, score.outcomes)
        record["signals"] = {VALIDATION: own, **{name: each.signal for name, each in score.beside.items()}}
        record["weighted"] = score.signal
    return {**record, "estimated": True} if score.estimated else record


def _values(study: optuna.Study, record: Mapping[str, Any], score: Score) -> list[float]:
    """What the study is told of a score."""
    return list(record["signals"].values()) if len(study.directions) > 1 else [score.signal]


def _late(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline
