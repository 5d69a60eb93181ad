"""Peak memory: of the block alone, as far as the system tells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixopt.memory import available_memory
from mixopt.weights import memory
from mixopt.weights.memory import free_memory, peak_memory

CPU = torch.device("cpu")
MEGABYTES = 400


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a block")
def test_the_peak_is_that_of_the_block() -> None:
    with peak_memory(CPU) as before:
        nothing = before()
    with peak_memory(CPU) as during:
        big = torch.ones(MEGABYTES, 1024, 256)
        del big
        large = during()
    with peak_memory(CPU) as after:
        small = after()
    assert nothing is not None
    assert large is not None
    assert small is not None
    assert large - nothing > 0.9 * MEGABYTES * 2**20
    assert small < large - 0.9 * MEGABYTES * 2**20, "what an earlier block took is not counted"


def test_a_system_that_does_not_tell_gives_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "absent" / "clear_refs")
    with peak_memory(CPU) as peak:
        assert peak() is None


def test_what_is_free_on_a_cpu_is_what_is_available() -> None:
    assert free_memory(CPU) == pytest.approx(available_memory(), rel=0.2)
