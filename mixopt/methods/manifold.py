"""ManifoldMix. Fassold, "The Manifold Mixing Model Soups", IMVIP 2023, arXiv 2309.08610.

The sequential algorithm of its first phase (the author's "ManifoldMixMS"), and the joint second phase, which is off
by default as in the author's code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixopt.errors import SpecError, listing
from mixopt.methods import Chosen
from mixopt.methods._cobyla import Vector, minimize_in_box
from mixopt.methods._components import Parts, components_of, parts_of
from mixopt.methods.individual import ranking
from mixopt.scoring.objective import Objective
from mixopt.values.metrics import Metric
from mixopt.values.mix import Coefficients, Mix, rows_on

LATER_BOUNDS = (0.3, 1.0)
FACTOR_BOUNDS = (0.75, 1.25)


@dataclass(frozen=True)
class Options:
    """The method's options.

    Attributes:
        prefix: A component is all tensors whose names share so many dot-separated tokens. The author's files have
            ``model.`` in front of every name, so that the 8 components of the paper are 2 there.
        groups: Makes the components of the mixed tensors instead: ``whole``, ``block``, ``tensor``, a number of
            groups, or a TOML file of regular expressions.
        budget: Function calls per live component and pass.
        tolerance: A column is left out at once where the plain average with it falls below this share of the soup's
            score (the paper's tau).
        spread: Bounds of the first pass around its start, as a share of the way from there to 1 (the paper's delta).
        passes: 1 to 3: the first pass alone, a second where it was no worse, a third where the second gained enough.
        phase2: Afterwards optimise all coefficients together; kept where that is no worse.
        models: Inspect only so many of the best columns; None for all.
        images: Stop before more than so many images have gone through models, and take the best soup so far; None for
            no such end. The columns themselves are always scored.

    Raises:
        SpecError: An option is out of range.
    """

    prefix: int = 1
    groups: str | None = None
    budget: int = 30
    tolerance: float = 0.998
    spread: float = 0.5
    passes: int = 3
    phase2: bool = False
    models: int | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        wrong = [
            f"{option}: expected {expected}, found {getattr(self, option)}"
            for option, fits, expected in (
                ("prefix", self.prefix >= 1, "1 or more name tokens"),
                ("budget", self.budget >= 1, "1 or more function calls per component"),
                ("tolerance", 0 < self.tolerance <= 1, "a number above 0 and up to 1"),
                ("spread", 0 < self.spread <= 1, "a number above 0 and up to 1"),
                ("passes", self.passes in (1, 2, 3), "1, 2 or 3"),
                ("models", self.models is None or self.models >= 1, "1 or more columns"),
                ("images", self.images is None or self.images >= 1, "1 or more images"),
            )
            if not fits
        ]
        if wrong:
            raise SpecError(listing("manifold", wrong))


def choose(objective: Objective, columns: Mapping[str, Mix], *, seed: int, options: Options = Options()) -> Chosen:
    """From the best down, fuse each column into the soup with one coefficient per component, found by COBYLA.

    Evaluations: one per column, one per inspected column, and up to three times ``budget`` per live component for
    each that passes the screen. Components in which all columns are identical are not optimised and cost nothing.
    As published, a second pass replaces the first even where its narrower bounds make it worse.

    Args:
        objective: Scores the soups.
        columns: Candidates.
        seed: Not used; COBYLA draws nothing.
        options: How.

    Raises:
        SpecError: There is no such group scheme.
    """
    parts = parts_of(objective.pool, columns, components_of(objective, options.prefix, options.groups))
    rules = _Rules(options, options.budget * len(parts.live))
    ranked = ranking(objective, columns)[: options.models]
    rows = {name: rows_on(columns[name], parts.groups) for name, _ in ranked}
    members, best = [ranked[0][0]], ranked[0][1]
    soup, lambdas = rows[members[0]], []
    curve: list[dict[str, Any]] = [{"name": members[0], "value": best, "passes": 0}]
    skipped: list[str] = []
    near_misses: list[str] = []
    run = 0
    for name, _ in ranked[1:] if parts.live else []:
        if rules.left(objective) < 1:
            break
        tried = _try(objective, parts, (soup, rows[name]), best, len(members), rules)
        run += tried.passes
        if tried.accepted:
            members.append(name)
            lambdas.append(tried.lambdas)
            soup, best = parts.between(soup, rows[name], tried.lambdas).coefficients, tried.value
            curve.append({"name": name, "value": best, "passes": tried.passes})
        else:
            (near_misses if tried.passes else skipped).append(name)
    coefficients = unroll(np.array(lambdas).reshape(len(lambdas), len(parts.live)))
    saved = options.budget * len(parts.dead) * run
    mix = columns[members[0]] if len(members) == 1 else Mix(parts.groups, parts.columns, soup)
    notes: dict[str, Any] = {}
    if options.phase2 and len(members) > 1 and rules.left(objective) >= 1:
        most = min(options.budget * coefficients.size, rules.left(objective))
        joint = _optimise_jointly(objective, parts, [rows[name] for name in members], coefficients, most)
        kept = objective.metric.at_least(joint.value, best)
        notes["phase2"] = {"value": joint.value, "kept": kept, "factors": joint.factors.tolist()}
        saved += options.budget * len(parts.dead) * len(members)
        if kept:
            mix, best, coefficients = joint.mix, joint.value, joint.coefficients
    notes |= {
        "ingredients": members,
        "components": list(parts.live),
        "lambdas": [row.tolist() for row in lambdas],
        "coefficients": coefficients.tolist(),
        "value": best,
        "skipped": skipped,
        "near_misses": near_misses,
        "evaluations_per_pass": rules.budget,
        "passes_run": run,
        "dead": list(parts.dead),
        "saved_evaluations": saved,
        **({"cut_short": rules.left(objective) < 1} if options.images is not None else {}),
    }
    return Chosen(mix, curves={"manifold": curve}, notes=notes)


@dataclass(frozen=True)
class _Rules:
    """The method's options, and the function calls of one pass."""

    options: Options
    budget: int

    def left(self, objective: Objective) -> int:
        """How many more mixes may be scored, each at what the dearest so far cost (BatchNorm statistics cost too)."""
        if self.options.images is None:
            return sys.maxsize
        each = max(images for images, _ in objective.tally.asked.values())
        return max(0, self.options.images - objective.tally.images) // each

    def calls(self, objective: Objective) -> int:
        """The function calls of the next pass."""
        return min(self.budget, self.left(objective))


@dataclass(frozen=True, eq=False)
class _Tried:
    lambdas: Vector
    value: float
    passes: int
    accepted: bool


@dataclass(frozen=True, eq=False)
class _Joint:
    mix: Mix
    value: float
    factors: Coefficients
    coefficients: Coefficients


def optimise(
    score: Callable[[Vector], float], metric: Metric, start: Vector, bounds: tuple[float, float], budget: int
) -> tuple[Vector, float]:
    """The best point in a box and its score, by one pass of COBYLA.

    Args:
        score: Of a point ``[n]``.
        metric: Says which way is better.
        start: ``[n]``, within the bounds.
        bounds: The lower and the upper bound of every coordinate.
        budget: Points to score in all.
    """
    scores: dict[bytes, float] = {}

    def loss(point: Vector) -> float:
        value = scores[point.tobytes()] = score(point)
        return 1 - value if metric.direction == "maximize" else value

    best = minimize_in_box(loss, start, bounds, budget)
    return best, scores[best.tobytes()]


def unroll(lambdas: Coefficients) -> Coefficients:
    """Coefficients of the ingredients ``[k, m]`` from the steps ``[k - 1, m]`` that fused them one after another."""
    steps, components = lambdas.shape
    kept = np.ones((steps + 1, components))
    kept[:-1] = np.cumprod(lambdas[::-1], axis=0)[::-1]
    return kept * np.vstack([np.ones((1, components)), 1 - lambdas])


def _try(
    objective: Objective,
    parts: Parts,
    pair: tuple[Coefficients, Coefficients],
    best: float,
    count: int,
    rules: _Rules,
) -> _Tried:
    """Steps 2 to 4: the screen, the first pass, and the passes that follow a success."""
    metric = objective.metric

    def score(lambdas: Vector) -> float:
        return objective.score(parts.between(*pair, lambdas)).value

    middle = count / (count + 1)
    lambdas = np.full(len(parts.live), middle)
    value = score(lambdas)
    if not _reaches(metric, value, rules.options.tolerance, best):
        return _Tried(lambdas, value, passes=0, accepted=False)
    if not rules.left(objective):
        return _Tried(lambdas, value, passes=0, accepted=metric.at_least(value, best))
    margin = rules.options.spread * (1 - middle)
    bounds = (middle - margin, middle + margin)
    lambdas, value = optimise(score, metric, lambdas, bounds, rules.calls(objective))
    if not metric.at_least(value, best):
        return _Tried(lambdas, value, passes=1, accepted=False)
    run, enough = 1, 1 + 0.3 * (1 - rules.options.tolerance)
    while run < rules.options.passes and rules.left(objective):
        before = lambdas, value
        start = np.clip(lambdas, *LATER_BOUNDS)
        lambdas, value = optimise(score, metric, start, LATER_BOUNDS, rules.calls(objective))
        run += 1
        if not rules.left(objective) and metric.better(before[1], value):
            lambdas, value = before  # a pass that was cut short replaces nothing better
        if not _reaches(metric, value, enough, before[1]):
            break
    return _Tried(lambdas, value, run, accepted=True)


def _optimise_jointly(
    objective: Objective, parts: Parts, rows: list[Coefficients], coefficients: Coefficients, calls: int
) -> _Joint:
    """Phase 2: a factor on every coefficient, all rescaled to sum to 1 per component."""

    def weights(factors: Vector) -> Coefficients:
        scaled = factors.reshape(coefficients.shape) * coefficients
        rescaled: Coefficients = scaled / scaled.sum(axis=0)
        return rescaled

    def score(factors: Vector) -> float:
        return objective.score(parts.weighted(rows, weights(factors))).value

    start = np.ones(coefficients.size)
    factors, value = optimise(score, objective.metric, start, FACTOR_BOUNDS, calls)
    found = weights(factors)
    return _Joint(parts.weighted(rows, found), value, factors.reshape(coefficients.shape), found)


def _reaches(metric: Metric, value: float, factor: float, reference: float) -> bool:
    """Whether a value is at least ``factor`` times another; for metrics to minimise, at most the factor-th part."""
    return value >= factor * reference if metric.direction == "maximize" else factor * value <= reference
