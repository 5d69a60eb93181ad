"""Metrics: plain counting for those that are means, the laws of all of them; the others in test_counts.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.errors import SpecError
from mixopt.scoring.outcomes import Outcomes
from mixopt.values.metrics import (
    METRICS,
    Labels,
    Metric,
    check_metric,
    find_metric,
    measured,
    metric_named,
    smoothed,
)

Samples = tuple[Labels, Outcomes]
# All that there is of two classes.
TWO = {name: metric for name, metric in METRICS.items() if name != "top5"}


def outcomes_of(predicted: Labels, losses: list[float], seed: int = 0) -> Outcomes:
    """Outcomes with confidences and ranks at random."""
    random = np.random.default_rng(seed)
    above, confidence = random.integers(0, 9, len(predicted)), random.random(len(predicted)).astype(np.float32)
    return Outcomes(predicted, np.array(losses, np.float64), {}, above, confidence.astype(np.float64))


@st.composite
def samples(draw: st.DrawFn, classes: int = 4) -> Samples:
    labels = draw(st.lists(st.integers(0, classes), min_size=1, max_size=40))
    predicted = draw(st.lists(st.integers(0, classes + 1), min_size=len(labels), max_size=len(labels)))
    losses = draw(st.lists(st.floats(0, 50), min_size=len(labels), max_size=len(labels)))
    return np.array(labels, np.int64), outcomes_of(np.array(predicted, np.int64), losses)


def test_the_names_are_the_keys() -> None:
    assert {name: metric.name for name, metric in METRICS.items()} == {name: name for name in METRICS}
    assert list(METRICS) == [
        *("accuracy", "nll", "balanced_accuracy", "f1", "f1_macro", "matthews", "top5", "worst_class_recall", "ece")
    ]


@given(samples())
def test_values_are_those_of_plain_counting(found: Samples) -> None:
    labels, predicted, losses = found[0].tolist(), found[1].predicted.tolist(), found[1].losses.tolist()
    hits = [label == guess for label, guess in zip(labels, predicted, strict=True)]
    recalls = []
    for label in set(labels):
        of_class = [hit for hit, own in zip(hits, labels, strict=True) if own == label]
        recalls.append(sum(of_class) / len(of_class))
    assert METRICS["accuracy"].of(*found) == pytest.approx(sum(hits) / len(hits))
    assert METRICS["balanced_accuracy"].of(*found) == pytest.approx(sum(recalls) / len(recalls))
    assert METRICS["nll"].of(*found) == pytest.approx(sum(losses) / len(losses))
    assert METRICS["worst_class_recall"].of(*found) == pytest.approx(min(recalls))
    above = found[1].above
    assert above is not None
    assert metric_named("top3").of(*found) == pytest.approx(sum(each < 3 for each in above.tolist()) / len(labels))


@given(samples(), st.integers(0, 1000))
def test_the_order_of_samples_does_not_matter(found: Samples, seed: int) -> None:
    labels, outcomes = found
    order = np.random.default_rng(seed).permutation(len(labels))
    assert outcomes.above is not None
    assert outcomes.confidence is not None
    shuffled = Outcomes(
        outcomes.predicted[order], outcomes.losses[order], {}, outcomes.above[order], outcomes.confidence[order]
    )
    for metric in METRICS.values():
        assert metric.of(labels[order], shuffled) == pytest.approx(metric.of(*found), abs=1e-9)


def test_a_class_counts_the_same_however_large() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    outcomes = Outcomes(np.array([0, 0, 0, 0, 0, 0, 1, 0]), np.zeros(8))
    assert METRICS["accuracy"].of(labels, outcomes) == 7 / 8
    assert METRICS["balanced_accuracy"].of(labels, outcomes) == 3 / 4


@pytest.mark.parametrize(("name", "good", "bad"), [("accuracy", 0.9, 0.1), ("nll", 0.1, 0.9)])
def test_direction_decides_what_is_better(name: str, good: float, bad: float) -> None:
    metric = METRICS[name]
    assert metric.better(good, bad)
    assert not metric.better(bad, good)
    assert not metric.better(good, good)
    assert metric.at_least(good, good)
    assert metric.at_least(good, bad)
    assert not metric.at_least(bad, good)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_right_answer_is_better_than_a_wrong_one(metric: Metric) -> None:
    """Conformance: the declared direction agrees with the value on perfect and useless predictions."""
    labels = np.array([0, 1, 1, 0])
    first, last = np.zeros(4, np.int64), np.full(4, 9, np.int64)
    perfect = metric.of(labels, Outcomes(labels, np.full(4, 1e-3), {}, first, np.full(4, 0.99)))
    useless = metric.of(labels, Outcomes(1 - labels, np.full(4, 5.0), {}, last, np.full(4, 0.99)))
    assert metric.better(perfect, useless)
    low, high = metric.bounds
    assert low <= min(perfect, useless) < max(perfect, useless) <= high


@given(st.sampled_from(sorted(METRICS)), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_better_is_the_strict_part_of_at_least(name: str, one: float, other: float) -> None:
    metric = METRICS[name]
    assert metric.better(one, other) == (not metric.at_least(other, one))


@given(samples(), samples())
def test_gains_are_how_much_better_sample_by_sample(found: Samples, other: Samples) -> None:
    count = min(len(found[0]), len(other[0]))
    labels = found[0][:count]
    ours, theirs = (each[1].first(count) for each in (found, other))
    for metric in [*METRICS.values(), *(smoothed(metric) for metric in METRICS.values())]:
        gains = metric.gains(labels, ours, theirs)
        assert gains.shape == (count,)
        better = metric.of(labels, ours) - metric.of(labels, theirs)
        assert metric.sign * better == pytest.approx(gains.mean(), abs=1e-9)


@given(samples())
def test_smoothed_is_the_metric_less_the_loss(found: Samples) -> None:
    loss = METRICS["nll"].of(*found)
    for name, metric in METRICS.items():
        worse = loss if metric.direction == "maximize" else -loss
        if name != "nll":
            assert smoothed(metric).of(*found) == pytest.approx(metric.of(*found) - worse)
            assert smoothed(metric).needs == metric.needs
    assert smoothed(METRICS["nll"]) is METRICS["nll"]


def test_any_number_may_follow_top() -> None:
    assert metric_named("top5") is METRICS["top5"]
    assert metric_named("top12").needs == ("above",)
    for name in ("top", "top0", "top05", "top-1", "top1.5", "Top5", "top_5"):
        assert find_metric(name) is None
        assert metric_named(name).direction == "maximize", "a user's own number"


def test_metrics_that_are_not_for_a_split_are_left_out_or_refused() -> None:
    labels = np.array([0, 1, 2, 0])
    many = outcomes_of(labels, [0.0] * 4)
    assert measured(labels, many, None).keys() == METRICS.keys() - {"f1"}
    assert measured(labels, many, 3).keys() == METRICS.keys() - {"f1", "top5"}
    assert measured(labels, many, 7, metric_named("top3")).keys() == METRICS.keys() - {"f1"} | {"top3"}
    assert measured(np.array([0, 1]), many.first(2), 2).keys() == TWO.keys()
    assert "f1" not in measured(np.array([0, 1]), many.first(2), 7), "a split of two of seven classes"
    kept = Outcomes(many.predicted, many.losses)
    assert measured(labels, kept, 9).keys() == METRICS.keys() - {"f1", "top5", "ece"}, "all that such outcomes tell"
    with pytest.raises(SpecError, match=r"--metric f1: val\.npz: f1 is of two classes, .* there are 3: use f1_macro"):
        check_metric(METRICS["f1"], labels, None, "val.npz")
    with pytest.raises(SpecError, match=r"--metric top5: val\.npz: top5 is 1 .* 3 classes: use accuracy"):
        check_metric(METRICS["top5"], labels, 3, "val.npz")
    check_metric(METRICS["top5"], labels, None, "val.npz")
    check_metric(METRICS["f1"], np.array([0, 1]), None, "val.npz")
    with pytest.raises(ValueError, match="was not kept"):
        METRICS["ece"].of(labels, kept)
