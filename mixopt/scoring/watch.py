"""Who is told while an objective works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Watch:
    """Who is told while an objective works.

    Attributes:
        on_score: Told the content key of every mix scored on the validation split.
        on_batch: Told how many samples each batch held.
    """

    on_score: Callable[[str], None] | None = None
    on_batch: Callable[[int], None] | None = None
