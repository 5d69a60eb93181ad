from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.scoring.outcomes import Outcomes
from mixopt.values.metrics import METRICS, Labels, Losses, Metric, smoothed

Samples = tuple[Labels, Labels, Losses]


@st.composite
def samples(draw: st.DrawFn) -> Samples:
    labels = draw(st.lists(st.integers(0, 4), min_size=1, max_size=40))
    predicted = draw(st.lists(st.integers(0, 5), min_size=len(labels), max_size=len(labels)))
    losses = draw(st.lists(st.floats(0, 50), min_size=len(labels), max_size=len(labels)))
    return np.array(labels, np.int64), np.array(predicted, np.int64), np.array(losses, np.float64)


def test_the_names_are_the_keys() -> None:
    assert {name: metric.name for name, metric in METRICS.items()} == {name: name for name in METRICS}
    assert list(METRICS) == ["accuracy", "nll", "balanced_accuracy"]


@given(samples())
def test_values_are_those_of_plain_counting(found: Samples) -> None:
    labels, predicted, losses = (values.tolist() for values in found)
    hits = [label == guess for label, guess in zip(labels, predicted, strict=True)]
    recalls = []
    for label in set(labels):
        of_class = [hit for hit, own in zip(hits, labels, strict=True) if own == label]
        recalls.append(sum(of_class) / len(of_class))
    assert METRICS["accuracy"].value(*found) == pytest.approx(sum(hits) / len(hits))
    assert METRICS["balanced_accuracy"].value(*found) == pytest.approx(sum(recalls) / len(recalls))
    assert METRICS["nll"].value(*found) == pytest.approx(sum(losses) / len(losses))


@given(samples(), st.integers(0, 1000))
def test_the_order_of_samples_does_not_matter(found: Samples, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(found[0]))
    shuffled = (found[0][order], found[1][order], found[2][order])
    for metric in METRICS.values():
        assert metric.value(*shuffled) == pytest.approx(metric.value(*found))


def test_a_class_counts_the_same_however_large() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    predicted = np.array([0, 0, 0, 0, 0, 0, 1, 0])
    losses = np.zeros(8)
    assert METRICS["accuracy"].value(labels, predicted, losses) == 7 / 8
    assert METRICS["balanced_accuracy"].value(labels, predicted, losses) == 3 / 4


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
    labels = np.array([0, 1, 2, 1])
    perfect = metric.value(labels, labels, np.full(4, 1e-3))
    useless = metric.value(labels, (labels + 1) % 3, np.full(4, 5.0))
    assert metric.better(perfect, useless)


@given(st.sampled_from(sorted(METRICS)), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_better_is_the_strict_part_of_at_least(name: str, one: float, other: float) -> None:
    metric = METRICS[name]
    assert metric.better(one, other) == (not metric.at_least(other, one))


@given(samples(), samples())
def test_gains_are_how_much_better_sample_by_sample(found: Samples, other: Samples) -> None:
    count = min(len(found[0]), len(other[0]))
    labels = found[0][:count]
    ours, theirs = (Outcomes(each[1][:count], each[2][:count]) for each in (found, other))
    for metric in [*METRICS.values(), *(smoothed(metric) for metric in METRICS.values())]:
        gains = metric.gains(labels, ours, theirs)
        assert gains.shape == (count,)
        better = metric.of(labels, ours) - metric.of(labels, theirs)
        assert metric.sign * better == pytest.approx(gains.mean(), abs=1e-9)


@given(samples())
def test_smoothed_is_the_metric_less_the_loss(found: Samples) -> None:
    loss = METRICS["nll"].value(*found)
    assert smoothed(METRICS["accuracy"]).value(*found) == pytest.approx(METRICS["accuracy"].value(*found) - loss)
    assert smoothed(METRICS["nll"]) is METRICS["nll"]
