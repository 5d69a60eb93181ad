"""Metrics of whole counts: against scikit-learn and torchmetrics, and what one sample adds against leaving it out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as peer
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from mixopt.scoring.logits import outcomes_of, told
from mixopt.scoring.outcomes import Outcomes
from mixopt.values import counts
from mixopt.values.counts import BINS, pseudo_values
from mixopt.values.metrics import METRICS, find_metric, measured

Labels = NDArray[np.int64]


def both(seed: int, count: int, classes: int, spread: float = 2.0) -> tuple[Labels, torch.Tensor, Outcomes]:
    """Labels, logits that favour them, and what is kept of those."""
    random = np.random.default_rng(seed)
    labels = random.choice(classes, count, p=random.dirichlet(np.ones(classes)))
    logits = random.normal(size=(count, classes)) * spread
    logits[np.arange(count), labels] += 1.5
    found = torch.from_numpy(logits).float()
    return labels, found, outcomes_of([told(found, torch.from_numpy(labels))])


SIZES = [(200, 2), (500, 4), (300, 30), (50, 100), (3, 2), (1, 2), (1, 5), (2, 3)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("count", "classes"), SIZES)
def test_values_are_scikit_learns(count: int, classes: int, seed: int) -> None:
    """Few samples of many classes: some are absent, and some never predicted."""
    labels, logits, outcomes = both(seed, count, classes)
    predicted = outcomes.predicted
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "f1_macro": reference.f1_score(labels, predicted, average="macro", zero_division=0),
        "nll": reference.log_loss(labels, logits.double().softmax(dim=1), labels=range(classes)),
        "worst_class_recall": min(
            reference.recall_score(labels, predicted, labels=np.unique(labels), average=None, zero_division=0)
        ),
    }
    with warnings.catch_warnings():  # of one class alone
        warnings.simplefilter("ignore")
        expected["matthews"] = reference.matthews_corrcoef(labels, predicted)
        expected["balanced_accuracy"] = reference.balanced_accuracy_score(labels, predicted)
    if classes == 2:
        expected["f1"] = reference.f1_score(labels, predicted, zero_division=0)
    for k in (1, 2, 5, 20) if classes > 2 else ():
        if k < classes:
            scores, every = logits.numpy(), range(classes)
            expected[f"top{k}"] = reference.top_k_accuracy_score(labels, scores, k=k, labels=every)
    for name, value in expected.items():
        metric = find_metric(name)
        assert metric is not None
        assert metric.of(labels, outcomes) == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("count", "classes"), SIZES)
def test_values_are_those_of_torchmetrics(count: int, classes: int, seed: int) -> None:
    labels, logits, outcomes = both(seed, count, classes)
    target, predicted = torch.from_numpy(labels), torch.from_numpy(outcomes.predicted)
    recalls = peer.multiclass_recall(predicted, target, classes, average="none")
    expected = {
        "ece": peer.multiclass_calibration_error(logits.softmax(dim=1), target, classes, n_bins=BINS, norm="l1"),
        "f1_macro": peer.multiclass_f1_score(predicted, target, classes, average="macro"),
        "worst_class_recall": recalls[np.unique(labels)].min(),
    }
    if classes > 5:
        expected["top5"] = peer.multiclass_accuracy(logits, target, classes, average="micro", top_k=5)
    if classes == 2:
        expected["f1"] = peer.binary_f1_score(predicted, target)
    if count > 10:  # of a few samples of one class it has other conventions
        expected["matthews"] = peer.multiclass_matthews_corrcoef(predicted, target, classes)
    for name, value in expected.items():
        assert METRICS[name].of(labels, outcomes) == pytest.approx(float(value), abs=1e-5), name


def test_of_equal_logits_the_lower_class_comes_first() -> None:
    """As in the prediction: what is predicted comes before all others, and top1 is accuracy."""
    logits = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 2.0, 2.0, 2.0], [3.0, 3.0, 3.0, 3.0]])
    for label in range(4):
        labels = np.full(3, label)
        outcomes = outcomes_of([told(logits, torch.from_numpy(labels))])
        assert outcomes.above is not None
        assert ((outcomes.above == 0) == (outcomes.predicted == labels)).all()
        flipped = logits.flip(1).numpy()  # scikit-learn takes the higher class first
        for k in (1, 2, 3):
            metric = find_metric(f"top{k}")
            assert metric is not None
            expected = reference.top_k_accuracy_score(3 - labels, flipped, k=k, labels=range(4))
            assert metric.of(labels, outcomes) == pytest.approx(expected)


def test_confidence_of_one_stands_in_the_last_bin() -> None:
    """And of an end between two bins in the lower one, as in Guo et al.; far logits round to a confidence of 1."""
    labels = np.array([0, 0, 0, 1])
    outcomes = outcomes_of([told(torch.tensor([[200.0, 0.0]] * 4), torch.from_numpy(labels))])
    assert outcomes.confidence is not None
    assert outcomes.confidence.tolist() == [1.0] * 4
    assert METRICS["ece"].of(labels, outcomes) == pytest.approx(0.25)
    hits, confidence = np.array([True, False, True]), np.array([0.97, 1.0, 0.2])
    same, other = abs(1 - 0.97 + 0 - 1.0), abs(1 - 0.2)
    assert counts.calibration_error(hits, confidence)[0] == pytest.approx((same + other) / 3)
    assert counts.calibration_error(hits, np.array([0.0, 0.0, 0.0]))[0] == pytest.approx(2 / 3)


COUNTED: dict[str, Callable[[Labels, Labels], counts.LeftOut]] = {
    "f1": counts.f1,
    "f1_macro": counts.f1_macro,
    "matthews": counts.matthews,
    "worst_class_recall": counts.worst_class_recall,
}


@pytest.mark.parametrize("name", [*COUNTED, "ece"])
@given(st.data(), st.integers(1, 6), st.integers(2, 14))
def test_leaving_one_out_is_counting_without_it(name: str, data: st.DataObject, classes: int, count: int) -> None:
    labels, predicted = (
        np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))) for _ in "ab"
    )
    confidence = np.array(data.draw(st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count)))

    def count_of(rest: NDArray[np.int64]) -> counts.LeftOut:
        if name == "ece":
            return counts.calibration_error(labels[rest] == predicted[rest], confidence[rest])
        return COUNTED[name](labels[rest], predicted[rest])

    every = np.arange(count)
    value, without = count_of(every)
    expected = [count_of(np.delete(every, place))[0] for place in every]
    assert without == pytest.approx(np.array(expected), abs=1e-9)
    added = pseudo_values((value, without))
    assert added.mean() == pytest.approx(value, abs=1e-9)
    # The jackknife's variance is that of plain pseudo-values.
    assert added.std() == pytest.approx(((count - 1) * without).std(), abs=1e-9)


@pytest.mark.parametrize("name", [*COUNTED, "ece"])
def test_standard_errors_are_those_of_fresh_samples(name: str) -> None:
    """The spread of the metric over many draws, against the mean of the jackknife's estimates of it."""
    random = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(400):
        labels = random.choice(2, 400, p=[0.7, 0.3])
        predicted = np.where(random.random(400) < np.where(labels == 1, 0.6, 0.85), labels, 1 - labels)
        outcomes = Outcomes(predicted, np.zeros(400), {}, None, 0.5 + 0.2 * random.random(400))
        values.append(METRICS[name].of(labels, outcomes))
        errors.append(METRICS[name].per_sample(labels, outcomes).std(ddof=1) / 20)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_one_sample_and_one_class() -> None:
    one = np.zeros(1, np.int64)
    for predicted, right in ((one, True), (one + 1, False)):
        outcomes = Outcomes(predicted, np.zeros(1), {}, predicted, np.array([0.75]))
        found = measured(one, outcomes, None)
        assert found["worst_class_recall"] == found["f1_macro"] == float(right)
        assert found["matthews"] == found["f1"] == 0
        assert found["ece"] == pytest.approx(0.25 if right else 0.75)
        for metric in METRICS.values():
            assert metric.per_sample(one, outcomes).tolist() == [pytest.approx(metric.of(one, outcomes))]
    same = np.zeros(5, np.int64)
    for metric in METRICS.values():
        assert np.isfinite(metric.per_sample(same, Outcomes(same, np.zeros(5), {}, same, np.ones(5)))).all()


def test_many_samples_of_many_classes_take_milliseconds() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 1000, 50_000)
    predicted = np.where(random.random(50_000) < 0.8, labels, random.integers(0, 1000, 50_000))
    outcomes = Outcomes(predicted, np.zeros(50_000), {}, predicted % 9, random.random(50_000))
    for metric in METRICS.values():
        spent = []
        for _ in range(3):
            started = time.process_time()
            metric.per_sample(labels, outcomes)
            spent.append(time.process_time() - started)
        assert min(spent) < 0.05, metric.name
