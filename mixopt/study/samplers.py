"""Optuna's samplers, each made fresh and seeded before every ask, so that a study goes on wherever it was left."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import optuna
from optuna import samplers
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from mixopt.errors import SpecError
from mixopt.imports import is_import_path
from mixopt.study.optimizers import Optimizer, restore

BOX = FloatDistribution(-1.0, 1.0)
SPACE_LEARNERS = ("cmaes", "nsgaii", "tpe", "gp")
# The last optimizer that a CMA-ES sampler stored in some trials.
Stored = Callable[[CmaEsSampler, Sequence[FrozenTrial]], Optimizer | None]
SURFACE = "surface"
SURFACE_POPULATION = 8
STARTUP = 10  # of TPE and of Gaussian processes: Optuna's default
POPULATION = 20  # of NSGA-II; Optuna's 50 would make four generations of 200 trials


def make_sampler(
    name: str,
    seed: int,
    population: int | None,
    before: Sequence[FrozenTrial] = (),
    labels: Sequence[str] | None = None,
    where: str = "the study's storage",
) -> BaseSampler:
    """A fresh sampler of Optuna.

    Args:
        name: ``cmaes``, ``nsgaii``, ``tpe``, ``gp``, ``random``, or ``package.module:Class``.
        seed: Of its random state.
        population: Of CMA-ES and NSGA-II; their own defaults without.
        before: The study's trials so far, where CMA-ES finds its state.
        labels: Of the space's dimensions: samplers that would work the space out before every ask are told it.
        where: The study's storage, for messages.

    Raises:
        SpecError: A class that cannot be imported or is not a sampler.
    """
    dims = None if labels is None else len(labels)

    def stored(sampler: CmaEsSampler, trials: Sequence[FrozenTrial]) -> Optimizer | None:
        every = (restore(trial, sampler._attr_key_optimizer, dims, where) for trial in reversed(trials))
        return next((found for found in every if found is not None), None)

    sampler = _sampler_of(name, seed, population, before, stored)
    return sampler if labels is None or name not in SPACE_LEARNERS else _KnownSpace(sampler, labels)


def check_sampler(name: str, seed: int, population: int | None, objectives: int) -> None:
    """Find out before any work whether a sampler can be made, and takes so many objectives.

    Raises:
        SpecError: It cannot, or does not.
    """
    if name == SURFACE:
        return
    sampler = make_sampler(name, seed, population)
    if objectives == 1 and ":" not in name:
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)
    try:
        study.ask({"first": BOX, "second": BOX})
    except (ValueError, TypeError, NotImplementedError) as error:  # of a user's own class, too
        if objectives == 1:
            raise SpecError(
                f"--sampler {name}: cannot be asked for numbers between -1 and 1 ({error}); choose another"
            ) from error
        raise SpecError(
            f"--sampler {name}: does not take the {objectives} objectives of --pareto ({error}); leave the sampler out "
            "(nsgaii), or choose tpe, gp or random"
        ) from error


def _sampler_of(
    name: str, seed: int, population: int | None, before: Sequence[FrozenTrial], stored: Stored
) -> BaseSampler:
    if name == "cmaes":
        # The box is centred on the start, so CMA-ES begins there, with a sixth of the range as its step.
        return _CmaEs(seed, population, before, stored)
    if name == "nsgaii":
        return NSGAIISampler(population_size=population or POPULATION, seed=seed)
    if name == "tpe":
        return TPESampler(n_startup_trials=STARTUP, seed=seed)
    if name == "gp":
        return GPSampler(n_startup_trials=STARTUP, seed=seed)
    if name == "random":
        return RandomSampler(seed=seed)
    sampler = _foreign_sampler(name, seed)
    if isinstance(sampler, CmaEsSampler):
        vars(sampler)["_restore_optimizer"] = partial(stored, sampler)  # its own would run what a pickle names
    return sampler


def population_of(name: str, dims: int, population: int | None) -> int:
    """Trials asked at a time: an evolutionary sampler's population, 1 for samplers that learn from every trial.

    CMA-ES has its own formula for it.
    """
    if population is not None:
        return population
    if name in (known := {"nsgaii": POPULATION, SURFACE: SURFACE_POPULATION}):
        return known[name]
    return 4 + math.floor(3 * math.log(dims)) if name == "cmaes" else 1


def draws_alone(name: str, number: int) -> bool:
    """Whether a trial's parameters do not depend on the values of trials before it.

    Args:
        name: As for `make_sampler`.
        number: The trial's.
    """
    if name in ("tpe", "gp"):  # which begin with random draws
        return number < STARTUP
    if name == "random":
        return True
    return is_import_path(name) and isinstance(_foreign_sampler(name, 0), (RandomSampler, QMCSampler))


def start_attributes(name: str) -> dict[str, Any]:
    """What marks the start as one of the sampler's own trials: for NSGA-II, it is in the first generation."""
    return {NSGAIISampler._get_generation_key(): 0} if name == "nsgaii" else {}


class NSGAIISampler(samplers.NSGAIISampler):
    """Optuna's NSGA-II, with a generation's parents always in the order in which they are read back.

    Optuna hands them over by rank when it chooses them, and by number from then on: where a killed process had chosen
    them, the first trial of the generation would have other parents. It stores generations under the name of the
    class, so that this one is called as Optuna's is.
    """

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The parents of a generation, chosen where they are not yet."""
        super().get_parent_population(study, generation)
        return super().get_parent_population(study, generation)


class _KnownSpace(BaseSampler):
    """A sampler that is told the space, which it would otherwise work out from all trials before every ask."""

    def __init__(self, sampler: BaseSampler, labels: Sequence[str]) -> None:
        self._sampler = sampler
        self._space: dict[str, BaseDistribution] = dict.fromkeys(sorted(labels), BOX)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


class _CmaEs(CmaEsSampler):
    """Optuna's CMA-ES, told a generation once.

    Optuna tells the last generation to the optimizer and stores it (1 MB in 200 dimensions) in every trial until one
    of them is complete; with whole generations asked, in all of them. Here a generation's first trial stores it and
    the others find it there. Where that trial fails, the one that replaces it stores it again, so that a complete
    trial of every generation has it and plain Optuna can go on.
    """

    def __init__(self, seed: int, population: int | None, before: Sequence[FrozenTrial], stored: Stored) -> None:
        super().__init__(seed=seed, popsize=population, warn_independent_sampling=False)
        self._live = [trial for trial in before if trial.state in (TrialState.RUNNING, TrialState.COMPLETE)]
        self._stored = stored

    # The one place that knows Optuna from inside; a test compares with Optuna's own, and counts the optimizers stored.
    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        found = self._stored(self, self._live)
        if found and not any(trial.system_attrs.get("cma:generation") for trial in reversed(completed_trials)):
            # Optuna, which finds none in complete trials, would now draw a seed for a new one.
            self._cma_rng.rng.randint(1, 2**31 - 2)
        return found


def _foreign_sampler(name: str, seed: int) -> BaseSampler:
    if not is_import_path(name):
        raise SpecError(f"--sampler {name}: expected package.module:Class")
    path, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"--sampler {name}: cannot import it ({error}); expected package.module:Class") from error
    try:
        seeded = "seed" in inspect.signature(kind).parameters
        sampler = kind(seed=seed) if seeded else kind()
    except (TypeError, ValueError) as error:
        raise SpecError(f"--sampler {name}: cannot be made without arguments other than seed ({error})") from error
    if not isinstance(sampler, BaseSampler):
        raise SpecError(f"--sampler {name}: expected an optuna sampler, found a {type(sampler).__name__}")
    return sampler
