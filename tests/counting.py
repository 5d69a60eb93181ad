"""How many mixes were really fused, and so not found in the cache."""

from __future__ import annotations

from typing import Any

import pytest

from mixopt.scoring.engine import Engine


def count_fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list of one number that grows with every mix written into a model."""
    calls = [0]
    real = Engine.fuse

    def counting(self: Engine, *arguments: Any) -> Any:
        calls[0] += 1
        return real(self, *arguments)

    monkeypatch.setattr(Engine, "fuse", counting)
    return calls
