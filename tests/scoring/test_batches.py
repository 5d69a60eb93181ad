"""Batches by length: which samples stand together, that little is padding, and that no bit depends on the calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from mixopt import Encoding, Mix, Pool, Samples, make_groups
from mixopt.scoring.activation_reuse import ActivationReuse
from mixopt.scoring.batches import FEWEST, PADDING, Batches, Numbers, batches_of, padding_share, plain_batches
from mixopt.scoring.evaluator import Evaluator
from mixopt.scoring.feed import Feed
from mixopt.scoring.racing import looks
from tests.conftest import random_mix, random_states
from tests.listening import Recorder

CPU = torch.device("cpu")
# How many of 2,420 sentences of movie reviews (SST-2) have 4, 5, ... tokens by MiniLM's tokenizer.
SENTENCES = """
5 19 27 20 33 40 56 52 54 58 69 56 75 77 83 96 72 82 94 67 74 81 67 78 80 81 54 63 62 56 61 52 47 39 41 40
36 45 25 33 24 15 18 13 13 15 5 9 11 12 7 5 6 2 1 4 1 2 0 4 1 0 1 0 0 0 0 1
"""


def arrays_of(lengths: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Numbers 1, 2, ... as many as each row has, and zeros behind them."""
    places = np.arange(max(1, int(lengths.max(initial=0))))
    return {"tokens": np.where(places < lengths[:, None], places + 1, 0), "tokens_length": lengths}


def every_batch(batching: Batches, start: int, stop: int, most: int) -> list[slice | Numbers]:
    through, place, found = batching.between(start, stop), 0, []
    while place < len(through):
        found.append(through.batch(place, most))
        place += through.size(place, most)
    return found


def sentence_lengths() -> NDArray[np.int64]:
    """Of all these sentences, in a random order."""
    counts = [int(each) for each in SENTENCES.split()]
    return np.random.default_rng(0).permutation(np.repeat(4 + np.arange(len(counts)), counts))


def test_images_stay_in_order_in_batches_that_do_not_span_the_cut() -> None:
    batching = batches_of({"images": np.zeros((53, 4, 4, 3), np.uint8)}, 53, 31, 10)
    assert batching.key == ""
    assert every_batch(batching, 0, 53, 10) == [
        *(slice(first, min(first + 10, 31)) for first in range(0, 31, 10)),
        *(slice(first, min(first + 10, 53)) for first in range(31, 53, 10)),
    ]
    assert every_batch(batching, 5, 20, 10) == [slice(5, 15), slice(15, 20)]
    assert every_batch(plain_batches(20, 20), 0, 20, 8) == [slice(0, 8), slice(8, 16), slice(16, 20)]
    assert batching.between(7, 7).in_order() is None
    assert len(batching.between(7, 7)) == 0


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=900),
    st.integers(1, 120),
    st.floats(0, 1),
    st.data(),
)
def test_every_sample_is_run_once_beside_samples_of_its_own_part(
    lengths: list[int], most: int, share: float, data: st.DataObject
) -> None:
    count = len(lengths)
    cut = max(1, round(share * count))
    batching = batches_of(arrays_of(np.array(lengths)), count, cut, most)
    parts = sorted({*looks(cut, most), count})
    whole = [np.asarray(each) for each in every_batch(batching, 0, count, most)]
    assert sorted(np.concatenate(whole).tolist()) == list(range(count))
    assert all(len(each) <= most for each in whole)
    for each in whole:
        assert np.searchsorted(parts, each.min(), side="right") == np.searchsorted(parts, each.max(), side="right")
    # Passes over one part after another are the pass over all.
    pieces = [
        np.asarray(each)
        for start, stop in zip([0, *parts], parts, strict=False)
        for each in every_batch(batching, start, stop, most)
    ]
    assert [each.tolist() for each in pieces] == [each.tolist() for each in whole]
    # And a pass that begins or ends inside of a part runs what it is asked for, and nothing else.
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    some = [np.asarray(each) for each in every_batch(batching, start, stop, most)]
    assert sorted(np.concatenate([*some, np.zeros(0, np.int64)]).tolist()) == list(range(start, stop))
    places = batching.between(start, stop).in_order()
    assert places is not None
    assert np.array_equal(np.concatenate([*some, np.zeros(0, np.int64)])[places], np.arange(start, stop))


@pytest.mark.parametrize("most", [32, 100, 500])
@pytest.mark.parametrize("raced", [True, False])
def test_little_is_padding_at_the_lengths_of_sentences(most: int, raced: bool) -> None:
    lengths = sentence_lengths()
    batching = batches_of(arrays_of(lengths), 2420, 1936 if raced else None, most)
    by_length = every_batch(batching, 0, 2420, most)
    plain = every_batch(plain_batches(2420, 1936), 0, 2420, most)
    assert padding_share(arrays_of(lengths), by_length) <= PADDING
    assert padding_share(arrays_of(lengths), plain) > 0.5
    assert len(by_length) < 150, "few batches, not many small ones"


def test_samples_that_differ_altogether_are_still_not_run_one_by_one() -> None:
    """Two arrays whose lengths have nothing to do with each other."""
    random = np.random.default_rng(0)
    arrays = {**arrays_of(random.integers(1, 500, 400)), "other": np.zeros((400, 1)), "other_length": np.ones(400)}
    arrays["other_length"] = random.integers(1, 500, 400)
    sizes = [len(np.asarray(each)) for each in every_batch(batches_of(arrays, 400, None, 50), 0, 400, 50)]
    assert min(sizes[:-1]) >= FEWEST


# What the evaluator makes of it


def make_texts(count: int = 700) -> Samples:
    lengths = sentence_lengths()[:count]
    lengths[::50] = 0
    random = np.random.default_rng(1)
    arrays = arrays_of(lengths)
    arrays["tokens"] = np.where(arrays["tokens"] > 0, random.integers(0, 9, arrays["tokens"].shape), 0)
    return Samples("validation", "memory", arrays, random.integers(0, 3, count), np.zeros((count, 16), np.uint8))


TEXTS = Encoding(lambda record: record, lambda arrays: arrays, "tokens")


class Model(torch.nn.Module):
    """A small encoder whose bits depend on how wide a batch is padded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mixing, self.head = torch.nn.Embedding(9, 32), torch.nn.Linear(32, 32), torch.nn.Linear(32, 3)
        self.batches: list[tuple[int, ...]] = []

    def forward(self, arrays: dict[str, Tensor]) -> Tensor:
        tokens, lengths = arrays["tokens"], arrays["tokens_length"]
        self.batches.append(tuple(tokens.shape))
        real = (torch.arange(tokens.shape[1]) < lengths[:, None]).float()[:, :, None]
        hidden = torch.relu(self.mixing(self.words(tokens) * 0.37)) * real
        logits: Tensor = self.head(hidden.sum(dim=1) / lengths.clamp(min=1)[:, None])
        return logits


def test_outcomes_stand_in_the_splits_order() -> None:
    split, model = make_texts(), Model()
    found = Evaluator(split, TEXTS, CPU, 50, cut=560).run(model)
    for number in range(0, 700, 7):
        length = max(1, int(split.arrays["tokens_length"][number]))
        one = {name: torch.from_numpy(array[number : number + 1]) for name, array in split.arrays.items()}
        with torch.no_grad():
            logits = model({**one, "tokens": one["tokens"][:, :length]})[0]
        assert found.predicted[number] == int(logits.argmax())
        assert found.losses[number] == pytest.approx(
            float(logits.logsumexp(0) - logits[split.labels[number]]), abs=1e-5
        )
    evaluator = Evaluator(split, TEXTS, CPU, 50, cut=560)
    logits = evaluator.logits(model)
    assert np.array_equal(evaluator.outcomes_of(logits).losses, found.losses)
    assert np.array_equal(evaluator.outcomes_of(evaluator.logits(model, 200)).losses, found.losses[:200])


@pytest.mark.parametrize("streamed", [True, False])
def test_the_same_bits_part_by_part_and_at_once(streamed: bool) -> None:
    split, model = make_texts(), Model()
    evaluator = Evaluator(split, TEXTS, CPU, 50, cut=560)
    evaluator.feed = Feed(split.arrays, CPU, streamed=streamed)
    whole = evaluator.run(model)
    ran = list(model.batches)
    model.batches.clear()
    stops = [*looks(560, 50), 700]
    assert stops == [200, 400, 560, 700]
    pieces = [evaluator.run(model, start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
    assert model.batches == ran
    assert np.array_equal(np.concatenate([piece.losses for piece in pieces]), whole.losses)
    assert np.array_equal(np.concatenate([piece.predicted for piece in pieces]), whole.predicted)
    extended = evaluator.run(model, 0, 400).then(evaluator.run(model, 400))
    assert np.array_equal(extended.losses, whole.losses)


def test_a_pass_from_within_a_part_gives_its_samples() -> None:
    evaluator, model = Evaluator(make_texts(), TEXTS, CPU, 50, cut=560), Model()
    whole = evaluator.run(model)
    some = evaluator.run(model, 130, 457)
    assert some.losses == pytest.approx(whole.losses[130:457], abs=1e-6)
    assert np.array_equal(some.predicted, whole.predicted[130:457])


def test_batches_that_do_not_fit_are_halved_where_they_are_long() -> None:
    heard, model, split = Recorder(), Model(), make_texts()

    def limited(arrays: dict[str, Tensor]) -> Tensor:
        if arrays["tokens"].numel() > 400:
            raise torch.OutOfMemoryError("no room")
        return model(arrays)  # type: ignore[no-any-return]

    evaluator = Evaluator(split, TEXTS, CPU, 50, cut=560, listener=heard.listener)
    counts: list[int] = []
    found = evaluator.run(limited, on_batch=counts.append)
    assert sum(counts) == 700
    assert found.losses == pytest.approx(Evaluator(split, TEXTS, CPU, 50, cut=560).run(model).losses, abs=1e-6)
    assert all("going on with" in text for text in heard.warnings)
    assert heard.warnings
    assert all(rows * columns <= 400 for rows, columns in model.batches[: len(counts)])


def test_activations_of_a_batch_are_used_for_the_very_samples_that_it_held(make_pool: Callable[..., Pool]) -> None:
    pool, model = make_pool(random_states(3)), Model()
    groups = make_groups("block", pool.sizes)
    last = frozenset({"head.weight", "scale"})
    segments = [frozenset({"stem.weight"}), frozenset({"blocks.0.mlp.weight"}), last]
    began: list[int] = []

    def first(arrays: dict[str, Tensor]) -> Tensor:
        began.append(len(arrays["tokens"]))
        return torch.as_tensor(model(arrays))

    steps = [first, lambda hidden: hidden * 2, lambda hidden: hidden + 1]
    reuse = ActivationReuse(pool, segments, lambda: steps, 10**9)
    split = make_texts()
    evaluator = Evaluator(split, TEXTS, CPU, 50, cut=560)
    start = random_mix(groups, pool.columns)
    rows = start.coefficients.copy()
    head = groups.index()["head.weight"]
    rows[head] = np.roll(rows[head], 1)
    outcomes = []
    for mix in (start, start, Mix(groups, pool.columns, rows)):
        plan = reuse.plan(mix, split)
        outcomes.append(evaluator.run(plan or (lambda batch: model(batch) * 2 + 1)))
    for found in outcomes[1:]:
        assert np.array_equal(found.losses, outcomes[0].losses)
    assert sum(began) == 700, "the second pass keeps them, the third begins behind the first segment"
    assert reuse.skipped >= 700


def test_how_samples_are_batched_is_in_the_key_of_texts_alone() -> None:
    evaluator = Evaluator(make_texts(), TEXTS, CPU, 50, cut=560)
    assert evaluator.batching.key == "by length 1"
    compiled = evaluator.at("fp32", compiled=True)
    assert compiled.batching.key == "", "one shape for all batches: as they come"
    assert compiled.at("fp32").batching is evaluator.batching
