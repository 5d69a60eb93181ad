"""Where time goes: every second counted once, for the innermost work."""

from __future__ import annotations

import pytest

from mixopt.scoring.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set by hand."""
    now = [100.0]
    monkeypatch.setattr("mixopt.scoring.stopwatch.time.perf_counter", lambda: now[0])
    return now


def test_inner_work_is_not_counted_for_the_outer(clock: list[float]) -> None:
    watch = Stopwatch()
    with watch("optimizer"):
        clock[0] += 1
        with watch("storage"):
            clock[0] += 2
        clock[0] += 4
    clock[0] += 8
    with watch("storage"):
        clock[0] += 16
    assert watch.seconds == {"optimizer": 5, "storage": 18}
    assert watch.shares(40) == {"optimizer": 5, "storage": 18, "other": 17}


def test_work_that_fails_is_counted_too(clock: list[float]) -> None:
    watch = Stopwatch()

    def fail() -> None:
        with watch("open"):
            clock[0] += 3
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    with watch("fuse"):
        clock[0] += 1
    assert watch.seconds == {"open": 3, "fuse": 1}
