"""Explore: the trials of a search, from its space to the best of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mixopt import study as studies
from mixopt.errors import names
from mixopt.listener import Listener
from mixopt.reporting.build import FINALISTS
from mixopt.scoring.objective import Objective
from mixopt.scoring.tally import Tally
from mixopt.spaces import Space
from mixopt.stages.plan import DIMENSIONS, LEARNED, SearchPlan
from mixopt.stages.refine import Refinement, refine
from mixopt.study import Known, Study
from mixopt.values.mix import Mix

Round = tuple[Study, Space]


@dataclass(frozen=True, eq=False)
class Explored:
    """What the trials found.

    Attributes:
        start: The mix that the search began at.
        best: Trial number to mix of the best, best first.
        finished: Whether all trials were completed.
        rounds: The studies and their spaces: one, or two with ``--refine``.
        refined: What the second round searched; None where there was none.
        tally: What the trials took, those of earlier sessions included.
    """

    start: Mix
    best: Mapping[int, Mix]
    finished: bool
    rounds: Sequence[Round]
    refined: Refinement | None
    tally: Tally


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a new study begins with.

    Attributes:
        make_space: Makes its space.
        evidence: Gives what was scored before, for samplers that learn from logits.
        judges_from: The first validation sample that judges what such a sampler promises.
    """

    make_space: Callable[[], Space]
    evidence: Callable[[], Sequence[Known]] = list
    judges_from: int = 0


def explore(
    plan: SearchPlan,
    objective: Objective,
    own: Sequence[Study],
    beginning: Beginning,
    deadline: float | None,
    listener: Listener,
) -> Explored:
    """Run the trials of a search, or those that are still to do.

    Args:
        plan: What was decided.
        objective: Scores; the trials count on a tally of their own.
        own: The run's studies, new or partly run: one, or one for each of two rounds.
        beginning: What a new study begins with.
        deadline: `time.monotonic` time after which no trial is started.
        listener: Told of trials.

    Raises:
        MixoptError: No space can be made, or too many trials fail.
    """
    counting = objective.weighing(plan.weights)
    space = studies.keep_space(own[0], plan.identity, beginning.make_space, beginning.evidence)
    trials = plan.trials.trials
    start = "learned" if plan.start == LEARNED else plan.start
    listener.info(f"{space.dims} dimensions around the start ({start}), {plan.trials.sampler}, {trials} trials")
    if space.dims > DIMENSIONS and not plan.surface:
        listener.warn(
            f"{space.dims} dimensions are many for {trials} trials; fewer --groups or --ingredients find more"
        )
    rounds: list[Round] = [(own[0], space)]
    refined: Refinement | None = None
    first = trials if len(own) == 1 else _trials_of_first(trials, *own)
    run = partial(_run, plan, rounds, counting, judges_from=beginning.judges_from, deadline=deadline, listener=listener)
    finished = run(trials=first)
    if finished and plan.refine and (trials > first or studies.has_begun(own[1])):
        (trial, mix), *_ = studies.best_of_rounds(rounds, 1).items()
        refined = refine(plan.refine, counting, mix, trial)
        second = refined.space
        listener.info(
            f"second stage: {second.dims} dimensions around trial {trial}, in the layer groups {names(second.moving)}"
        )
        rounds.append((own[1], studies.keep_space(own[1], plan.identity, lambda: second)))
        finished = run(trials=trials - first)
    if not finished:
        listener.warn("--timeout: stopped before all trials were complete; the same command continues")
    origin = space.to_mix(np.zeros(space.dims))
    return Explored(origin, studies.best_of_rounds(rounds, FINALISTS), finished, rounds, refined, counting.tally)


def _trials_of_first(trials: int, first: Study, second: Study) -> int:
    """How many trials the first of two rounds has: the larger half, or where the second has begun what it had then."""
    if studies.has_begun(second):
        return studies.count_states(first)["complete"]
    return math.ceil(trials / 2)


def _run(
    plan: SearchPlan,
    rounds: Sequence[Round],
    counting: Objective,
    *,
    trials: int,
    judges_from: int,
    deadline: float | None,
    listener: Listener,
) -> bool:
    """Bring the last of the rounds to so many complete trials; False where the deadline passed first."""
    study, space = rounds[-1]
    # Where the last samples alone judge, trials that are given up before those tell nothing of what is judged.
    races = plan.races and not (plan.surface and judges_from)
    if plan.races and not races:
        listener.info("race: off, because the samples held back alone judge a step from a learned start")
    schedule = studies.Schedule(
        sampler=plan.trials.sampler,
        trials=trials,
        seed=plan.trials.seed,
        population=plan.trials.population,
        race=races,
        deadline=deadline,
        after=rounds[0][0] if len(rounds) > 1 else None,
        evidence=studies.evidence_of(rounds[0][0], rounds[0][1]),
        stop=plan.trials.stop,
        judges_from=judges_from,
    )
    # Of all rounds' trials.
    heard = replace(listener, trial=lambda event: listener.trial(replace(event, total=plan.trials.trials)))
    finished = studies.run_trials(study, counting, space, schedule, heard)
    studies.recall_trials(study, counting, space)
    return finished
