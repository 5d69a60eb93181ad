"""Images on their way to the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mixopt.scoring.evaluator import Evaluator
from mixopt.scoring.feed import Batch, Feed
from tests.scoring.memory import ENCODING, make_model, make_split

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (23, 4, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("size", [1, 7, 23])
def test_a_streamed_split_gives_the_same_images(size: int, announced: bool) -> None:
    feed = Feed({"images": IMAGES}, CPU, streamed=True)
    slices = [slice(first, min(first + size, 23)) for first in range(0, 23, size)] * 2
    taken = []
    for samples, after in zip(slices, [*slices[1:], None], strict=True):
        taken.append((samples, feed.take(samples)["images"]))
        if announced and after is not None:
            feed.ahead(after)
    # All are compared at the end: a buffer that is written again must not change what was taken.
    for samples, images in taken:
        np.testing.assert_array_equal(images.numpy(), IMAGES[samples])


def test_what_was_not_announced_is_taken_all_the_same() -> None:
    feed = Feed({"images": IMAGES}, CPU, streamed=True)
    feed.ahead(slice(0, 5))
    np.testing.assert_array_equal(feed.take(slice(3, 11))["images"].numpy(), IMAGES[3:11])
    np.testing.assert_array_equal(feed.take(np.array([9, 2]))["images"].numpy(), IMAGES[[9, 2]])


def test_an_evaluator_scores_a_streamed_split_alike() -> None:
    split, model = make_split(50), make_model()
    plain = Evaluator(split, ENCODING, CPU, 8)
    streamed = Evaluator(split, ENCODING, CPU, 8)
    streamed.feed = Feed(split.arrays, CPU, streamed=True)
    for start, stop in ((0, None), (3, 20)):
        expected, found = plain.run(model, start, stop), streamed.run(model, start, stop)
        np.testing.assert_array_equal(found.losses, expected.losses)


# Rows of different lengths, beside an array of another dtype.
TEXTS = {
    "tokens": np.where(np.arange(9) < np.arange(23)[:, None] % 10, 1 + np.arange(9), 0),
    "tokens_length": np.arange(23, dtype=np.int64) % 10,
    "marks": np.random.default_rng(0).random((23, 2), dtype=np.float32),
}


@pytest.mark.parametrize("streamed", [True, False])
def test_padding_is_cut_to_the_longest_of_a_batch(streamed: bool) -> None:
    feed = Feed(TEXTS, CPU, streamed=streamed)
    for samples, longest in ((slice(0, 4), 3), (slice(4, 9), 8), (slice(8, 12), 9), (slice(21, 23), 2)):
        feed.ahead(samples)
        batch = feed.take(samples)
        assert list(batch) == list(TEXTS)
        np.testing.assert_array_equal(batch["tokens"].numpy(), TEXTS["tokens"][samples, :longest])
        np.testing.assert_array_equal(batch["marks"].numpy(), TEXTS["marks"][samples])
        np.testing.assert_array_equal(batch["tokens_length"].numpy(), TEXTS["tokens_length"][samples])
        assert feed.whole(samples)["tokens"].shape == (len(batch["marks"]), 9)
    assert feed.take(np.array([2, 13]))["tokens"].tolist() == [[1, 2, 0], [1, 2, 3]]


@pytest.mark.parametrize("announced", [True, False])
def test_samples_in_any_order_are_streamed_alike(announced: bool) -> None:
    feed = Feed(TEXTS, CPU, streamed=True)
    order = np.random.default_rng(0).permutation(23)
    batches = [order[first : first + 6] for first in range(0, 23, 6)] * 2
    taken = []
    for samples, after in zip(batches, [*batches[1:], None], strict=True):
        taken.append((samples, feed.take(samples)))
        if announced and after is not None:
            feed.ahead(after)
    for samples, batch in taken:
        longest = max(1, TEXTS["tokens_length"][samples].max())
        np.testing.assert_array_equal(batch["tokens"].numpy(), TEXTS["tokens"][samples, :longest])
        np.testing.assert_array_equal(batch["marks"].numpy(), TEXTS["marks"][samples])


def test_what_was_announced_is_brought_once(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Feed(TEXTS, CPU, streamed=True)
    brought: list[object] = []
    real = feed._bring

    def bring(samples: slice | np.ndarray[Any, Any]) -> Batch:
        brought.append(samples)
        return real(samples)

    monkeypatch.setattr(feed, "_bring", bring)
    first, second = np.array([4, 1, 9]), np.array([4, 9, 1])
    feed.ahead(first)
    feed.take(first.copy())
    assert len(brought) == 1
    feed.ahead(first)
    np.testing.assert_array_equal(feed.take(second)["marks"].numpy(), TEXTS["marks"][second])
    feed.ahead(slice(4, 7))
    feed.take(np.array([4, 5, 6]))
    feed.take(slice(4, 7))
    assert len(brought) == 6


def test_a_batch_of_nothing_but_padding_keeps_one_column() -> None:
    assert Feed(TEXTS, CPU).take(slice(10, 11))["tokens"].tolist() == [[0]]
