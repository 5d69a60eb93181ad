"""A surrogate of a search: recorded scores of a space's points, a polynomial fitted to them, and samplers on it.

Used by ``search.py surrogate``, for one space or for a grid of spaces and starts.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
from numpy.typing import NDArray

from mixopt import load_spec
from mixopt import study as search
from mixopt.assemble import Assembly, assemble
from mixopt.listener import Listener
from mixopt.scoring.objective import Objective
from mixopt.scoring.outcomes import NO_OUTCOMES
from mixopt.scoring.score import Score
from mixopt.scoring.stopwatch import Stopwatch
from mixopt.spaces import Space
from mixopt.spaces.simplex import Simplex
from mixopt.spec import StudySpec
from mixopt.stages.plan import plan_search, steered
from mixopt.stages.space import make_space
from mixopt.stages.start import find_start
from mixopt.values.mix import Mix

SAMPLERS = ("cmaes", "tpe", "gp", "random")
STOPS = (25, 50, 100, 200)
# The learned soup lies off the simplex.
GRID = tuple(
    (space, start)
    for space in ("residual", "simplex", "affine", "shared", "depth")
    for start in ("learned", "greedy", "uniform")
    if (space, start) != ("simplex", "learned")
)
STRENGTHS = np.logspace(-4, 4, 17)
FOLDS = 5
GP_TRIALS, GP_SEEDS = 4, 3  # GP takes half a second or more to ask: so many times fewer
Floats = NDArray[np.float64]


def linear(points: Floats) -> Floats:
    """Every coordinate."""
    return points


def diagonal(points: Floats) -> Floats:
    """Every coordinate and its square."""
    return np.hstack([points, points**2])


def quadratic(points: Floats) -> Floats:
    """Every coordinate and every product of two: ``[n, dims]`` to ``[n, terms]``."""
    first, second = np.triu_indices(points.shape[1])
    return np.hstack([points, points[:, first] * points[:, second]])


TERMS = {"linear": linear, "diagonal": diagonal, "quadratic": quadratic}


@dataclass(frozen=True, eq=False)
class Fit:
    """A ridge regression on terms of a point.

    Attributes:
        terms: A key of `TERMS`.
        strength: Of the ridge, on terms that were scaled to a deviation of 1.
        centre: ``[terms]``, the terms' means.
        scale: ``[terms]``, their deviations.
        weights: ``[terms]``.
        constant: The mean of the values.
    """

    terms: str
    strength: float
    centre: Floats
    scale: Floats
    weights: Floats
    constant: float

    def at(self, points: Floats) -> Floats:
        """The value at points ``[n, dims]``, ``[n]``."""
        return np.asarray(self.constant + (TERMS[self.terms](points) - self.centre) / self.scale @ self.weights)


def ridge(terms: str, strength: float, points: Floats, values: Floats) -> Fit:
    """A fit to values ``[n]`` at points ``[n, dims]``."""
    raw = TERMS[terms](points)
    centre, scale = raw.mean(axis=0), raw.std(axis=0) + 1e-12
    design, wanted = (raw - centre) / scale, values - values.mean()
    # In the space of the samples: there may be fewer of them than terms.
    dual = np.linalg.solve(design @ design.T + strength * np.eye(len(values)), wanted)
    return Fit(terms, strength, centre, scale, design.T @ dual, float(values.mean()))


def fitted(points: Floats, values: Floats) -> Fit:
    """The terms and the strength with the least error of 5-fold cross-validation, fitted to all."""
    folds = np.array_split(np.arange(len(values)), min(FOLDS, len(values)))

    def error(terms: str, strength: float) -> float:
        errors = []
        for fold in folds:
            rest = np.setdiff1d(np.arange(len(values)), fold)
            errors.append(ridge(terms, strength, points[rest], values[rest]).at(points[fold]) - values[fold])
        return float(np.mean(np.concatenate(errors) ** 2))

    terms, strength = min(
        ((terms, float(each)) for terms in TERMS for each in STRENGTHS), key=lambda pair: error(*pair)
    )
    return ridge(terms, strength, points, values)


def explained(points: Floats, values: Floats) -> float:
    """The share of variance that a fit to four fifths explains on the last fifth, which chose nothing of it."""
    most = max(2, 4 * len(values) // 5)
    truth = values[most:]
    found = fitted(points[:most], values[:most]).at(points[most:])
    return 1 - float(np.sum((truth - found) ** 2) / np.sum((truth - truth.mean()) ** 2))


class Surrogate:
    """A fit in the place of an objective.

    Args:
        space: Whose points it is of.
        fit: The signal at a point.
        direction: Which way is better.
    """

    def __init__(self, space: Space, fit: Fit, direction: Any) -> None:
        self.stopwatch = Stopwatch()
        self.metric = self.signal = direction
        self.samples = 0
        self.weights: dict[str, float] = {}
        self.ahead = 0
        self._space = space
        self._fit = fit

    def score(self, mix: Mix) -> Score:
        """The score of a mix of the space."""
        value = float(self._fit.at(place(self._space, mix)[None])[0])
        return Score(value, {self.metric.name: value}, NO_OUTCOMES, 1.0, cached=True, signal=value)


def place(space: Space, mix: Mix) -> Floats:
    """The one point that stands for a mix: on the simplex, several points may give the same."""
    if isinstance(space, Simplex):
        return place_on_simplex(space, mix)
    start, inverse = moves_of(space)  # type: ignore[arg-type]  # a space is hashed by its identity
    found: Floats = inverse @ (mix.coefficients - start).ravel()
    return np.clip(found, -1, 1)


@cache
def moves_of(space: Space) -> tuple[Floats, Floats]:
    """The rows at the centre, and what turns moves of them into points: of the spaces where moves are linear."""
    start = space.to_mix(np.zeros(space.dims)).coefficients
    moves = [(space.to_mix(unit).coefficients - start).ravel() for unit in np.eye(space.dims)]
    return start, np.linalg.pinv(np.transpose(moves))


def place_on_simplex(space: Simplex, mix: Mix) -> Floats:
    """Of the points that the projection sends to a mix, the one with the smallest shift.

    Projecting takes one shift off every free column and cuts at 0. So the shifts that lead to a row are an interval:
    each column moves by its reach (none without a dimension), and one at 0 may have been cut.
    """
    start, columns = space.start.coefficients, space.start.columns
    active = [columns.index(name) for name in space.active]
    free = np.isin(columns, [*space.start.support(), *space.active])
    reach = np.zeros(len(columns))
    reach[active] = space.radius
    drops = start - mix.coefficients
    lowest = np.max((drops - reach)[:, free], axis=1)
    highest = np.min(np.where(mix.coefficients > 0, drops + reach, np.inf), axis=1)
    shifts = np.minimum(np.maximum(lowest, 0.0), highest)
    found: Floats = ((shifts[:, None] - drops)[:, active] / space.radius).reshape(-1)
    return np.clip(found, -1, 1)


def opened(spec: StudySpec, assembly: Assembly) -> tuple[Objective, Space]:
    """A pool's objective, and the space of a search of it."""
    objective = steered(spec, assembly.objective)
    plan = plan_search(spec, assembly)
    return objective, make_space(plan, find_start(plan, assembly, Listener()), objective)


def run_study(objective: Any, space: Space, spec: StudySpec, seed: int, race: bool) -> optuna.Study:
    """A search without a run folder."""
    with tempfile.TemporaryDirectory() as folder:
        storage = search.open_storage(Path(folder) / "study.journal", None)
        study = search.open_study(storage, "benchmark", objective.signal.direction)
        search.run_trials(
            study,
            objective,
            space,
            search.Schedule(spec.sampler_name, spec.trials, seed, spec.population, race),
        )
        memory = optuna.create_study(direction=objective.signal.direction)
        memory.add_trials(study.get_trials(deepcopy=False))
    return memory


def recorded(objective: Objective, space: Space, count: int) -> tuple[Floats, Floats]:
    """Points that stand for the start and random mixes, ``[count, dims]``, and the signals of these, ``[count]``.

    The first of more of them are the same.
    """
    random = np.random.default_rng(0)
    others = [random.uniform(-1, 1, space.dims) * random.uniform(0.1, 1) for _ in range(count - 1)]
    mixes = [space.to_mix(point) for point in [np.zeros(space.dims), *others]]
    values = []
    for number, mix in enumerate(mixes, start=1):
        values.append(objective.score(mix).signal)
        if number % 10 == 0:
            print(f"{number} of {count} points scored", file=sys.stderr, flush=True)
    return np.array([place(space, mix) for mix in mixes]), np.array(values)


def one(spec: StudySpec, assembly: Assembly, points: int, seeds: int) -> dict[str, Any]:
    """Record, fit, check, and let every sampler search: the space and the start that the spec names."""
    objective, space = opened(spec, assembly)
    drawn, values = recorded(objective, space, points)
    fit = fitted(drawn, values)
    stand_in = cast(Objective, Surrogate(space, fit, objective.signal))
    best_so_far: dict[str, Floats] = {}
    scored: dict[str, float] = {}
    for sampler in SAMPLERS:
        slow = sampler == "gp"
        changes = {"sampler": sampler, "trials": max(1, spec.trials // (GP_TRIALS if slow else 1))}
        told, tops = [], []
        for seed in range(max(1, seeds // (GP_SEEDS if slow else 1))):
            study = run_study(stand_in, space, spec.model_copy(update=changes), seed, race=False)
            told.append([float(trial.value or 0.0) for trial in study.get_trials(deepcopy=False)])
            tops.append(study.best_trial)
        top = max(tops, key=lambda trial: float(trial.value or 0.0))
        scored[sampler] = objective.score(space.to_mix(np.array([top.params[name] for name in space.labels]))).signal
        best_so_far[sampler] = np.maximum.accumulate(np.array(told), axis=1)
        print(f"{spec.space} from {spec.start}: {sampler} searched", file=sys.stderr, flush=True)
    best = max(float(curves.max()) for curves in best_so_far.values())
    stops = sorted({stop for stop in STOPS if stop < spec.trials} | {spec.trials, max(1, spec.trials // GP_TRIALS)})
    reached = {
        sampler: {stop: float(curves[:, stop - 1].mean()) for stop in stops if stop <= curves.shape[1]}
        for sampler, curves in best_so_far.items()
    }
    return {
        "space": spec.space,
        "from": spec.start,
        "dims": space.dims,
        "points": points,
        "terms": fit.terms,
        "explained": explained(drawn, values),
        "start_scored": float(values[0]),
        "start": float(fit.at(drawn[:1])[0]),
        "best_scored": float(values.max()),
        "best": best,
        "scored": scored,
        "reached": reached,
        "regret": {name: {stop: best - value for stop, value in each.items()} for name, each in reached.items()},
    }


def grid(
    options: dict[str, Any], cells: Sequence[tuple[str, str]], points: int, seeds: int
) -> Iterator[dict[str, Any]]:
    """The same for spaces and starts of one pool, one by one."""
    specs = [load_spec({**options, "space": space, "start": start}) for space, start in cells]
    assembly = assemble(load_spec(options), Listener())
    for spec in specs:
        yield one(spec, assembly, points, seeds)


def show_one(found: dict[str, Any]) -> None:
    """Print the regret of every sampler in one space."""
    print(
        f"surrogate: {found['dims']} dimensions, {found['points']} points, {found['terms']} terms, explains "
        f"{found['explained']:.1%} of the variance of points that it was not fitted to\n"
    )
    stops = list(found["regret"]["random"])
    print("| sampler | " + " | ".join(f"regret at {stop}" for stop in stops) + " |\n|---|" + "---|" * len(stops))
    print("| (the start) | " + " | ".join(f"{found['best'] - found['start']:.5f}" for _ in stops) + " |")
    for sampler, regret in found["regret"].items():
        cells = [f"{regret[stop]:.5f}" if stop in regret else "-" for stop in stops]
        print(f"| {sampler} | " + " | ".join(cells) + " |")


def show_grid(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print what every sampler reached on every surrogate and its regret, row by row; then what is true of it."""
    found: list[dict[str, Any]] = []
    for each in rows:
        last = {sampler: max(each["reached"][sampler]) for sampler in SAMPLERS}
        if not found:
            heads = ["space", "start", "dims", "points", "terms", "explained", "the start", "best of all runs"]
            _line([*heads, *(f"{sampler}, {trials} trials" for sampler, trials in last.items())], head=True)
        found.append(each)
        cells = [each["space"], each["from"], str(each["dims"]), str(each["points"]), each["terms"]]
        cells += [f"{each['explained']:.1%}", f"{each['start']:.4f}", f"{each['best']:.4f}"]
        for sampler, stop in last.items():
            cells.append(f"{each['reached'][sampler][stop]:.4f} ({each['regret'][sampler][stop]:.4f})")
        _line(cells)
    print("\nThe best point that each sampler found there, scored for real:\n")
    _line(["space", "start", "the start", "best of the points recorded", *SAMPLERS], head=True)
    for each in found:
        values = [each["start_scored"], each["best_scored"], *(each["scored"][sampler] for sampler in SAMPLERS)]
        _line([each["space"], each["from"], *(f"{value:.4f}" for value in values)])
    print()
    return found


def _line(cells: list[str], head: bool = False) -> None:
    print("| " + " | ".join(cells) + " |" + ("\n" + "|---" * len(cells) + "|" if head else ""), flush=True)
