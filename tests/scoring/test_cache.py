"""The cache on disk: every bit comes back, damage is told, and no entry can run code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.errors import RunError
from mixopt.scoring.cache import Gradient, OutcomeCache
from mixopt.scoring.outcomes import Outcomes
from mixopt.untrusted.arrays import packed, unpacked
from tests.listening import Recorder
from tests.values.kept import make_kept, same

KEY, OTHER = "ab" * 32, "cd" * 32


def outcomes_of(count: int, seed: int = 0) -> Outcomes:
    random = np.random.default_rng(seed)
    losses = random.exponential(size=count).astype(np.float32).astype(np.float64)
    confidence = random.random(count).astype(np.float32).astype(np.float64)
    return Outcomes(random.integers(0, 1000, count), losses, {}, random.integers(0, 300, count), confidence)


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest.fixture
def cache(tmp_path: Path, heard: Recorder) -> OutcomeCache:
    return OutcomeCache(tmp_path, heard.listener)


def entry_of(cache: OutcomeCache) -> Path:
    (entry,) = (path for path in cache.folder.rglob("*") if path.is_file())
    return entry


@given(
    losses=st.lists(st.floats(width=32), min_size=1, max_size=20),
    seconds=st.floats(0, 1e6),
    data=st.data(),
)
def test_outcomes_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, losses: list[float], seconds: float, data: st.DataObject
) -> None:
    """NaN and infinities too: a mix that overflows is not computed again."""
    count = len(losses)
    predicted = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=count, max_size=count))
    cache = OutcomeCache(tmp_path_factory.mktemp("cache"))
    cache.put(KEY, Outcomes(np.array(predicted), np.array(losses)), seconds)
    found = cache.get(KEY, count)
    assert found is not None
    assert found[0].predicted.tolist() == predicted
    assert found[0].losses.dtype == np.float64
    assert found[0].losses.tobytes() == np.array(losses).tobytes()
    assert found[1] == seconds


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(0, 1, width=32)), min_size=1, max_size=20))
def test_ranks_and_confidences_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, kept: list[tuple[int, float]]
) -> None:
    above, confidence = np.array([each[0] for each in kept]), np.array([each[1] for each in kept])
    cache = OutcomeCache(tmp_path_factory.mktemp("cache"))
    cache.put(KEY, Outcomes(above, confidence, {}, above, confidence), 0.5)
    found = cache.get(KEY, len(kept))
    assert found is not None
    assert found[0].above is not None
    assert found[0].confidence is not None
    assert found[0].above.tolist() == above.tolist()
    assert found[0].confidence.tobytes() == confidence.tobytes()


def test_a_sample_takes_thirteen_or_fourteen_bytes(cache: OutcomeCache) -> None:
    for most, bytes_each in ((200, 13), (999, 14)):
        random = np.random.default_rng(0)
        above = random.integers(0, most, 20_000)
        cache.put(KEY, Outcomes(above, random.random(20_000), {}, above, random.random(20_000)), 0.5)
        assert entry_of(cache).stat().st_size / 20_000 < bytes_each + 0.2  # and a header


def test_an_entry_that_does_not_tell_what_is_needed_is_missing_without_a_word(tmp_path: Path, heard: Recorder) -> None:
    kept = outcomes_of(8)
    OutcomeCache(tmp_path).put(KEY, Outcomes(kept.predicted, kept.losses), 0.5)
    assert OutcomeCache(tmp_path, heard.listener).get(KEY, 8) is not None
    assert OutcomeCache(tmp_path, heard.listener, ("above",)).get(KEY, 8) is None
    OutcomeCache(tmp_path).put(KEY, kept, 0.5)
    assert OutcomeCache(tmp_path, heard.listener, ("above", "confidence")).get(KEY, 8) is not None
    assert not heard.warnings


def with_logits(count: int, classes: int) -> Outcomes:
    return replace(outcomes_of(count), logits=make_kept(count, classes))


@pytest.mark.parametrize("classes", [1, 10, 32, 33, 256, 257, 1000])
def test_logits_come_back_bit_for_bit(cache: OutcomeCache, heard: Recorder, classes: int) -> None:
    put = with_logits(20, classes)
    cache.put(KEY, put, 0.5)
    found = cache.get(KEY, 20, ["logits"])
    assert found is not None, heard.warnings
    assert found[0].logits is not None
    assert put.logits is not None
    assert same(found[0].logits, put.logits)
    assert found[0].logits.values.dtype == np.float32
    assert found[0].logits.values.tobytes() == put.logits.values.tobytes()


def test_logits_take_two_bytes_of_a_class_and_at_most_two_for_its_number(cache: OutcomeCache) -> None:
    for classes, bytes_each in ((10, 10 * 2), (100, 16 * 3 + 2), (1000, 16 * 4 + 2)):
        cache.put(KEY, outcomes_of(5000), 0.5)
        before = entry_of(cache).stat().st_size
        cache.put(KEY, with_logits(5000, classes), 0.5)
        assert 0 <= (entry_of(cache).stat().st_size - before) / 5000 - bytes_each < 0.3  # and headers


def test_logits_may_be_needed_of_one_entry(tmp_path: Path, heard: Recorder) -> None:
    cache = OutcomeCache(tmp_path, heard.listener)
    cache.put(KEY, outcomes_of(8), 0.5)
    assert cache.get(KEY, 8) is not None
    assert cache.get(KEY, 8, ["logits"]) is None
    assert OutcomeCache(tmp_path, heard.listener, ["logits"]).get(KEY, 8) is None
    cache.put(KEY, with_logits(8, 10), 0.5)
    assert cache.get(KEY, 8, ["logits"]) is not None
    overflown = Outcomes(np.zeros(8, np.int64), np.full(8, np.nan))
    own = Outcomes(np.full(8, -1), np.zeros(8))
    for never_any in (overflown, own):
        cache.put(KEY, never_any, 0.5)
        assert cache.get(KEY, 8, ["logits"]) is not None
    assert not heard.warnings


Arrays = dict[str, np.ndarray]


def without(given: Arrays, left_out: str) -> Arrays:
    return {name: array for name, array in given.items() if name != left_out}


HOSTILE: dict[str, Callable[[Arrays], Arrays]] = {
    "fewer samples": lambda given: {
        name: array[:-1] if name in ("logits", "logits_classes", "logits_rest") else array
        for name, array in given.items()
    },
    "fewer values": lambda given: given | {"logits": given["logits"][:, :-1]},
    "fewer of both": lambda given: (
        given | {"logits": given["logits"][:, :-1], "logits_classes": given["logits_classes"][:, :-1]}
    ),
    "a value": lambda given: given | {"logits": np.array(-1.0)},
    "class beyond": lambda given: given | {"logits_classes": given["logits_classes"] + 60},
    "classes twice": lambda given: given | {"logits_classes": given["logits_classes"] * 0},
    "negative classes": lambda given: given | {"logits_classes": -given["logits_classes"].astype(np.int64)},
    "fractions of classes": lambda given: given | {"logits_classes": given["logits_classes"].astype(np.float64)},
    "nan": lambda given: given | {"logits": given["logits"] * np.nan},
    "infinite": lambda given: given | {"logits": given["logits"] * -np.inf},
    "texts": lambda given: given | {"logits": given["logits"].astype(str)},
    "nan rest": lambda given: given | {"logits_rest": given["logits_rest"] * np.nan},
    "no rest": lambda given: without(given, "logits_rest"),
    "no values": lambda given: without(given, "logits"),
    "no number of classes": lambda given: without(given, "logits_class_count"),
    "no classes": lambda given: given | {"logits_class_count": np.array(0, np.uint32)},
    "few classes": lambda given: given | {"logits_class_count": np.array(16, np.uint32)},
    "several numbers of classes": lambda given: given | {"logits_class_count": np.array([60, 60], np.uint32)},
    "a fraction of classes": lambda given: given | {"logits_class_count": np.array(60.5)},
    "sum": lambda given: given | {"logits": given["logits"] * 2},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_logits_that_are_none_are_damage(cache: OutcomeCache, heard: Recorder, case: str) -> None:
    """Under a checksum that fits."""
    cache.put(KEY, with_logits(8, 60), 0.5)
    assert cache.get(KEY, 8) is not None
    with entry_of(cache).open("rb") as stream:
        arrays = unpacked(stream)
    entry_of(cache).write_bytes(packed(HOSTILE[case](arrays)))
    assert cache.get(KEY, 8) is None
    assert len(heard.warnings) == 1
    assert f"damaged cache entry {entry_of(cache)} (" in heard.warnings[0]


def test_gradients_come_back_bit_for_bit(cache: OutcomeCache) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5))
    rows[0, 0] = -0.0
    cache.put_gradient(KEY, Gradient(0.1 + 0.2, rows, 1e-300), 0.25)
    found = cache.get_gradient(KEY, (3, 5))
    assert found is not None
    assert (found[0].loss, found[0].scale, found[1]) == (0.1 + 0.2, 1e-300, 0.25)
    assert found[0].coefficients.tobytes() == rows.tobytes()


def test_what_was_not_stored_is_missing_without_a_word(cache: OutcomeCache, heard: Recorder) -> None:
    assert cache.get(KEY, 10) is None
    assert cache.get_gradient(KEY, (1, 2)) is None
    assert not heard.warnings


def test_the_same_outcomes_give_the_same_bytes(cache: OutcomeCache) -> None:
    cache.put(KEY, outcomes_of(5), 0.5)
    before = entry_of(cache).read_bytes()
    cache.put(KEY, outcomes_of(5), 0.5)
    assert entry_of(cache).read_bytes() == before


def test_an_entry_of_fewer_samples_is_one_and_of_more_is_of_another_split(cache: OutcomeCache, heard: Recorder) -> None:
    cache.put(KEY, outcomes_of(8), 0.5)
    assert cache.get(KEY, 20) is not None
    assert cache.get(KEY, 7) is None
    assert "an entry of another split" in heard.warnings[-1]


def test_a_gradient_of_another_shape_is_of_another_mix(cache: OutcomeCache, heard: Recorder) -> None:
    cache.put_gradient(KEY, Gradient(1.0, np.zeros((3, 5)), 1.0), 0.5)
    assert cache.get_gradient(KEY, (5, 3)) is None
    assert "an entry of another mix" in heard.warnings[-1]


def test_an_entry_under_another_key_is_damaged(cache: OutcomeCache, heard: Recorder) -> None:
    cache.put(KEY, outcomes_of(8), 0.5)
    there = cache.folder / "outcomes" / OTHER[:2] / entry_of(cache).name.replace(KEY, OTHER)
    there.parent.mkdir()
    entry_of(cache).rename(there)
    assert cache.get(OTHER, 8) is None
    assert heard.warnings == [f"damaged cache entry {there} (an entry of another mix or split): scored again"]


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_no_flipped_bit_goes_unnoticed_where_values_are(cache: OutcomeCache, heard: Recorder) -> None:
    """Every byte in turn; what lies between the values (a date, an attribute) may change without harm."""
    cache.put(KEY, outcomes_of(4), 0.5)
    entry = entry_of(cache)
    content = entry.read_bytes()
    told = 0
    for place in range(len(content)):
        entry.write_bytes(flipped(content, place))
        found = cache.get(KEY, 4)
        if found is not None:
            assert found[0].predicted.tolist() == outcomes_of(4).predicted.tolist()
            assert found[0].losses.tolist() == outcomes_of(4).losses.tolist()
            assert found[1] == 0.5
        told += found is None
        assert len(heard.warnings) == told
    assert told > len(content) / 2


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "text": lambda content: b"not an entry",
    "truncated": lambda content: content[: len(content) // 2],
    "npy": lambda content: b"\x93NUMPY" + content[6:],
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damage_is_told_and_counts_as_missing(cache: OutcomeCache, heard: Recorder, damage: str) -> None:
    cache.put(KEY, outcomes_of(4), 0.5)
    entry_of(cache).write_bytes(DAMAGES[damage](entry_of(cache).read_bytes()))
    assert cache.get(KEY, 4) is None
    assert len(heard.warnings) == 1
    assert f"damaged cache entry {entry_of(cache)} (" in heard.warnings[0]


def test_other_arrays_under_a_true_checksum_are_of_another_kind(cache: OutcomeCache, heard: Recorder) -> None:
    cache.put_gradient(KEY, Gradient(1.0, np.zeros((1, 2)), 1.0), 0.5)
    there = cache.folder / "outcomes" / KEY[:2] / f"{KEY}.npz"
    there.parent.mkdir(parents=True)
    entry_of(cache).rename(there)
    assert cache.get(KEY, 4) is None
    assert len(heard.warnings) == 1


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_in_an_entry_is_never_opened(cache: OutcomeCache, heard: Recorder, tmp_path: Path) -> None:
    cache.put(KEY, outcomes_of(4), 0.5)
    entry, sprung = entry_of(cache), tmp_path / "sprung"
    with entry.open("wb") as stream:
        np.savez(stream, predicted=np.array([Trap(sprung)], dtype=object))
    assert cache.get(KEY, 4) is None
    entry.write_bytes(pickle.dumps(Trap(sprung)))
    assert cache.get(KEY, 4) is None
    assert len(heard.warnings) == 2
    assert not sprung.exists()


def test_entries_of_earlier_versions_are_ignored(cache: OutcomeCache, heard: Recorder, tmp_path: Path) -> None:
    """They were pickles, under another suffix."""
    old = cache.folder / "outcomes" / KEY[:2] / f"{KEY}.joblib"
    old.parent.mkdir(parents=True)
    old.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert cache.get(KEY, 4) is None
    assert not heard.warnings
    assert not (tmp_path / "sprung").exists()


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, heard: Recorder) -> None:
    (tmp_path / "file").write_text("")
    assert OutcomeCache(tmp_path / "file", heard.listener).get(KEY, 4) is None
    assert not heard.warnings
    with pytest.raises(RunError, match="could not write"):
        OutcomeCache(tmp_path / "file").put(KEY, outcomes_of(4), 0.5)
