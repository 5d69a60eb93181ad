from __future__ import annotations

import math

import numpy as np
import pytest

from mixopt.study.folds import make_folds
from mixopt.study.judging import Judge, misjudged_by
from mixopt.values.metrics import METRICS
from mixopt.values.samples import SYNTHETIC, VALIDATION
from tests.study.drawn import OPTIMUM, ORIGIN, SPACE, Drawn, scattered

SIZES = {VALIDATION: 60, SYNTHETIC: 60, "extra": 45}


def coefficients_of(*points: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.stack([SPACE.to_mix(np.asarray(point)).coefficients for point in points])


@pytest.mark.parametrize("signal", ["accuracy", "nll", "f1_macro"])
@pytest.mark.parametrize("first", [0, 20])
def test_gains_are_paired_and_weighted(signal: str, first: int) -> None:
    """A sample and its shifted image are one."""
    drawn, metric = Drawn(OPTIMUM, SIZES, signal), METRICS[signal]
    folds = make_folds(drawn.every_label, first)
    judge = Judge(drawn.landscape(scattered(8)), folds)
    theirs, ours = (
        {name: drawn.outcomes(SPACE.to_mix(point), name, SIZES[name]).at(at) for name, at in folds.judging.items()}
        for point in (ORIGIN, OPTIMUM)
    )
    gain, error = judge.gain(ours, theirs)
    each = {
        name: metric.sign
        * (
            metric.per_sample(drawn.labels(name)[at], ours[name])
            - metric.per_sample(drawn.labels(name)[at], theirs[name])
        )
        / 3
        for name, at in folds.judging.items()
    }
    pairs = each[VALIDATION] + each[SYNTHETIC]
    assert gain == pytest.approx(pairs.mean() + each["extra"].mean())
    assert error == pytest.approx(math.sqrt(pairs.var(ddof=1) / (60 - first) + each["extra"].var(ddof=1) / 45))
    assert judge.gain(theirs, theirs) == (0, 0)


def test_each_sample_is_judged_by_the_mix_of_its_own_fold() -> None:
    drawn = Drawn(OPTIMUM, SIZES)
    landscape, folds = drawn.landscape(scattered(12)), make_folds(drawn.every_label, 10)
    judge = Judge(landscape, folds)
    by_fold = [coefficients_of(number / 10 * OPTIMUM, -number / 10 * OPTIMUM) for number in range(5)]
    first, second = judge.outcomes(by_fold)
    for number, fold in enumerate(folds.judges):
        for found, mix in ((first, by_fold[number][0]), (second, by_fold[number][1])):
            (whole,) = landscape.outcomes(mix[None])
            for name, samples in fold.items():
                places = np.searchsorted(folds.judging[name], samples)
                assert found[name].losses[places] == pytest.approx(whole[name].losses[samples], abs=1e-6)


def test_a_mix_far_from_all_scored_is_predicted_less_surely() -> None:
    drawn = Drawn(OPTIMUM)
    judge = Judge(drawn.landscape(scattered(7, 0.3)), make_folds(drawn.every_label))
    errors = judge.predicting([coefficients_of(ORIGIN, 0.5 * OPTIMUM, 2 * OPTIMUM)] * 5)
    assert errors[0] < errors[1] < errors[2]


def test_how_far_off_predictions_are_is_what_left_out_mixes_say() -> None:
    """So many standard errors as there are, of mixes that it never saw: about one, root mean square."""
    drawn, others = Drawn(OPTIMUM, {VALIDATION: 300}), scattered(30, seed=9)[1:]
    landscape = drawn.landscape(scattered(11))
    judge = Judge(landscape, make_folds(drawn.every_label))
    unsure = judge.predicting([coefficients_of(*others)] * 5)
    real = np.array([drawn.score(SPACE.to_mix(point)).value for point in others])
    said = np.array([each[VALIDATION].losses.mean() for each in landscape.outcomes(coefficients_of(*others))])
    assert 0.3 < math.sqrt(np.mean(((said - real) / unsure) ** 2)) < 3
    assert misjudged_by(landscape) > 0
