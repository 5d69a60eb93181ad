"""Outcomes: cut and joined, with what was kept of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mixopt.scoring.outcomes import NO_OUTCOMES, PER_SAMPLE, Outcomes
from tests.values.kept import make_kept, same


def make_outcomes(count: int = 12, classes: int = 5) -> Outcomes:
    random = np.random.default_rng(0)
    predicted = random.integers(0, classes, count)
    return Outcomes(predicted, random.random(count), {}, predicted, random.random(count), make_kept(count, classes))


def are_same(first: Outcomes, second: Outcomes) -> bool:
    assert first.logits is not None
    assert second.logits is not None
    arrays = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in PER_SAMPLE)
    return arrays and same(first.logits, second.logits)


@pytest.mark.parametrize("classes", [5, 50])
def test_parts_joined_are_the_whole(classes: int) -> None:
    whole = make_outcomes(12, classes)
    for place in (1, 7, 12):
        assert are_same(whole.first(place).then(whole.rest(place)), whole)
    assert are_same(NO_OUTCOMES.then(whole), whole)
    order = np.random.default_rng(1).permutation(12)
    assert are_same(whole.at(order).at(np.argsort(order)), whole)


def test_logits_of_one_part_alone_are_no_logits_of_both() -> None:
    whole = make_outcomes()
    assert replace(whole.first(7), logits=None).then(whole.rest(7)).logits is None
    assert whole.first(7).then(replace(whole.rest(7), logits=None)).logits is None
    assert whole.first(7).then(make_outcomes(12, 4).rest(7)).logits is None, "of other classes"
