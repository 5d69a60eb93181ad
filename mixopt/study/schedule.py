"""How many trials, and who is asked for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from mixopt.scoring.objective import Objective
from mixopt.scoring.racing import LEVEL
from mixopt.spaces import Space
from mixopt.study.beginning import Known
from mixopt.study.evidence import Evidence
from mixopt.study.samplers import SURFACE, make_sampler, population_of
from mixopt.study.studies import mix_of, seen_of
from mixopt.study.surface_sampler import SurfaceSampler

# What a trial saw before it was given up tells a surface as much of those samples as a whole one, so that it is given
# up much sooner: measured in studies/surface.
SURFACE_LEVEL = 0.1
# By how much the trials grow, about, until a surface is asked again what it promises.
SPARED = 1.25

Asked = Callable[[Sequence[FrozenTrial]], BaseSampler]
Enough = Callable[[Sequence[FrozenTrial]], str]


@dataclass(frozen=True, eq=False)
class Schedule:
    """How many trials, and how they are asked.

    Attributes:
        sampler: See `make_sampler`.
        trials: Complete trials wanted.
        seed: Of the whole run.
        population: Trials per generation; see `population_of`.
        race: Give trials up that will not reach the best of the generations before theirs; what the sampler is told of
            them is an estimate.
        deadline: `time.monotonic` time after which no trial is started.
        after: A study whose trials came before: numbers and counts, as seeds and as announced, go on from its.
        evidence: What else was scored before, for samplers that learn from logits.
        stop: Stop where a surface promises no more than its samples can tell.
        judges_from: The first of the validation samples that judge what a surface promises, see `mixopt.study.folds`.
    """

    sampler: str
    trials: int
    seed: int
    population: int | None = None
    race: bool = False
    deadline: float | None = None
    after: optuna.Study | None = None
    evidence: Sequence[Known] = field(default=())
    stop: bool = False
    judges_from: int = 0

    @property
    def earlier(self) -> list[FrozenTrial]:
        """The trials that came before."""
        return [] if self.after is None else self.after.get_trials(deepcopy=False)

    @property
    def level(self) -> float:
        """When a trial is given up, see `mixopt.scoring.racing`."""
        return SURFACE_LEVEL if self.sampler == SURFACE else LEVEL

    def size(self, space: Space) -> int:
        """Trials asked at a time."""
        return population_of(self.sampler, space.dims, self.population)


def samplers_of(schedule: Schedule, objective: Objective, space: Space, where: str) -> tuple[Asked, Enough]:
    """From the trials before one to the sampler that is asked for it: fresh, or such as if it were.

    And from the trials before a generation to why they are enough, or to nothing.

    Args:
        schedule: Which sampler, and its seed.
        objective: For a sampler that learns from logits.
        space: The study's.
        where: The study's storage, for messages.
    """
    size, earlier = schedule.size(space), schedule.earlier
    if schedule.sampler == SURFACE:
        before = [Known(mix_of(trial, space), seen) for trial in earlier if (seen := seen_of(trial))]
        evidence = Evidence(objective, space, [*schedule.evidence, *before])
        # What it asks depends on what is stored, and on nothing that it went through.
        surface = SurfaceSampler(objective, space, schedule.seed, size, evidence)
        return (lambda _: surface), partial(_enough, surface, schedule, size)
    count = len(earlier)

    def fresh(trials: Sequence[FrozenTrial]) -> BaseSampler:
        seed = _seed_for(schedule.seed, count + len(trials))
        return make_sampler(schedule.sampler, seed, size, trials, space.labels, where)

    return fresh, lambda _: ""


def is_due(generations: int) -> bool:
    """Whether to ask after so many generations if they are enough: as often as there are `SPARED` more of them.

    What a surface promises takes as long as several proposals, and more where there are more trials.
    """
    return generations < 2 or math.floor(math.log(generations, SPARED)) > math.floor(math.log(generations - 1, SPARED))


def _enough(surface: SurfaceSampler, schedule: Schedule, size: int, before: Sequence[FrozenTrial]) -> str:
    is_asked = schedule.stop and is_due(len(before) // size)
    promise = surface.promise(before, schedule.judges_from) if is_asked else None
    if promise is None or not promise.gain <= promise.error:  # also where too few samples judge
        return ""
    return (
        f"the surface promises {promise.gain:+.4f} ± {promise.error:.4f} more on samples that do not choose: no more "
        "than they can tell (--no-stop goes on)"
    )


def _seed_for(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] % (2**31 - 1))
