from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mixopt.study.folds import FOLDS, make_folds
from mixopt.surface.outputs import PredictedOutcomes
from mixopt.values.samples import SYNTHETIC, VALIDATION, stratified_order

SIZES = {VALIDATION: 23, SYNTHETIC: 23, "extra": 11}


def labels_of(sizes: dict[str, int], classes: int = 3) -> dict[str, NDArray[np.int64]]:
    return {name: np.random.default_rng(size).integers(classes, size=size) for name, size in sizes.items()}


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 70))
def test_every_sample_judges_once_and_steers_the_other_times(size: int, other: int, first: int) -> None:
    folds = make_folds(labels_of({VALIDATION: size, "extra": other}), first)
    assert len(folds.judges) == len(folds.steers) == FOLDS
    for name, count, begin in ((VALIDATION, size, min(first, size)), ("extra", other, 0)):
        judging = np.concatenate([fold[name] for fold in folds.judges])
        assert sorted(judging) == list(range(begin, count))
        assert folds.judging[name].tolist() == list(range(begin, count))
        for judges, steers in zip(folds.judges, folds.steers, strict=True):
            assert sorted([*judges[name], *steers[name]]) == list(range(count))


@pytest.mark.parametrize("first", [0, 400])
@pytest.mark.parametrize("counts", [[100] * 10, [90, 110, 100, 105, 95], [7, 300, 193]])
def test_folds_are_alike_in_classes(counts: list[int], first: int) -> None:
    """Also of classes of one size, which take turns in a split's fixed order."""
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = labels[stratified_order(labels)]
    folds = make_folds({VALIDATION: labels}, first)
    found = np.array([np.bincount(labels[fold[VALIDATION]], minlength=len(counts)) for fold in folds.judges])
    assert np.ptp(found, axis=0).max() <= 1
    assert np.ptp(found.sum(axis=1)) <= 1


@pytest.mark.parametrize("first", [0, 7])
def test_shifted_images_are_judged_with_those_that_they_were_made_from(first: int) -> None:
    folds = make_folds(labels_of(SIZES), first)
    for fold in (*folds.judges, *folds.steers):
        assert np.array_equal(fold[VALIDATION], fold[SYNTHETIC])
    assert folds.judging["extra"].tolist() == list(range(11))


def test_a_sample_is_taken_from_the_mix_of_its_own_fold() -> None:
    folds = make_folds(labels_of(SIZES), 4)
    every = [
        {
            name: PredictedOutcomes(np.full(size, number), number + np.arange(size) / 100, None, None)
            for name, size in SIZES.items()
        }
        for number in range(FOLDS)
    ]
    found = folds.joined(every)
    assert list(found) == list(SIZES)
    for name, outcomes in found.items():
        judging = folds.judging[name]
        own = np.array([next(n for n, fold in enumerate(folds.judges) if each in fold[name]) for each in judging])
        assert np.array_equal(outcomes.predicted, own)
        assert outcomes.losses == pytest.approx(own + judging / 100)
        assert outcomes.above is None
