"""Methods: each chooses a mix. A newcomer is one file here with ``choose``; it is found by its name.

The contract: ``choose(objective, columns, *, seed, **options) -> Chosen``, where ``columns`` maps names to mixes
(ingredients as one-hot mixes, or other methods' mixes) in a fixed order. A method asks ``objective.score`` (and
``objective.gradient``) for everything, on the validation split alone, and counts nothing itself. What it needs of the
checkpoints is in ``objective.pool``. Its options are its keyword arguments, each with a type and a default; where they
are many, it takes them as one ``options``, a frozen dataclass whose fields they are. An option that is wrong is a
`SpecError`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, get_type_hints

from mixopt.errors import PoolError, ScoreError, SpecError, names, unknown
from mixopt.methods._predicted import worth_scoring
from mixopt.scoring.objective import Objective
from mixopt.scoring.score import Score
from mixopt.values.groups import Groups, make_groups
from mixopt.values.mix import Mix, one_hot

# What every method is given beside its options.
_GIVEN = ("objective", "columns", "seed")

# 0, 0.1 .. 1, the usual grid of an interpolation.
TENTHS = tuple(tenth / 10 for tenth in range(11))
# Which points of a sweep are scored: all, or those that can be the best by what is predicted of them.
Points = Literal["all", "few"]


@dataclass(frozen=True)
class Chosen:
    """What a method chose.

    Attributes:
        mix: The mix.
        curves: What it saw on the way, by name: a list of ``{"x": ..., "value": ...}`` or the like, for reports.
        notes: Facts about the choice, such as the rule it followed.
        sweep: Every mix along the one parameter that it swept, by the parameter's value, where a report should show
            all of them on every split.
    """

    mix: Mix
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    sweep: dict[float, Mix] = field(default_factory=dict)


class Method(Protocol):
    """The contract of a method's ``choose``."""

    def __call__(self, objective: Objective, columns: Mapping[str, Mix], *, seed: int, **options: Any) -> Chosen:
        """Choose a mix of the columns."""


def method_names() -> list[str]:
    """Every method, by file name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def method(name: str) -> Method:
    """The ``choose`` of a method.

    Raises:
        SpecError: No such method.
    """
    if name not in method_names():
        raise SpecError("--methods: " + unknown("method", name, method_names()))
    found: Method = importlib.import_module(f"mixopt.methods.{name}").choose
    return found


def options_of(choose: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Every option of a ``choose``: its name to its type and default, in order."""
    hints = get_type_hints(choose)
    if "options" in hints:
        types = get_type_hints(hints["options"])
        return {each.name: (types[each.name], each.default) for each in fields(hints["options"])}
    parameters = inspect.signature(choose).parameters
    return {name: (hints[name], each.default) for name, each in parameters.items() if name not in _GIVEN}


def arguments_of(choose: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments by which a ``choose`` takes options.

    Raises:
        SpecError: An option's value is out of range.
    """
    hints = get_type_hints(choose)
    return {"options": hints["options"](**options)} if "options" in hints else dict(options)


def base_mix(objective: Objective, columns: Mapping[str, Mix]) -> Mix:
    """The base alone, as a mix over the groups of the first column.

    Raises:
        PoolError: The pool has no base.
    """
    pool = objective.pool
    if pool.base is None:
        raise PoolError("it needs the base, the pretrained checkpoint, and the pool has none; give --base FILE")
    first = next(iter(columns.values()))
    return one_hot(first.groups, first.columns, pool.base)


def layer_groups(objective: Objective, groups: str) -> Groups:
    """The layer groups of an option ``groups``; see `mixopt.values.groups.make_groups`.

    Raises:
        SpecError: An unknown scheme, or one that does not fit the pool.
    """
    try:
        return make_groups(groups, objective.pool.sizes)
    except SpecError as error:
        raise SpecError(str(error).removeprefix("--")) from error


def swept(option: str, values: tuple[float, ...]) -> tuple[float, ...]:
    """The values of a sweep, ascending and once each.

    Raises:
        SpecError: No value, or one outside 0 to 1.
    """
    if outside := [f"{value:g}" for value in values if not 0 <= value <= 1]:
        raise SpecError(f"{option}: expected values from 0 to 1, found {names(outside)}")
    if not values:
        raise SpecError(f"{option}: expected values from 0 to 1, found none")
    return tuple(sorted(set(values)))


def sweep_choice(
    objective: Objective, along: Mapping[float, Mix], axis: str, notes: dict[str, Any], points: Points = "all"
) -> Chosen:
    """The best mix along one parameter, of equals the first, with the curve of scores on the validation split.

    A mix whose score is not finite is not eligible and is told under ``not_finite`` in the notes.

    Args:
        objective: Scores the mixes.
        along: The parameter's value to the mix there, ascending.
        axis: The parameter's name.
        notes: More about the choice.
        points: Which of the mixes are scored, see `mixopt.methods._predicted.worth_scoring` for ``few``.

    Raises:
        ScoreError: No mix has a finite score.
        SpecError: ``few``, and there are no logits: a user's own function scores.
    """
    scores: dict[float, Score | None] = {}
    if points == "few":
        objective = objective.needing("logits")
    if points == "all":
        objective.expect(along.values())
    for x in along if points == "all" else worth_scoring(objective, along, scores):
        try:
            scores[x] = objective.score(along[x])
        except ScoreError:
            scores[x] = None
            if not any(scores.values()) and len(scores) == len(along):
                raise
    values = {x: score.value for x in along if (score := scores.get(x)) is not None}
    best = next(iter(values))
    for x, value in values.items():
        if objective.metric.better(value, values[best]):
            best = x
    failed = [x for x in along if x in scores and scores[x] is None]
    curve = [{"x": x, "value": value} for x, value in values.items()]
    every = {axis: best, **notes, **({"not_finite": failed} if failed else {})}
    return Chosen(along[best], curves={axis: curve}, notes=every)
