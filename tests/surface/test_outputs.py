from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mixopt.surface import outputs as module
from mixopt.surface.outputs import COLUMNS, Columns, columns_of, joined, numbers_of, outputs_of, separated
from mixopt.values.kept_logits import KeptLogits
from mixopt.values.metrics import METRICS, Metric, metric_named
from tests.surface.worlds import Floats, Labels, exact, kept_of, make_world, seen

MANY = 60


def made(count: int, classes: int, seed: int, samples: int = 40) -> tuple[Floats, Labels]:
    """Logits ``[count, samples, classes]`` of models that are much alike, and labels."""
    random = np.random.default_rng(seed)
    common = 3 * random.normal(size=(samples, classes))
    return common + random.normal(size=(count, samples, classes)), random.integers(0, classes, samples)


def chances(logits: Floats) -> Floats:
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def test_all_classes_have_a_column_where_there_are_few() -> None:
    (logits,), labels = made(1, 5, 0)
    columns = columns_of([exact(logits)], labels)
    assert columns.classes is None
    assert columns.count == 5
    assert len(columns) == 40
    assert np.array_equal(columns.own, labels)
    assert outputs_of(exact(logits), columns) == pytest.approx(logits - logits.mean(axis=1, keepdims=True), abs=1e-5)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(33, 60), st.integers(1, 20))
def test_of_many_classes_the_first_few_of_any_mix_and_the_right_one_have_columns(
    seed: int, classes: int, count: int
) -> None:
    logits, labels = made(count, classes, seed)
    columns = columns_of([kept_of(each, labels) for each in logits], labels)
    assert columns.classes is not None
    assert columns.count == COLUMNS + 1
    assert columns.classes.shape == (40, COLUMNS)
    assert np.all(np.diff(columns.classes, axis=1) > 0)
    assert np.all((columns.classes >= 0) & (columns.classes < classes))
    assert np.array_equal(columns.classes[np.arange(40), columns.own], labels)
    # Whatever any of the mixes put first is there.
    firsts = logits[: module.LOOKED_AT].argmax(axis=2)
    assert np.mean([np.isin(row, has).all() for row, has in zip(firsts.T, columns.classes, strict=True)]) > 0.9
    if count == 1:
        chosen = np.take_along_axis(chances(logits[0]), columns.classes, axis=1)
        chosen[np.arange(40), columns.own] = 0
        # To the rounding of float16.
        assert np.all(chosen.min(axis=1) >= np.sort(chances(logits[0]), axis=1)[:, -COLUMNS] - 0.02)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_every_column_has_the_chance_that_was_kept(seed: int) -> None:
    """Against all classes, one sample after another."""
    logits, labels = made(3, MANY, seed)
    kept = [kept_of(each, labels) for each in logits]
    columns = columns_of(kept, labels)
    assert columns.classes is not None
    for each, real in zip(kept, chances(logits), strict=True):
        found = outputs_of(each, columns)
        assert found.mean(axis=1) == pytest.approx(np.zeros(40), abs=1e-5)
        shares = chances(found.astype(np.float64))
        assert each.classes is not None
        for sample in range(40):
            named, own = columns.classes[sample], columns.own[sample]
            was_kept = np.isin(named, each.classes[sample])
            assert was_kept[own]
            assert shares[sample, :-1][was_kept] == pytest.approx(real[sample][named][was_kept], abs=0.02)
            # A class that was not kept is put below those that were for being large.
            large = was_kept & (np.arange(COLUMNS) != own)
            assert np.all(shares[sample, :-1][~was_kept] <= shares[sample, :-1][large].min(initial=0) + 0.02)
            # The rest is what is left.
            if np.all(was_kept):
                others = np.setdiff1d(np.arange(MANY), named)
                assert shares[sample, -1] == pytest.approx(np.logaddexp.reduce(real[sample][others]), abs=0.02)


def test_the_outputs_of_the_first_samples_are_the_first_outputs() -> None:
    for classes in (5, MANY):
        logits, labels = made(2, classes, 0)
        kept = [kept_of(each, labels) for each in logits]
        columns = columns_of(kept, labels)
        whole = outputs_of(kept[1], columns)
        assert np.array_equal(outputs_of(kept[1].first(7), columns), whole[:7])


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 5, 32]))
def test_numbers_are_those_of_the_evaluator(seed: int, classes: int) -> None:
    logits, labels = made(2, classes, seed)
    logits = np.round(logits)  # ties
    columns = Columns(None, labels, classes)
    outputs = torch.from_numpy(logits).float()
    found = separated(joined([numbers_of(outputs[:, :30], columns), numbers_of(outputs[:, 30:], columns, 30)]))
    for one, real in zip(found, (seen(each, labels) for each in logits), strict=True):
        assert np.array_equal(one.predicted, real.predicted)
        assert one.above is not None
        assert np.array_equal(one.above, real.above if real.above is not None else [])
        assert one.losses == pytest.approx(real.losses, abs=1e-5)
        assert one.confidence == pytest.approx(real.confidence, abs=1e-5)


@pytest.mark.parametrize(
    ("metric", "classes"),
    [
        pytest.param(metric, classes, id=f"{metric.name} of {classes}")
        for metric in (*METRICS.values(), metric_named("top2"))
        for classes in (2, 9, MANY)
        if not metric.why_not(np.arange(classes), classes)
    ],
)
def test_metrics_say_the_same_of_them(metric: Metric, classes: int) -> None:
    """Of outputs that were made from the logits that an evaluator saw, every metric is that evaluator's."""
    logits, labels = made(4, classes, 3, samples=300)
    kept = [kept_of(each, labels) if classes == MANY else exact(each) for each in logits]
    columns = columns_of(kept[:1], labels)
    outputs = torch.from_numpy(np.stack([outputs_of(each, columns) for each in kept]))
    for number, one in enumerate(separated(numbers_of(outputs, columns))):
        # Of many classes, those of another mix may have no column.
        off = 1e-5 if classes != MANY else (0.002 if number == 0 else 0.03)
        assert metric.of(labels, one) == pytest.approx(metric.of(labels, seen(logits[number], labels)), abs=off)


def test_what_is_not_asked_for_is_not_there() -> None:
    logits, labels = made(1, 5, 0)
    found = numbers_of(torch.from_numpy(logits).float(), Columns(None, labels, 5), needs=())
    assert found.above is None
    assert found.confidence is None
    assert METRICS["top5"].lacks(found)
    assert joined([found, found]).above is None


def test_some_samples_of_outcomes() -> None:
    logits, labels = made(1, 5, 0)
    (found,) = separated(numbers_of(torch.from_numpy(logits).float(), Columns(None, labels, 5)))
    places: NDArray[np.int64] = np.array([3, 1, 7])
    assert np.array_equal(found.at(places).losses, found.losses[places])
    assert np.array_equal(found.at(slice(4)).predicted, found.predicted[:4])


@given(st.integers(0, 10**6), st.sampled_from([4, MANY]))
def test_a_constant_of_every_sample_changes_nothing(seed: int, classes: int) -> None:
    logits, labels = made(1, classes, seed)
    moved = logits + 5 * np.random.default_rng(seed).normal(size=(1, 40, 1))
    kept, also = (kept_of(each[0], labels) for each in (logits, moved))
    columns = columns_of([kept], labels)
    # Half a step of float16 at most, where rounding falls the other way.
    assert outputs_of(kept, columns) == pytest.approx(outputs_of(also, columns_of([also], labels)), abs=0.02)


def test_classes_with_no_chance_at_all() -> None:
    """A split with fewer classes than the model: their log-probabilities are the least that there is."""
    world = make_world(3, classes=6)
    logits = world.logits.copy()
    logits[..., 4:] = -np.inf
    labels = world.labels % 4
    kept = [kept_of(each, labels) for each in logits]
    found = np.stack([outputs_of(each, columns_of(kept, labels)) for each in kept])
    assert np.all(np.isfinite(found))
    numbers = separated(numbers_of(torch.from_numpy(found), columns_of(kept, labels)))
    for one, each in zip(numbers, logits, strict=True):
        assert one.losses == pytest.approx(seen(each, labels).losses, abs=0.02)
        assert np.array_equal(one.predicted, seen(each, labels).predicted) or np.all(one.predicted < 4)


def test_a_mix_that_keeps_none_of_the_columns_but_the_right_class() -> None:
    """Its other columns share what it left over, evenly and with the rest, and all chances sum to 1."""
    labels = np.zeros(1, dtype=np.int64)
    values, left = np.full((1, 16), np.log(0.05), np.float32), np.full(1, np.log(0.2), np.float32)
    first = KeptLogits(values, np.arange(16)[None], left, 60)
    other = replace(first, classes=np.r_[0, 20:35][None])
    columns = columns_of([first], labels)
    (found,) = np.exp(chances(outputs_of(other, columns).astype(np.float64)))
    share = 0.2 / COLUMNS
    assert found == pytest.approx(np.r_[0.05, np.full(COLUMNS - 1, share), 15 * 0.05 + share], rel=1e-4)


def test_the_right_class_may_be_the_least_by_far() -> None:
    """It says nothing of how small a class is that was not kept."""
    logits, labels = made(2, MANY, 0)
    logits[:, np.arange(40), labels] = -30
    kept = [kept_of(each, labels) for each in logits]
    columns = columns_of(kept[:1], labels)
    found = chances(outputs_of(kept[1], columns).astype(np.float64))
    others = np.arange(COLUMNS + 1) != columns.own[:, None]
    assert found[~others] == pytest.approx(chances(logits[1])[np.arange(40), labels], abs=0.05)
    assert found[others].min() > -12
