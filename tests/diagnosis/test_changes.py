"""What changed between two rows: counts by class, and samples to look at."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from mixopt.diagnosis.changes import LONGEST, SHOWN, SIDE, changes, fewer, picture
from mixopt.reporting.plots.classes import change_of
from mixopt.reporting.rows import LabelledOutcomes
from mixopt.values.samples import Samples

COUNT = 60


def outcomes(right: np.ndarray, labels: np.ndarray) -> LabelledOutcomes:
    return LabelledOutcomes(labels, np.where(right, labels, (labels + 1) % 3), np.zeros(len(labels)))


def split(**arrays: np.ndarray) -> Samples:
    labels = np.arange(COUNT) % 3
    return Samples("test", "test.npz", arrays, labels, np.zeros((COUNT, 16), np.uint8))


def test_classes_count_what_was_gained_and_lost() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(COUNT) % 3
    before, after = random.random(COUNT) < 0.5, random.random(COUNT) < 0.7
    found = changes(split(), outcomes(before, labels), outcomes(after, labels), ["x", "y", "z"], lambda arrays: "")
    for label, each in enumerate(found.classes):
        of = labels == label
        assert each.name == "xyz"[label]
        assert (each.samples, each.before) == (20, int(before[of].sum()))
        assert each.gained - each.lost == int(after[of].sum()) - int(before[of].sum())
    assert sum(each.gained + each.lost for each in found.classes) == int((before != after).sum())


def test_samples_are_gained_and_lost_in_turn_and_not_too_many() -> None:
    labels = np.arange(COUNT) % 3
    before = np.arange(COUNT) % 2 == 0
    long = "word " * 200
    found = changes(split(), outcomes(before, labels), outcomes(~before, labels), None, lambda arrays: long)
    assert len(found.flipped) == SHOWN
    gained = [each.after == each.label for each in found.flipped]
    assert gained == [True, False] * (SHOWN // 2)
    assert {len(each.text) for each in found.flipped} == {LONGEST}
    assert found.flipped[0].text.endswith("…")
    assert [len(each.flipped) for each in fewer([found, found, found])] == [8, 8, 8]


def test_a_picture_is_small_and_the_same_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    again = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture(pixels)))))
    np.testing.assert_array_equal(again, pixels)
    large = np.zeros((300, 500, 3), np.uint8)
    assert Image.open(io.BytesIO(base64.b64decode(picture(large)))).size == (SIDE, SIDE * 3 // 5)
    labels = np.arange(COUNT) % 3
    images = split(images=np.zeros((COUNT, 4, 4, 3), np.uint8))
    none, every = outcomes(labels < 0, labels), outcomes(labels >= 0, labels)
    found = changes(images, none, every, None, lambda arrays: "not read")
    assert all(each.picture and not each.text for each in found.flipped)


def test_interval_of_a_change_covers_as_often_as_it_says() -> None:
    """Samples drawn from known chances of being gained and lost: the true change is inside about 95 % of the time."""
    random, inside = np.random.default_rng(0), 0
    gained, lost, count, times = 0.1, 0.04, 200, 2000
    for _ in range(times):
        drawn = random.multinomial(count, [gained, lost, 1 - gained - lost])
        labels = np.zeros(count, dtype=np.int64)
        was = np.arange(count) < drawn[1]
        now = (np.arange(count) >= drawn[1]) & (np.arange(count) < drawn[0] + drawn[1])
        samples = Samples("t", "t", {}, labels, np.zeros((count, 16), np.uint8))
        (one,) = changes(samples, outcomes(was, labels), outcomes(now, labels), None, lambda arrays: "").classes
        change, half = change_of(one)
        inside += abs(change - (gained - lost)) <= half
    assert 0.93 < inside / times < 0.975
