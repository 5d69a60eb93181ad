"""Kept logits: shapes that fit together, what they hold, and the laws of cutting and joining."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mixopt.values.kept_logits import ALL_UP_TO, FEW, LEAST, KeptLogits, sum_tolerance
from tests.values.kept import make_kept, same


@pytest.mark.parametrize("class_count", [1, 2, ALL_UP_TO, ALL_UP_TO + 1, 1000])
def test_what_is_kept_sums_to_one(class_count: int) -> None:
    kept = make_kept(200, class_count)
    kept.check()
    assert kept.values.shape == (200, class_count if class_count <= ALL_UP_TO else FEW)
    rest = 0 if kept.rest is None else np.exp(kept.rest)
    assert np.abs(np.exp(kept.values).sum(axis=1) + rest - 1).max() <= sum_tolerance(class_count)


@pytest.mark.parametrize("class_count", [5, 50])
def test_parts_joined_are_the_whole(class_count: int) -> None:
    kept = make_kept(12, class_count)
    for place in (0, 1, 7, 12):
        first, rest = kept.first(place), kept.at(slice(place, None))
        assert (len(first), len(rest)) == (place, 12 - place)
        assert same(first.then(rest), kept)
    order = np.random.default_rng(0).permutation(12)
    assert same(kept.at(order).at(np.argsort(order)), kept)
    assert np.array_equal(kept.at(order).values, kept.values[order])


def test_logits_of_other_classes_are_not_joined() -> None:
    with pytest.raises(ValueError, match="logits of 5 classes, and then of 4"):
        make_kept().then(make_kept(class_count=4))


MANY = make_kept(class_count=50)
assert MANY.classes is not None
assert MANY.rest is not None
MISFITS: dict[str, Callable[[], KeptLogits]] = {
    "no classes": lambda: replace(make_kept(), values=np.zeros((12, 0), np.float32), class_count=0),
    "fewer": lambda: replace(make_kept(), class_count=4),
    "one axis": lambda: replace(make_kept(), values=np.zeros(12, np.float32)),
    "classes that are not named": lambda: replace(MANY, classes=None),
    "no rest": lambda: replace(MANY, rest=None),
    "a rest of nothing": lambda: replace(make_kept(), rest=np.zeros(12, np.float32)),
    "classes of others": lambda: replace(MANY, classes=np.zeros((11, FEW), np.int64)),
    "a rest of others": lambda: replace(MANY, rest=np.zeros(11, np.float32)),
}
WRONG: dict[str, tuple[KeptLogits, str]] = {
    "nan": (replace(make_kept(), values=np.full((12, 5), np.nan, np.float32)), "no log-probabilities"),
    "infinite": (replace(make_kept(), values=np.full((12, 5), -np.inf, np.float32)), "no log-probabilities"),
    "above 0": (replace(make_kept(), values=np.full((12, 5), np.inf, np.float32)), "no log-probabilities"),
    "rest above 0": (replace(MANY, rest=np.full(12, 1, np.float32)), "no log-probabilities"),
    "class beyond": (replace(MANY, classes=MANY.classes + 34 + 16), "not the model's"),
    "class below": (replace(MANY, classes=MANY.classes - 50), "not the model's"),
    "twice": (replace(MANY, classes=np.zeros_like(MANY.classes)), "not the model's"),
    "sum": (replace(make_kept(), values=np.full((12, 5), LEAST, np.float32)), "do not sum to 1"),
    "sum with rest": (replace(MANY, rest=np.zeros(12, np.float32)), "do not sum to 1"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_shapes_that_do_not_fit_together(case: str) -> None:
    with pytest.raises(ValueError, match=r"^logits "):
        MISFITS[case]()


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_log_probabilities_of_the_models_classes(case: str) -> None:
    kept, why = WRONG[case]
    with pytest.raises(ValueError, match=why):
        kept.check()
