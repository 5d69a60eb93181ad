"""The trials of a search, from its space to the best of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixopt import search as searching
from mixopt.assemble import Assembly
from mixopt.lineup import Entry
from mixopt.listener import Listener
from mixopt.mix import Mix
from mixopt.objective import SEARCH, Objective
from mixopt.report import FINALISTS
from mixopt.search import Study
from mixopt.spaces import Space
from mixopt.spec import StudySpec
from mixopt.stages import DIMENSIONS, make_space


@dataclass(frozen=True, eq=False)
class Explored:
    """What the trials found.

    Attributes:
        objective: What scored them; its tally counts them.
        start: The mix that the search began at.
        best: Trial number to mix of the best, best first.
        finished: Whether all trials were completed.
        stages: The studies and their spaces.
    """

    objective: Objective
    start: Mix
    best: dict[int, Mix]
    finished: bool
    stages: Sequence[tuple[Study, Space]]

    def facts(self, picked: int) -> dict[str, Any]:
        """What report.json says of them, given the number of the trial that was chosen."""
        studies = [study for study, _ in self.stages]
        states: Counter[str] = Counter()
        races: Counter[str] = Counter()
        for study in studies:
            states.update(searching.count_states(study))
            races.update(searching.race_facts(study, self.objective.samples))
        weights = split_weights(self.objective.weights)
        return {
            "trials": dict(states),
            "race": dict(races),
            "finished": self.finished,
            "space": {
                "kind": self.stages[0][1].describe()["kind"],
                "dims": self.stages[0][1].dims,
                "labels": list(self.stages[0][1].labels),
            },
            **(
                {"front": searching.front(searching.numbered(studies), weights, self.objective.signal, picked)}
                if len(weights) > 1
                else {}
            ),
        }


def split_weights(others: Mapping[str, float]) -> dict[str, float]:
    """What each split that steers weighs, the selection split first."""
    return {SEARCH: 1 - sum(others.values()), **others}


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
        studies: New or partly run.
        facts: What a study must keep to.
        baselines: What the space lies between.
        deadline: `time.monotonic` time after which no trial is started.
        listener: Told of trials.

    Raises:
        MixoptError: No space can be made, or too many trials fail.
    """
    objective = assembly.objective
    (study,) = studies
    space = searching.settle_space(study, facts, lambda: make_space(spec, objective, baselines))
    listener.say(
        f"{space.dims} dimensions around the start ({spec.start}), {spec.sampler_name}, {spec.trials} trials", False
    )
    if space.dims > DIMENSIONS:
        listener.say(
            f"{space.dims} dimensions are many for {spec.trials} trials; fewer --groups or --ingredients find more",
            True,
        )
    counted = objective.weighing(spec.weights)
    stages = [(study, space)]
    finished = searching.run_trials(
        study,
        counted,
        space,
        sampler=spec.sampler_name,
        trials=spec.trials,
        seed=spec.seed,
        population=spec.population,
        deadline=deadline,
        listener=listener,
        race=spec.race == "on" and not spec.weights,
    )
    if not finished:
        listener.say("--timeout: stopped before all trials were complete; the same command continues", True)
    searching.recall_trials(study, counted, space)
    start = space.to_mix(np.zeros(space.dims))
    return Explored(counted, start, searching.best_of_stages(stages, FINALISTS), finished, stages)
