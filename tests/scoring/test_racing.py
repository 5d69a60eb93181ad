"""Racing: bad mixes are given up soon, good ones hardly ever."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mixopt.scoring.racing import FEWEST, looks, out_of_reach

TOTAL = 4000


def gains(worse: float, differing: float, seed: int, total: int = TOTAL) -> NDArray[np.float64]:
    """Hits gained and lost: a share ``differing`` of samples differ, and the mean is ``-worse``."""
    share = np.array([(differing + worse) / 2, 1 - differing, (differing - worse) / 2])
    return np.asarray(np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], total, p=share))


def seen(drawn: NDArray[np.float64]) -> int:
    """Samples that a race sees of it."""
    return next((count for count in looks(len(drawn)) if out_of_reach(drawn[:count], len(drawn))), len(drawn))


@pytest.mark.parametrize("total", [1, 150, 999, 4000, 26_000])
def test_looks_end_with_all_samples(total: int) -> None:
    found = looks(total)
    assert found[-1] == total
    assert found == sorted(set(found))
    assert len(found) <= 10
    assert all(count >= FEWEST for count in found[:-1])


def test_a_mix_that_would_have_won_is_hardly_ever_given_up() -> None:
    lost = won = 0
    for seed in range(3000):
        drawn = gains(0.0, 0.06, seed)
        if drawn.sum() > 0:
            won += 1
            lost += seen(drawn) < TOTAL
    assert won > 1000
    assert lost / won < 0.01


def test_the_worse_the_sooner() -> None:
    mean = [np.mean([seen(gains(worse, 0.08, seed)) for seed in range(100)]) for worse in (0.0, 0.01, 0.02, 0.05)]
    assert mean[0] > 0.9 * TOTAL
    assert mean == sorted(mean, reverse=True)
    assert mean[2] < 0.5 * TOTAL
    assert mean[3] < 0.15 * TOTAL


def test_a_loss_that_every_sample_bears_is_seen_at_once() -> None:
    assert out_of_reach(np.full(FEWEST, -0.01), TOTAL)
    assert not out_of_reach(np.full(FEWEST, 0.01), TOTAL)


@pytest.mark.parametrize("drawn", [np.zeros(FEWEST), np.array([-1.0] + [0.0] * (FEWEST - 1)), np.full(TOTAL, -1.0)])
def test_no_difference_a_single_one_and_the_end_are_no_reason(drawn: NDArray[np.float64]) -> None:
    assert not out_of_reach(drawn, TOTAL)


def test_losses_that_are_not_finite_are_no_reason() -> None:
    assert not out_of_reach(np.array([-np.inf] * FEWEST), TOTAL)
