"""Whether the values of a journal's lines are of the types that Optuna writes."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import TrialState

_MOST = 2**63
_EARLIEST, _LATEST = 1970, 9000
_DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)


def is_text(value: Any) -> bool:
    """A text."""
    return type(value) is str


def is_count(value: Any) -> bool:
    """A whole number from 0 on that 63 bits hold."""
    return type(value) is int and 0 <= value < _MOST


def is_float(value: Any) -> bool:
    """A number, or one that is not finite."""
    return type(value) is float or (type(value) is int and -_MOST < value < _MOST)


def is_number(value: Any) -> bool:
    """A finite number."""
    return is_float(value) and math.isfinite(value)


def is_no_number_or_one(value: Any) -> bool:
    """Nothing, or a finite number."""
    return value is None or is_number(value)


def is_numbers(value: Any) -> bool:
    """Nothing, or finite numbers."""
    return value is None or (type(value) is list and all(map(is_number, value)))


def is_time(value: Any) -> bool:
    """A time that a study can be of."""
    try:
        return type(value) is str and _EARLIEST < datetime.fromisoformat(value).year < _LATEST
    except ValueError:
        return False


def is_no_time_or_one(value: Any) -> bool:
    """Nothing, or such a time."""
    return value is None or is_time(value)


def is_state(value: Any) -> bool:
    """The number of a trial's state."""
    return type(value) is int and 0 <= value < len(TrialState)


def is_directions(value: Any) -> bool:
    """At least one direction, which is set."""
    return type(value) is list and bool(value) and all(type(each) is int and each in _DIRECTIONS for each in value)


def is_attributes(value: Any) -> bool:
    """Attributes by name."""
    return type(value) is dict


def is_attribute(value: Any) -> bool:
    """One attribute by name."""
    return type(value) is dict and len(value) == 1


def is_distributions(value: Any) -> bool:
    """Texts of distributions by name."""
    return type(value) is dict and all(map(is_text, value.values()))


def is_params(value: Any) -> bool:
    """Finite numbers by name."""
    return type(value) is dict and all(map(is_number, value.values()))


def is_steps(value: Any) -> bool:
    """Numbers by step."""
    return type(value) is dict and all(
        key.isascii() and key.isdigit() and len(key) < 19 and is_float(each) for key, each in value.items()
    )
