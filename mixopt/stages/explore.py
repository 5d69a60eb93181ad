"""The trials of a search, from its space to the best of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixopt import study as searching
from mixopt.assemble import Assembly
from mixopt.comparison.rows import Entry
from mixopt.errors import names
from mixopt.listener import Listener
from mixopt.reporting import FINALISTS
from mixopt.scoring.objective import Objective
from mixopt.spaces import Space
from mixopt.spec import StudySpec
from mixopt.stages.plan import DIMENSIONS, make_space
from mixopt.stages.refine import refine
from mixopt.study import Study
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION

Stage = tuple[Study, Space]


@dataclass(frozen=True, eq=False)
class Explored:
    """What the trials found.

    Attributes:
        objective: What scored them; its tally counts them.
        start: The mix that the search began at.
        best: Trial number to mix of the best, best first.
        finished: Whether all trials were completed.
        stages: The studies and their spaces.
        refined: What report.json says of the second stage's space; nothing where there was none.
    """

    objective: Objective
    start: Mix
    best: dict[int, Mix]
    finished: bool
    stages: Sequence[Stage]
    refined: dict[str, Any]

    def facts(self, picked: int) -> dict[str, Any]:
        """What report.json says of them, given the number of the trial that was chosen."""
        studies = [study for study, _ in self.stages]
        states: Counter[str] = Counter()
        races: Counter[str] = Counter()
        for study in studies:
            states.update(searching.count_states(study))
            races.update(searching.race_facts(study, self.objective.images))
        _, space = self.stages[0]
        facts: dict[str, Any] = {
            "trials": dict(states),
            "race": dict(races),
            "finished": self.finished,
            "space": {"kind": space.describe()["kind"], "dims": space.dims, "labels": list(space.labels)},
        }
        if self.refined:
            facts["space"]["refined"] = self.refined
        if others := self.objective.weights:
            trials = searching.numbered(studies)
            facts["front"] = searching.front(trials, split_weights(others), self.objective.signal, picked)
        return facts


def split_weights(others: Mapping[str, float]) -> dict[str, float]:
    """What each split that steers weighs, the selection split first."""
    return {VALIDATION: 1 - sum(others.values()), **others}


def explore(
    spec: StudySpec,
    assembly: Assembly,
    studies: Sequence[Study],
    facts: Mapping[str, Any],
    baselines: Mapping[str, Entry],
    deadline: float | None,
    listener: Listener,
) -> Explored:
    """Run the trials of a search, or those that are still to do.

    Args:
        spec: The options.
        assembly: What they were made into.
        studies: New or partly run: one, or one for each of two stages.
        facts: What a study must keep to.
        baselines: What the space lies between.
        deadline: `time.monotonic` time after which no trial is started.
        listener: Told of trials.

    Raises:
        MixoptError: No space can be made, or too many trials fail.
    """
    objective = assembly.objective
    counted = objective.weighing(spec.weights)
    space = searching.settle_space(studies[0], facts, lambda: make_space(spec, objective, baselines))
    listener.info(f"{space.dims} dimensions around the start ({spec.start}), {spec.sampler_name}, {spec.trials} trials")
    if space.dims > DIMENSIONS:
        listener.warn(
            f"{space.dims} dimensions are many for {spec.trials} trials; fewer --groups or --ingredients find more",
        )
    stages: list[Stage] = [(studies[0], space)]
    refined: dict[str, Any] = {}
    first = spec.trials if len(studies) == 1 else _trials_of_first(spec.trials, *studies)
    finished = _run(spec, stages, counted, first, deadline, listener)
    if finished and spec.refine and (spec.trials > first or searching.has_begun(studies[1])):
        (trial, mix), *_ = searching.best_of_stages(stages, 1).items()
        second = refine(spec, counted, mix, spec.refine)
        refined = second.facts(trial)
        listener.info(
            f"second stage: {second.space.dims} dimensions around trial {trial}, in the layer groups "
            f"{names(second.space.moving)}",
        )
        stages.append((studies[1], searching.settle_space(studies[1], facts, lambda: second.space)))
        finished = _run(spec, stages, counted, spec.trials - first, deadline, listener)
    if not finished:
        listener.warn("--timeout: stopped before all trials were complete; the same command continues")
    start = space.to_mix(np.zeros(space.dims))
    return Explored(counted, start, searching.best_of_stages(stages, FINALISTS), finished, stages, refined)


def _trials_of_first(trials: int, first: Study, second: Study) -> int:
    """How many trials the first of two stages has: the larger half, or where the second has begun what it had then."""
    if searching.has_begun(second):
        return searching.count_states(first)["complete"]
    return math.ceil(trials / 2)


def _run(
    spec: StudySpec,
    stages: Sequence[Stage],
    counted: Objective,
    trials: int,
    deadline: float | None,
    listener: Listener,
) -> bool:
    """Bring the last of the stages to so many complete trials; False where the deadline passed first."""
    study, space = stages[-1]
    finished = searching.run_trials(
        study,
        counted,
        space,
        sampler=spec.sampler_name,
        trials=trials,
        seed=spec.seed,
        population=spec.population,
        deadline=deadline,
        # Of all stages' trials.
        listener=replace(listener, trial=lambda event: listener.trial(replace(event, total=spec.trials))),
        race=spec.race == "on" and not spec.weights,
        after=stages[0][0] if len(stages) > 1 else None,
    )
    searching.recall_trials(study, counted, space)
    return finished
