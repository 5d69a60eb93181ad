from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.surface import scored
from mixopt.surface.fitting import fit
from mixopt.surface.slopes import loss_and_slopes
from tests.surface.worlds import make_world


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([2, 5, 40]), st.booleans())
def test_slopes_are_those_of_the_predicted_loss(seed: int, classes: int, in_part: bool) -> None:
    world = make_world(25, samples=30, classes=classes, seed=seed)
    kept = [each.first(30 if not in_part or number % 3 == 0 else 12) for number, each in enumerate(world.kept)]
    surface = fit(world.coefficients, kept, world.labels)
    (at,) = world.more(1, seed + 1)
    shares = np.random.default_rng(seed).dirichlet(np.ones(30))
    loss, slopes = loss_and_slopes(surface, at, shares)
    (found,) = surface.outcomes(at[None])
    assert loss == pytest.approx(found.losses @ shares, abs=1e-5)
    way = np.random.default_rng(seed).normal(size=at.shape)
    high, low = (loss_and_slopes(surface, at + step * way, shares)[0] for step in (1e-3, -1e-3))
    assert np.sum(slopes * way) == pytest.approx((high - low) / 2e-3, rel=0.01, abs=5e-3)


def test_samples_that_count_nothing_have_no_part() -> None:
    world = make_world(25)
    surface = fit(world.coefficients, world.kept, world.labels)
    (at,) = world.more(1, 1)
    half = np.where(np.arange(60) < 30, 1 / 30, 0.0)
    (found,) = surface.outcomes(at[None])
    assert loss_and_slopes(surface, at, half)[0] == pytest.approx(found.losses[:30].mean(), abs=1e-5)
    loss, slopes = loss_and_slopes(surface, at, np.zeros(60))
    assert loss == 0
    assert not np.any(slopes)


def test_some_samples_at_a_time_sum_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(25)
    surface = fit(world.coefficients, world.kept, world.labels)
    (at,) = world.more(1, 1)
    whole = loss_and_slopes(surface, at, np.full(60, 1 / 60))
    monkeypatch.setattr(scored, "ON_CPU", 35)
    pieces = loss_and_slopes(surface, at, np.full(60, 1 / 60))
    assert pieces[0] == pytest.approx(whole[0], abs=1e-6)
    assert pieces[1] == pytest.approx(whole[1], abs=1e-5)
