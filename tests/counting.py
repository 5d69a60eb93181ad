"""How many mixes were really fused, and so not found in the cache."""

from __future__ import annotations

from typing import Any

import pytest

from mixopt.scoring.scorer import Scorer


def count_fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list of one number that grows with every mix written into a model."""
    calls = [0]
    real = Scorer.fuse

    def counting(self: Scorer, *arguments: Any) -> Any:
        calls[0] += 1
        return real(self, *arguments)

    monkeypatch.setattr(Scorer, "fuse", counting)
    return calls
