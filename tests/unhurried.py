"""What stands in for an objective where nothing is worked on ahead."""

from __future__ import annotations

from typing import Any


class Unhurried:
    """An objective without workers: what it is told to expect is computed when it is asked for."""

    ahead = 0

    def expect(self, *_: Any, **__: Any) -> None:
        """See `mixopt.Objective.expect`."""

    def forget(self) -> None:
        """See `mixopt.Objective.forget`."""
