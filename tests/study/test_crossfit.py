"""The last choice: it finds what there is to gain, and leaves the start where there is nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mixopt.study import crossfit
from mixopt.study.climbing import Region, descend
from mixopt.study.crossfit import CrossFit, Judged, Procedure, cross_fit, expected_gain, regions_of, threshold
from mixopt.study.folds import Folds, make_folds
from mixopt.study.landscape import Landscape
from mixopt.values.metrics import METRICS, smoothed
from mixopt.values.mix import Mix
from mixopt.values.samples import SYNTHETIC, VALIDATION
from tests.study.drawn import OPTIMUM, ORIGIN, SPACE, Drawn, Floats, scattered

HALF = 0.7
# Seeds whose samples promise more than others' where nothing is to gain.
LUCKY = (17, 18, 25, 48)
UNIFORM = SPACE.to_mix(ORIGIN).coefficients


def fitted(drawn: Drawn, landscape: Landscape, judges_from: int = 0, *, evaluations: int = 60) -> CrossFit:
    """What cross-fitting chooses on a landscape of what was drawn."""
    return cross_fit(
        landscape,
        regions_of(SPACE, HALF),
        {name: drawn.outcomes(SPACE.to_mix(ORIGIN), name, size) for name, size in drawn.sizes.items()},
        folds_of(drawn, judges_from),
        seed=0,
        evaluations=evaluations,
    )


def folds_of(drawn: Drawn, judges_from: int = 0) -> Folds:
    return make_folds(drawn.every_label, judges_from)


def loss_on_others(mix: Mix, optimum: Floats = OPTIMUM) -> float:
    """What a mix gains over the start in nats, on 12,000 other samples: another draw of slopes and labels."""
    found = []
    for seed in range(3):
        other = Drawn(optimum, {VALIDATION: 4_000}, seed=seed + 100)
        found.append(other.score(SPACE.to_mix(ORIGIN)).value - other.score(mix).value)
    return float(np.mean(found))


def is_start(mix: Mix) -> bool:
    return np.array_equal(mix.coefficients, SPACE.to_mix(ORIGIN).coefficients)


@pytest.mark.parametrize("signal", ["nll", "accuracy", "accuracy with nll", "f1_macro", "worst_class_recall"])
def test_what_there_is_to_gain_is_found(signal: str) -> None:
    metric = smoothed(METRICS["accuracy"]) if signal == "accuracy with nll" else METRICS[signal]
    drawn = Drawn(2 * OPTIMUM)
    landscape = drawn.landscape(scattered(20), metric)
    found = fitted(drawn, landscape)
    assert found.procedure is not None
    assert 0 < found.share <= 1
    assert found.gain > threshold(2) * found.error > 0
    # Of all gain that there is, most; in nats, whatever was asked for.
    assert loss_on_others(found.mix, 2 * OPTIMUM) > 0.6 * loss_on_others(SPACE.to_mix(2 * OPTIMUM), 2 * OPTIMUM)
    # The table has every way to choose, once.
    assert len({each.procedure for each in found.table}) == len(found.table) == 8
    # What samples are predicted to get is near to what they get, each from a mix of its fold close to the chosen one.
    real = drawn.outcomes(found.mix, VALIDATION, drawn.sizes[VALIDATION])
    assert metric.of(drawn.labels(), found.outcomes[VALIDATION]) == pytest.approx(
        metric.of(drawn.labels(), real), abs=0.06
    )


def test_the_mix_is_near_the_optimum() -> None:
    drawn = Drawn(OPTIMUM, {VALIDATION: 3_000})
    found = fitted(drawn, drawn.landscape(scattered(20)), evaluations=0)
    wanted = SPACE.to_mix(OPTIMUM).coefficients
    far = np.linalg.norm(found.mix.coefficients - wanted) / np.linalg.norm(wanted - UNIFORM)
    assert far < 0.25
    assert found.share > 0.9


@pytest.mark.parametrize("signal", ["nll", "accuracy", "worst_class_recall"])
def test_where_nothing_is_to_gain_the_start_stays(signal: str) -> None:
    for seed in range(4):
        drawn = Drawn(ORIGIN, signal=signal, seed=seed)
        found = fitted(drawn, drawn.landscape(scattered(14, seed=seed)), evaluations=0)
        assert is_start(found.mix)
        assert found.share == 0
        assert all(each.gain <= 0 or each.sureness < threshold(2) for each in found.table)
        nearest = max(found.table, key=lambda each: each.sureness)
        assert (found.procedure, found.gain, found.error) == (nearest.procedure, nearest.gain, nearest.error)
        assert np.array_equal(found.outcomes[VALIDATION].losses, drawn.outcomes(found.mix, VALIDATION, 400).losses)


def test_a_gain_of_one_standard_error_is_none() -> None:
    """Of some searches with nothing to gain, those in which luck promises most."""
    surest = []
    for seed in LUCKY:
        drawn = Drawn(ORIGIN, {VALIDATION: 200}, seed=seed)
        found = fitted(drawn, drawn.landscape(scattered(14, seed=seed)), evaluations=0)
        assert is_start(found.mix)
        surest.append(max(each.sureness for each in found.table))
    assert min(surest) > 1


def test_the_evidence_carries_as_much_as_it_is_sure() -> None:
    def judged(gain: float, sampling: float, predicting: float) -> Judged:
        return Judged(Procedure("all", 1.0), gain, sampling, predicting)

    assert judged(0.05, 0.03, 0.04).error == pytest.approx(0.05)
    assert judged(0.05, 0.03, 0.04).share == pytest.approx(0)
    assert judged(0.10, 0.03, 0.04).share == pytest.approx(0.75)
    assert judged(-0.10, 0.03, 0.04).share == 0
    assert judged(0.10, 0.0, 0.0).share == 1
    assert judged(0.10, 0.0, 0.0).sureness == math.inf
    assert judged(0.0, 0.0, 0.0).share == 0
    assert judged(0.10, 0.1, math.inf).share == 0


@pytest.mark.parametrize("sizes", [{VALIDATION: 9}, {VALIDATION: 30}])
def test_too_few_that_judge_choose_nothing(sizes: dict[str, int]) -> None:
    drawn = Drawn(OPTIMUM, sizes)
    found = fitted(drawn, drawn.landscape(scattered(10)), judges_from=sizes[VALIDATION] - 9)
    assert is_start(found.mix)
    assert (found.procedure, found.share, found.table) == (None, 0.0, ())
    assert math.isnan(found.gain)
    assert math.isnan(found.error)
    assert len(found.outcomes[VALIDATION].losses) == 9


def test_samples_before_the_first_that_judges_steer_alone() -> None:
    """Those of the first half were drawn at the start: by them nothing is gained, and they say nothing of a gain."""
    drawn = Drawn(2 * OPTIMUM, {VALIDATION: 800})
    start = drawn.logits(SPACE.to_mix(ORIGIN))
    drawn.labels()[:400] = start.argmax(axis=1)[:400]
    landscape = drawn.landscape(scattered(16))
    all_judge, half = (fitted(drawn, landscape, first, evaluations=0) for first in (0, 400))
    assert len(half.outcomes[VALIDATION].losses) == 400
    assert len(all_judge.outcomes[VALIDATION].losses) == 800
    gains = {each.procedure: each.gain for each in half.table}
    assert all(gains[each.procedure] > each.gain for each in all_judge.table)


def test_splits_count_by_their_weights_and_shifted_images_with_their_own() -> None:
    sizes = {VALIDATION: 200, SYNTHETIC: 200, "extra": 100}
    drawn = Drawn(2 * OPTIMUM, sizes)
    found = fitted(drawn, drawn.landscape(scattered(14)), evaluations=0)
    assert not is_start(found.mix)
    assert {name: len(each.losses) for name, each in found.outcomes.items()} == sizes
    alone = Drawn(2 * OPTIMUM, {VALIDATION: 200})
    assert np.array_equal(alone.labels(), drawn.labels())
    one = fitted(alone, alone.landscape(scattered(14)), evaluations=0)
    assert one.error > found.error


def test_it_may_go_towards_the_uniform_soup() -> None:
    """From a start that is as far from the optimum as it can be, the soup in its direction lies on the way."""
    drawn = Drawn(OPTIMUM, {VALIDATION: 300})
    soup = SPACE.to_mix(OPTIMUM).coefficients
    reference = {VALIDATION: drawn.outcomes(SPACE.to_mix(ORIGIN), VALIDATION, 300)}
    landscape = drawn.landscape(scattered(16))
    regions = regions_of(SPACE, 0.05)
    found = cross_fit(landscape, regions, reference, folds_of(drawn), seed=0, evaluations=0, uniform=soup)
    without = cross_fit(landscape, regions, reference, folds_of(drawn), seed=0, evaluations=0)
    assert len(found.table) == 3 * len(without.table)
    assert found.procedure is not None
    assert found.procedure.towards == 0.5
    assert loss_on_others(found.mix) > loss_on_others(without.mix)


def test_the_same_seed_chooses_the_same_bits() -> None:
    drawn = Drawn(2 * OPTIMUM, signal="accuracy")
    first, second = (fitted(drawn, drawn.landscape(scattered(14))) for _ in range(2))
    assert np.array_equal(first.mix.coefficients, second.mix.coefficients)
    assert first.table == second.table


def test_a_gain_is_promised_where_there_is_one() -> None:
    drawn = Drawn(2 * OPTIMUM, {VALIDATION: 600})
    folds = folds_of(drawn)
    points = scattered(18)
    landscape = drawn.landscape(points)
    far = expected_gain(landscape, points[:1], HALF, folds)
    assert far.gain > 3 * far.error
    near = expected_gain(
        drawn.landscape(np.vstack([points, 2 * OPTIMUM])), np.vstack([points, 2 * OPTIMUM]), HALF, folds
    )
    assert near.gain < near.error
    # The further a descent may go, the more of it it finds.
    gains = [expected_gain(landscape, points[:1], half, folds).gain for half in (0.05, 0.2, HALF)]
    assert gains == sorted(gains)


def test_a_gain_that_the_loss_does_not_show_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    # A fifth of the labels are the classes that are least likely at the optimum: towards it accuracy gains, and the
    # loss does not.
    drawn = Drawn(3 * OPTIMUM, {VALIDATION: 3_000}, signal="accuracy")
    labels = drawn.labels()
    labels[::5] = drawn.logits(SPACE.to_mix(3 * OPTIMUM)).argmin(axis=1)[::5]
    points, folds = scattered(25), folds_of(drawn)
    least = descend(drawn.landscape(points), Region(ORIGIN, 1.0))
    points = np.vstack([points, least])
    landscape = drawn.landscape(points)
    promise = expected_gain(landscape, least[None], HALF, folds)
    monkeypatch.setattr(crossfit, "EVALUATIONS", 0)
    by_loss = expected_gain(landscape, least[None], HALF, folds)
    assert by_loss.gain <= by_loss.error
    assert promise.gain > promise.error


def test_nothing_is_promised_where_too_few_samples_judge() -> None:
    drawn, points = Drawn(OPTIMUM, {VALIDATION: 100}), scattered(10)
    promise = expected_gain(drawn.landscape(points), points[:1], HALF, folds_of(drawn, 91))
    assert math.isnan(promise.gain)
    assert math.isnan(promise.error)


def test_the_more_ways_to_choose_the_surer_a_step_must_be() -> None:
    assert threshold(1) == pytest.approx(math.sqrt(2 * math.log(4)))
    assert threshold(1) < threshold(2) < threshold(3)
