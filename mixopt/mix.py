"""Where `mixopt.Mix` was in the first version: programs that import it from here go on working."""

from __future__ import annotations

from mixopt.values.mix import Mix

__all__ = ["Mix"]
