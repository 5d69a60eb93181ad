"""The ledger: mixes that were scored are known to later runs, by content; damage is told and costs no more."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from safetensors.torch import save_file

from mixopt import Mix, Objective, load_spec, one_hot, open_objective
from mixopt.scoring.keys import Keys
from mixopt.scoring.ledger import Ledger
from mixopt.untrusted.texts import with_checksum
from mixopt.values.groups import make_groups
from mixopt.values.mix import combine
from mixopt.weights.pool import Pool, open_pool
from tests.conftest import State, random_mix, random_states
from tests.listening import Recorder
from tests.scoring.batchnorm_pool import ingredients, trained, write_pool


def save_pool(folder: Path, states: Sequence[State]) -> Pool:
    folder.mkdir()
    paths = {f"model_{number}": folder / f"model_{number}.safetensors" for number in range(len(states))}
    for path, state in zip(paths.values(), states, strict=True):
        save_file(state, path)
    return open_pool(paths)


def opened(pool: Path, cache: Path, heard: Recorder | None = None, **options: Any) -> Objective:
    spec = load_spec({"models": pool, "cache": cache, "device": "cpu", "precision": "fp32", "confirm": 0, **options})
    return open_objective(spec, (heard or Recorder()).listener)


def known(objective: Objective, split: str = "validation") -> list[Mix]:
    return objective.scorer.known_mixes(split)


def mixes_of(objective: Objective) -> list[Mix]:
    """With several groupings, some of fewer checkpoints."""
    columns, sizes = objective.pool.columns, objective.pool.sizes
    few = Mix(make_groups("2", sizes), columns, np.array([[0.25, 0.75, 0, 0, 0], [0.1 + 0.2, 0.7, 0, 0, 0]]))
    return [
        random_mix(make_groups("block", sizes), columns, affine=True),
        one_hot(make_groups("whole", sizes), columns, columns[2]),
        few,
        random_mix(make_groups("tensor", sizes), columns),
        random_mix(make_groups("block", sizes), columns, seed=1),
    ]


def test_another_run_knows_what_was_scored_in_order(clip_pool_template: Path, tmp_path: Path) -> None:
    first = opened(clip_pool_template, tmp_path)
    assert known(first) == []
    mixes = mixes_of(first)
    for mix in [*mixes, *reversed(mixes)]:
        first.score(mix)
    first.score(mixes[3], "test")
    heard = Recorder()
    later = opened(clip_pool_template, tmp_path, heard, metric="nll")
    assert known(first) == known(later) == mixes
    assert known(later, "test") == [mixes[3]]
    for mix in known(later):
        stored = later.scorer.stored(mix, "validation", ["logits"])
        assert stored is not None
        assert np.array_equal(stored.losses, first.score(mix).outcomes.losses)
    assert not heard.warnings
    assert not later.scorer.ran


def test_ensembles_and_gradients_are_no_mixes(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = opened(clip_pool_template, tmp_path)
    mixes = mixes_of(objective)
    objective.score_ensemble(mixes[:2])
    objective.gradient(mixes[0], np.arange(10))
    assert known(objective) == []


def test_a_race_that_was_given_up_is_known_and_gone_on_with(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = opened(clip_pool_template, tmp_path, confirm=0.5)
    mix = mixes_of(objective)[0]
    objective.score(mix)
    assert len(objective.scorer.stored(mix, "validation") or ()) == 48
    objective.whole().score(mix)
    assert known(objective) == [mix]
    assert len(objective.scorer.stored(mix, "validation") or ()) == 96


def test_what_the_cache_no_longer_holds_is_not_known(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = opened(clip_pool_template, tmp_path)
    mixes = mixes_of(objective)[:2]
    for mix in mixes:
        objective.score(mix)
    (entry,) = (tmp_path / "outcomes").rglob(f"{objective.key(mixes[0], 'validation')}.npz")
    entry.unlink()
    assert known(objective) == mixes[1:]
    assert objective.scorer.stored(mixes[0], "validation") is None
    shutil.rmtree(tmp_path / "ledger")
    objective.score(mixes[0])
    assert known(objective) == mixes[:1], "with its frame anew"


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"dtype": "bf16"}, {"stack": "bf16"}], ids=str)
def test_other_conditions_are_apart(clip_pool_template: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    objective = opened(clip_pool_template, tmp_path)
    mix = mixes_of(objective)[0]
    objective.score(mix)
    other = opened(clip_pool_template, tmp_path, **options)
    assert known(other) == []
    other.score(mix)
    assert known(other) == known(objective) == [mix]


def test_checkpoints_go_by_their_content(clip_pool: Path, tmp_path: Path) -> None:
    """Renamed, so that the columns are in another order; and some are gone."""
    objective = opened(clip_pool, tmp_path / "cache")
    mixes = mixes_of(objective)
    for mix in mixes:
        objective.score(mix)
    (clip_pool / "model_1.safetensors").rename(clip_pool / "model_9.safetensors")
    renamed = opened(clip_pool, tmp_path / "cache")
    order = [objective.pool.columns.index(name) for name in ("model_0", "model_2", "model_3", "model_1", "base")]
    assert renamed.pool.columns == ("model_0", "model_2", "model_3", "model_9", "base")
    for mix, before in zip(known(renamed), mixes, strict=True):
        assert mix.columns == renamed.pool.columns
        assert np.array_equal(mix.coefficients, before.coefficients[:, order])
        assert renamed.score(mix).cached
    (clip_pool / "model_3.safetensors").unlink()
    fewer = opened(clip_pool, tmp_path / "cache")
    assert [mix.support() for mix in known(fewer)] == [("model_2",), ("model_0", "model_9")]
    assert all(fewer.score(mix).cached for mix in known(fewer))


def test_a_pool_with_other_tensors_the_same_knows_checkpoints_alone(tmp_path: Path) -> None:
    """Where fewer tensors differ, a key has another form; that of one checkpoint has not."""
    states = random_states(3)
    same = next(iter(states[0]))
    states[1][same] = states[0][same].clone()
    entered = ledger_of(save_pool(tmp_path / "all", states), tmp_path)
    few = ledger_of(save_pool(tmp_path / "few", states[:2]), tmp_path)
    columns, sizes = entered._pool.columns, entered._pool.sizes
    alone = one_hot(make_groups("2", sizes), columns, columns[0])
    both = combine([alone, one_hot(alone.groups, columns, columns[1])], [0.5, 0.5])
    for mix in (alone, both):
        entered.enter(entered._keys.of_mix(mix, "split"), mix, "split")
    assert len(few._pool.mixed) < len(entered._pool.mixed)
    ((_, found),) = few.read("split")
    assert (found.support(), found.groups.names) == (columns[:1], ("depth.0", "depth.1"))
    assert [mix for _, mix in entered.read("split")] == [alone, both]


def ledger_of(pool: Pool, cache: Path, heard: Recorder | None = None) -> Ledger:
    return Ledger(cache, pool, Keys(pool, None, {}), (heard or Recorder()).listener)


def test_recomputed_statistics_are_apart_but_of_checkpoints_alone(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", ingredients(trained(own_statistics=True), shift=0.7))
    averaged, recomputed = (
        opened(pool, tmp_path / "cache", batchnorm=mode, confirm=0) for mode in ("average", "recompute")
    )
    groups, columns = make_groups("2", averaged.pool.sizes), averaged.pool.columns
    soup, alone, other = (
        random_mix(groups, columns),
        one_hot(groups, columns, columns[0]),
        random_mix(groups, columns, 1),
    )
    averaged.score(soup)
    averaged.score(alone)
    assert known(recomputed) == [alone]
    recomputed.score(other)
    recomputed.score(soup)
    assert known(recomputed) == [alone, other, soup]
    assert known(averaged) == [soup, alone]
    assert recomputed.score(alone).cached


def large_pool() -> tuple[Pool, Keys]:
    """Sixteen checkpoints of 150 tensors, as far as a ledger knows them."""
    tensors = [f"visual.transformer.resblocks.{n // 15}.attention.weight_{n % 15}" for n in range(150)]
    columns = {f"model_{number}": f"{number:064x}" for number in range(16)}
    pool = SimpleNamespace(columns=tuple(columns), fingerprints=columns, sizes=dict.fromkeys(tensors, 1000))
    keys = SimpleNamespace(of_condition=lambda *_: "ab" * 32, of_mix=lambda mix, *_: f"{hash(mix):064x}")
    return cast(Pool, pool), cast(Keys, keys)


def test_a_mix_takes_little_space_and_time(tmp_path: Path) -> None:
    pool, keys = large_pool()
    ledger = Ledger(tmp_path, pool, keys)
    groups = make_groups(10, pool.sizes)
    mixes = [random_mix(groups, pool.columns, seed) for seed in range(100)]
    took = []
    for mix in mixes:
        started = time.perf_counter()
        ledger.enter(keys.of_mix(mix, ""), mix, "")
        took.append(time.perf_counter() - started)
    size = ledger.path_of("").stat().st_size
    assert size < 20_000 + 100 * 2_200
    assert [mix for _, mix in ledger.read("")] == mixes
    assert np.median(took) < 0.005  # 0.2 ms where nothing else runs


def test_lines_that_a_killed_process_tore_spoil_no_other(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = opened(clip_pool_template, tmp_path)
    mixes = mixes_of(objective)[:3]
    for mix in mixes[:2]:
        objective.score(mix)
    (path,) = (tmp_path / "ledger").rglob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    heard = Recorder()
    again = opened(clip_pool_template, tmp_path, heard)
    again.score(mixes[2])
    assert known(again) == [mixes[0], mixes[2]]
    assert len(heard.warnings) == 1
    assert heard.warnings[0].startswith(f"damaged ledger of mixes {path} (line 4: ")


def test_damage_anywhere_is_told_and_leaves_the_others(clip_pool_template: Path, tmp_path: Path) -> None:
    heard = Recorder()
    objective = opened(clip_pool_template, tmp_path, heard)
    mixes = mixes_of(objective)
    for mix in mixes:
        objective.score(mix)
    (path,) = (tmp_path / "ledger").rglob("*.jsonl")
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, len(content), 150):
        heard.warnings.clear()
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        found = known(objective)
        assert [mix for mix in mixes if mix in found] == found
        assert (len(found) < len(mixes)) <= bool(heard.warnings)
        assert len(heard.warnings) <= 1


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """The last line with other values, under a checksum that fits."""

    def rewrite(content: bytes) -> bytes:
        *lines, last = content.splitlines()
        values = json.loads(last)
        change(values)
        return b"\n".join([*lines, json.dumps(with_checksum(values)).encode()]) + b"\n"

    return rewrite


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "texts": lambda content: content + b"hello\n",
    "list": lambda content: content + b"[]\n",
    "nothing": lambda content: content + b"\x00" * 5000 + b"\n",
    "no UTF-8": lambda content: content + b"\xff\n",
    "deep": lambda content: content + b"[" * 100_000 + b"\n",
    "no frame": rewritten(lambda values: values.update(frame="0" * 16)),
    "no such column": rewritten(lambda values: values.update(used=[0, 99])),
    "a column below": rewritten(lambda values: values.update(used=[-1, 0])),
    "a fraction of a column": rewritten(lambda values: values.update(used=[0.5])),
    "no columns": rewritten(lambda values: values.update(used=[], coefficients="")),
    "other coefficients": rewritten(lambda values: values.update(coefficients="AAAA")),
    "no base64": rewritten(lambda values: values.update(coefficients="?" * 8)),
    "numbers": rewritten(lambda values: values.update(coefficients=[1.0])),
    "a key that is none": rewritten(lambda values: values.update(key=5)),
    "groups that are none": rewritten(lambda values: values.update(columns=[], groups=[["a", []]])),
    "groups twice": rewritten(lambda values: values.update(columns=[], groups=[["a", ["x"]], ["b", ["x"]]])),
    "long": lambda content: content + b" " * (2**24 + 1),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_run_wrote_is_passed_over(tmp_path: Path, case: str) -> None:
    heard = Recorder()
    pool = save_pool(tmp_path / "pool", random_states(3))
    ledger = ledger_of(pool, tmp_path, heard)
    groups = make_groups("2", pool.sizes)
    mixes = [random_mix(groups, pool.columns, seed) for seed in range(3)]
    for mix in mixes:
        ledger.enter(ledger._keys.of_mix(mix, "split"), mix, "split")
    path = ledger.path_of("split")
    path.write_bytes(HOSTILE[case](path.read_bytes()))
    found = [mix for _, mix in ledger.read("split")]
    assert found[:2] == mixes[:2]
    assert len(heard.warnings) == 1
    assert f"damaged ledger of mixes {path} (" in heard.warnings[0]


def test_coefficients_that_are_not_those_of_the_key_are_no_mix(tmp_path: Path) -> None:
    """Under a checksum that fits: what is known was scored."""
    pool = save_pool(tmp_path / "pool", random_states(3))
    ledger = ledger_of(pool, tmp_path)
    groups = make_groups("2", pool.sizes)
    one, two = (random_mix(groups, pool.columns, seed) for seed in range(2))
    ledger.enter(ledger._keys.of_mix(one, "split"), two, "split")
    assert ledger.read("split") == []


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
@pytest.mark.parametrize("place", ["folder", "link", "pipe", "file"])
def test_a_ledger_that_cannot_be_written_is_told_once(clip_pool_template: Path, tmp_path: Path, place: str) -> None:
    heard = Recorder()
    objective = opened(clip_pool_template, tmp_path / "cache", heard)
    mixes = mixes_of(objective)
    objective.score(mixes[0])
    (path,) = (tmp_path / "cache" / "ledger").rglob("*.jsonl")
    path.unlink()
    if place == "folder":
        path.mkdir()
    elif place == "link":
        (tmp_path / "elsewhere").write_text("mine\n")
        path.symlink_to(tmp_path / "elsewhere")
    elif place == "pipe":
        os.mkfifo(path)
    else:
        shutil.rmtree(tmp_path / "cache" / "ledger")
        (tmp_path / "cache" / "ledger").write_text("")
    again = opened(clip_pool_template, tmp_path / "cache", heard)
    for mix in mixes[:3]:
        again.score(mix)
    assert len([text for text in heard.warnings if "cannot be written" in text]) == 1
    assert known(again) == []
    assert again.score(mixes[2]).cached
    if place == "link":
        assert (tmp_path / "elsewhere").read_text() == "mine\n"
