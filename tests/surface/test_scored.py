from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.surface import scored as module
from mixopt.surface.outputs import LOOKED_AT, outputs_of
from mixopt.surface.scored import Scored, collected
from mixopt.values.kept_logits import KeptLogits
from tests.surface.worlds import World, make_world


def same(first: Scored, second: Scored) -> bool:
    """To the last bit."""
    classes, others = first.columns.classes, second.columns.classes
    return (
        torch.equal(whole_of(first), whole_of(second))
        and torch.equal(first.reference, second.reference)
        and np.array_equal(first.lengths, second.lengths)
        and np.array_equal(first.gram, second.gram)
        and (classes is None or others is None or np.array_equal(classes, others))
        and first.columns.count == second.columns.count
        and np.array_equal(first.columns.own, second.columns.own)
        and len(first.early) == len(second.early)
    )


def whole_of(scored: Scored) -> torch.Tensor:
    return scored.changes(0, scored.reference.numel())


def whole(world: World) -> Scored:
    return collected(world.kept, len(world.logits), world.labels)


@pytest.mark.parametrize("classes", [3, 40])
def test_changes_and_their_products(classes: int) -> None:
    world = make_world(7, classes=classes)
    kept = [each.first(length) for each, length in zip(world.kept, (60, 60, 25, 60, 40, 60, 25), strict=True)]
    found = collected(kept, 7, world.labels)
    assert found.lengths.tolist() == [60, 60, 25, 60, 40, 60, 25]
    assert (len(found), found.common, found.outputs) == (7, 25, 25 * found.columns.count)
    reference = outputs_of(kept[0], found.columns)
    assert np.array_equal(found.reference.numpy(), reference)
    for each, row in zip(kept, whole_of(found), strict=True):
        change = outputs_of(each, found.columns) - reference[: len(each)]
        assert row[: change.size].numpy() == pytest.approx(change.ravel(), rel=1e-3, abs=1e-6)
        assert not torch.any(row[change.size :])
    common = found.changes(0, found.outputs).double().numpy()
    assert found.gram == pytest.approx(common @ common.T)
    assert np.array_equal(found.gram, found.gram.T)


def test_pieces_are_the_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ON_CPU", 17)
    found = whole(make_world(4))
    pieces = list(found.pieces(10, 50))
    assert [(begin, end) for begin, end, _ in pieces] == [(first, first + 3) for first in range(10, 49, 3)] + [(49, 50)]
    assert torch.equal(torch.cat([each for *_, each in pieces], dim=1), found.changes(50, 250).float())


@settings(max_examples=25)
@given(st.data())
def test_mixes_that_come_later_give_the_same_bits(data: st.DataObject) -> None:
    """However they come, and of however few samples."""
    classes = data.draw(st.sampled_from([4, 40]))
    world = make_world(45, samples=30, classes=classes, seed=1)
    lengths = [30, *data.draw(st.lists(st.sampled_from([30, 30, 30, 30, 20, 7]), min_size=44, max_size=44))]
    kept = [each.first(length) for each, length in zip(world.kept, lengths, strict=True)]
    stops = sorted(data.draw(st.sets(st.integers(1, 44), max_size=6)) | {45})
    found: Scored | None = None
    for first, stop in zip([0, *stops], stops, strict=False):
        found = collected(kept[first:stop], stop - first, world.labels, before=found)
        assert same(found, collected(kept[:stop], stop, world.labels))


def test_inner_products_that_are_known_are_not_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(70, samples=10)
    before = collected(world.kept[:66], 66, world.labels)
    before.gram[:64, :64] = 7
    after = collected(world.kept[66:], 4, world.labels, before=before)
    assert np.all(after.gram[:64, :64] == 7)
    assert np.array_equal(after.gram[64:], whole(world).gram[64:])


def test_logits_are_kept_only_while_columns_may_change() -> None:
    world = make_world(LOOKED_AT + 3, classes=40)
    few = collected(world.kept[: LOOKED_AT - 1], LOOKED_AT - 1, world.labels)
    assert len(few.early) == LOOKED_AT - 1
    assert whole(world).early == ()
    assert whole(make_world(3)).early == ()


def test_logits_need_not_be_in_memory_together() -> None:
    """Beyond those that columns are taken from, each is let go before the next is asked for."""
    world = make_world(30, classes=40)
    asked: list[int] = []

    def coming(kept: list[KeptLogits]) -> Iterator[KeptLogits]:
        for number, each in enumerate(kept):
            asked.append(number)
            yield each
            # What was given last is worked on by now.
            assert asked == list(range(number + 1))

    assert same(collected(coming(world.kept), 30, world.labels), whole(world))


def test_mixes_that_do_not_fit() -> None:
    world = make_world(4)
    for kept, count, message in (
        ([], 0, "all of 60 samples"),
        ([world.kept[0].first(10), *world.kept[1:]], 4, "all of 60 samples"),
        ([world.kept[0], world.kept[1].first(0)], 2, "0 of 60 samples"),
        ([world.kept[0].then(world.kept[0]), world.kept[1]], 2, "all of 60 samples"),
        (world.kept, 3, "longer"),
        (world.kept, 5, "shorter"),
    ):
        with pytest.raises(ValueError, match=message):
            collected(kept, count, world.labels)
