"""Methods: each chooses a mix. A newcomer is one file here with ``choose``; it is found by its name.

The contract: ``choose(objective, columns, *, seed, **options) -> Choice``, where ``columns`` maps names to mixes
(ingredients as one-hot mixes, or other methods' mixes) in a fixed order. A method asks ``objective.score`` for
everything and counts nothing itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mixopt.errors import SpecError, unknown
from mixopt.mix import Mix
from mixopt.objective import Objective


@dataclass(frozen=True)
class Choice:
    """What a method chose.

    Attributes:
        mix: The mix.
        curves: What it saw on the way, by name: a list of ``{"x": ..., "value": ...}`` or the like, for reports.
        notes: Facts about the choice, such as the rule it followed.
    """

    mix: Mix
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """The contract of a method's ``choose``."""

    def __call__(self, objective: Objective, columns: Mapping[str, Mix], *, seed: int, **options: Any) -> Choice:
        """Choose a mix of the columns."""


def method_names() -> list[str]:
    """Every method, by file name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def method(name: str) -> Method:
    """The ``choose`` of a method.

    Raises:
        SpecError: No such method.
    """
    if name not in method_names():
        raise SpecError("--methods: " + unknown("method", name, method_names()))
    found: Method = importlib.import_module(f"mixopt.methods.{name}").choose
    return found
