"""Objective and cache: scored once by content, whatever the name, the order or the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt import Mix, Objective, ScoreError, SpecError, load_spec, one_hot, open_objective
from mixopt.scoring.outcomes import Outcomes
from mixopt.untrusted.arrays import packed, unpacked
from mixopt.values.groups import make_groups
from mixopt.values.metrics import METRICS
from tests.conftest import random_mix
from tests.counting import count_fused
from tests.listening import Recorder


def opened(pool: Path, cache: Path, **options: Any) -> Objective:
    return open_objective(load_spec({"models": pool, "cache": cache, "device": "cpu", "confirm": 0, **options}))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts evaluations that are really computed."""
    return count_fused(monkeypatch)


def test_score_is_the_metric_of_the_outcomes(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = opened(clip_pool_template, tmp_path)
    mix = random_mix(make_groups("block", objective.pool.sizes), objective.pool.columns)
    score = objective.score(mix)
    labels = objective.evaluators["validation"].split.labels
    assert score.value == np.mean(score.outcomes.predicted == labels)
    assert set(score.metrics) == set(METRICS) - {"f1", "top5"}, "all that there are for four classes"
    assert score.metrics["nll"] == np.mean(score.outcomes.losses)
    assert not score.cached


def test_a_second_score_comes_from_the_cache_unchanged(
    clip_pool_template: Path, tmp_path: Path, computed: list[int]
) -> None:
    mix = random_mix(make_groups("block", opened(clip_pool_template, tmp_path).pool.sizes), _columns())
    first = opened(clip_pool_template, tmp_path).score(mix)
    again = opened(clip_pool_template, tmp_path, metric="nll").score(mix)
    assert computed == [1]
    assert again.cached
    assert again.metrics == first.metrics
    assert np.array_equal(again.outcomes.losses, first.outcomes.losses)
    assert again.value == first.metrics["nll"]


def test_more_ingredients_and_other_names_share_outcomes(clip_pool: Path, tmp_path: Path, computed: list[int]) -> None:
    objective = opened(clip_pool, tmp_path / "cache")
    groups = make_groups("2", objective.pool.sizes)
    few = Mix(groups, objective.pool.columns, [[0.25, 0.75, 0, 0, 0], [0.5, 0, 0, 0, 0.5]])  # type: ignore[arg-type]
    score = objective.score(few)
    (clip_pool / "model_1.safetensors").rename(clip_pool / "model_00.safetensors")
    renamed = opened(clip_pool, tmp_path / "cache")
    places = {"model_00": 1, "model_0": 0, "model_2": 2, "model_3": 3, "base": 4}
    assert set(renamed.pool.columns) == set(places)
    rows = few.coefficients[:, [places[name] for name in renamed.pool.columns]]
    assert renamed.score(Mix(groups, renamed.pool.columns, rows)).metrics == score.metrics
    (clip_pool / "model_3.safetensors").unlink()
    fewer = opened(clip_pool, tmp_path / "cache")
    rows = few.coefficients[:, [places[name] for name in fewer.pool.columns]]
    assert fewer.score(Mix(groups, fewer.pool.columns, rows)).cached
    assert computed == [1]


@pytest.mark.parametrize("change", ["split", "templates", "preprocess", "dtype", "coefficient"])
def test_what_outcomes_depend_on_is_in_the_key(change: str, clip_pool: Path, tmp_path: Path) -> None:
    objective = opened(clip_pool, tmp_path)
    mix = random_mix(make_groups("2", objective.pool.sizes), objective.pool.columns)
    before = objective.key(mix, "validation")
    options: dict[str, Any] = {}
    if change == "split":
        options["limit"] = 50
    elif change == "templates":
        options["templates"] = ("a {}",)
    elif change == "preprocess":
        config = clip_pool / "open_clip_config.json"
        config.write_text(config.read_text().replace("0.25, 0.25, 0.25", "0.25, 0.25, 0.2"))
    elif change == "dtype":
        options["dtype"] = "fp16"
    else:
        rows = mix.coefficients.copy()
        rows[0, :2] += [1e-12, -1e-12]
        mix = Mix(mix.groups, mix.columns, rows)
    other = opened(clip_pool, tmp_path, **options)
    assert other.key(mix, "validation") != before


def test_other_weights_under_the_same_name_have_another_key(clip_pool: Path, tmp_path: Path) -> None:
    def key() -> str:
        objective = opened(clip_pool, tmp_path)
        return objective.key(one_hot(make_groups("2", objective.pool.sizes), objective.pool.columns, "model_0"), "test")

    before = key()
    (clip_pool / "model_1.safetensors").replace(clip_pool / "model_0.safetensors")
    assert key() != before


def test_a_damaged_entry_is_scored_again_with_a_warning(
    clip_pool_template: Path, tmp_path: Path, computed: list[int]
) -> None:
    heard = Recorder()
    spec = load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu"})
    objective = open_objective(spec, heard.listener)
    mix = random_mix(make_groups("2", objective.pool.sizes), objective.pool.columns)
    first = objective.score(mix)
    entries = list((tmp_path / "outcomes").rglob("*.npz"))
    assert len(entries) == 1
    for damage in (b"", b"not an entry", entries[0].read_bytes()[:40]):
        entries[0].write_bytes(damage)
        assert objective.score(mix).metrics == first.metrics
        assert "damaged cache entry" in heard.warnings[-1]
    assert computed == [4]
    assert objective.score(mix).cached


def test_evaluations_are_distinct_mixes_cached_or_not(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = opened(clip_pool_template, tmp_path)
    groups = make_groups("whole", objective.pool.sizes)
    mixes = [one_hot(groups, objective.pool.columns, name) for name in ("model_0", "model_1")]
    first, second = objective.counting(), objective.counting()
    for mix in (*mixes, mixes[0]):
        first.score(mix)
    second.score(mixes[0])
    second.score(mixes[1], "test")
    assert (first.tally.evaluations, len(first.tally.runs), first.tally.images) == (2, 2, 2 * 96)
    assert (second.tally.evaluations, len(second.tally.runs)) == (1, 1), "what ran is of the test split"
    assert second.tally.computed(second.scorer.ran) == 1, "the first one ran it"
    assert first.tally.merged(first.tally) == first.tally, "twice is once"
    assert first.tally.merged(second.tally).evaluations == 2
    assert objective.tally.evaluations == 0


def test_a_mix_that_overflows_names_tensor_and_group(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = opened(clip_pool_template, tmp_path, dtype="fp16")
    groups = make_groups("block", objective.pool.sizes)
    rows = np.tile([1.0, 0, 0, 0, 0], (len(groups), 1))
    rows[1, :2] = [1e7, 1 - 1e7]
    mix = Mix(groups, objective.pool.columns, rows)
    for _ in range(2):  # computed, then from the cache
        with pytest.raises(ScoreError, match=r"resblocks\.0") as caught:
            objective.score(mix)
        assert caught.value.group == groups.names[1]


def _columns() -> tuple[str, ...]:
    return ("model_0", "model_1", "model_2", "model_3", "base")


# --------------------------------------------------------------------------------------------- steering and racing


def halves(pool: Path, cache: Path, **options: Any) -> tuple[Objective, Objective]:
    """An objective with half of its samples held back, and one without, each with a cache of its own."""
    return (
        opened(pool, cache / "half", confirm=0.5, batch_size=7, **options),
        opened(pool, cache / "all", confirm=0, batch_size=7, **options),
    )


def test_only_the_first_samples_steer(clip_pool_template: Path, tmp_path: Path) -> None:
    half, full = halves(clip_pool_template, tmp_path)
    mix = random_mix(make_groups("block", half.pool.sizes), half.pool.columns)
    steering, samples = half.samples, len(half.evaluators["validation"].split)
    assert steering == samples - round(samples * 0.5) < samples
    score, expected = half.score(mix), full.score(mix)
    assert len(score.outcomes) == score.images == steering
    np.testing.assert_allclose(score.outcomes.losses, expected.outcomes.losses[:steering], atol=1e-6)
    labels = half.evaluators["validation"].split.labels[:steering]
    assert score.value == np.mean(score.outcomes.predicted == labels)


def test_whole_scores_extend_what_steered_to_the_same_bits(
    clip_pool_template: Path, tmp_path: Path, computed: list[int]
) -> None:
    half, _ = halves(clip_pool_template, tmp_path)
    mix = random_mix(make_groups("block", half.pool.sizes), half.pool.columns)
    first = half.score(mix)
    extended = half.whole().score(mix)
    at_once = opened(clip_pool_template, tmp_path / "fresh", confirm=0.5, batch_size=7).whole().score(mix)
    assert np.array_equal(extended.outcomes.losses, at_once.outcomes.losses)
    assert np.array_equal(extended.outcomes.losses[: len(first.outcomes)], first.outcomes.losses)
    assert not extended.cached
    assert half.whole().score(mix).cached
    again = half.score(mix)
    assert again.cached
    assert np.array_equal(again.outcomes.losses, first.outcomes.losses)
    assert computed == [3]


def test_gradients_count_in_passes_over_the_tuning_samples(clip_pool_template: Path, tmp_path: Path) -> None:
    half, _ = halves(clip_pool_template, tmp_path)
    mix = random_mix(make_groups("whole", half.pool.sizes), half.pool.columns)
    counted = half.counting()
    counted.gradient(mix, np.arange(half.samples))
    assert counted.tally.evaluations == 1
    assert counted.tally.images == half.samples


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Looks every 10 samples; gives up at a number of samples that tests put in."""
    at: list[int] = []
    monkeypatch.setattr("mixopt.scoring.looks.looks", lambda total, batch: [*range(10, total, 10), total])
    monkeypatch.setattr("mixopt.scoring.looks.out_of_reach", lambda gains, total, level: len(gains) in at)
    return at


def test_a_race_tells_the_incumbents_score_and_the_paired_difference(
    clip_pool_template: Path, tmp_path: Path, impatient: list[int]
) -> None:
    objective = opened(clip_pool_template, tmp_path, confirm=0)
    mixes = [random_mix(make_groups("block", objective.pool.sizes), objective.pool.columns, seed=n) for n in (0, 1)]
    incumbent = objective.score(mixes[0])
    impatient.append(30)
    score = objective.race(mixes[1], incumbent)
    assert score.estimated
    assert len(score.outcomes) == score.images == 30
    labels = objective.evaluators["validation"].split.labels[:30]
    hits = [each.outcomes.predicted[:30] == labels for each in (score, incumbent)]
    assert score.value == pytest.approx(incumbent.value + np.mean(hits[0]) - np.mean(hits[1]))
    assert score.signal == score.value
    assert objective.tally.asked[objective.key(mixes[1], "validation")][0] == 30
    impatient.clear()
    full = objective.race(mixes[1], incumbent)
    assert not full.estimated
    assert full.value == objective.score(mixes[1]).value
    assert np.array_equal(full.outcomes.losses[:30], score.outcomes.losses)


def test_a_race_does_not_depend_on_what_is_cached(
    clip_pool_template: Path, tmp_path: Path, impatient: list[int], computed: list[int]
) -> None:
    objective = opened(clip_pool_template, tmp_path, confirm=0)
    mixes = [random_mix(make_groups("block", objective.pool.sizes), objective.pool.columns, seed=n) for n in (0, 1)]
    incumbent = objective.score(mixes[0])
    objective.score(mixes[1])
    impatient.append(20)
    score = objective.race(mixes[1], incumbent)
    assert computed == [2]
    assert (score.estimated, score.cached, len(score.outcomes)) == (True, True, 20)


def test_a_race_by_a_metric_that_is_minimised(clip_pool_template: Path, tmp_path: Path, impatient: list[int]) -> None:
    objective = opened(clip_pool_template, tmp_path, confirm=0, metric="nll")
    mixes = [random_mix(make_groups("block", objective.pool.sizes), objective.pool.columns, seed=n) for n in (0, 1)]
    incumbent = objective.score(mixes[0])
    impatient.append(20)
    score = objective.race(mixes[1], incumbent)
    worse = np.mean(score.outcomes.losses - incumbent.outcomes.losses[:20])
    assert score.value == pytest.approx(incumbent.value + worse)


@pytest.mark.parametrize("name", ["f1_macro", "matthews", "top2", "worst_class_recall", "ece"])
def test_a_race_by_a_metric_of_whole_counts(
    name: str, clip_pool_template: Path, tmp_path: Path, impatient: list[int]
) -> None:
    objective = opened(clip_pool_template, tmp_path, metric=name)
    assert objective.metric.name == name
    mixes = [random_mix(make_groups("block", objective.pool.sizes), objective.pool.columns, seed=n) for n in (0, 1)]
    incumbent = objective.score(mixes[0])
    assert incumbent.value == incumbent.metrics[name]
    impatient.append(30)
    score = objective.race(mixes[1], incumbent)
    labels = objective.evaluators["validation"].split.labels[:30]
    ours, theirs = (objective.metric.of(labels, each.outcomes.first(30)) for each in (score, incumbent))
    assert score.value == pytest.approx(incumbent.value + ours - theirs)
    assert objective.score(mixes[0], "test").metrics.keys() >= {name}


def older(entry: Path, *left_out: str) -> None:
    """An entry as it was before ranks, confidences and logits were kept, or some of these."""
    later = left_out or ("above", "confidence", "logits")
    with entry.open("rb") as stream:
        arrays = {name: array for name, array in unpacked(stream).items() if not name.startswith(later)}
    entry.write_bytes(packed(arrays))


def test_older_entries_are_read_where_they_tell_enough(
    clip_pool_template: Path, tmp_path: Path, computed: list[int]
) -> None:
    objective = opened(clip_pool_template, tmp_path)
    mix = random_mix(make_groups("2", objective.pool.sizes), objective.pool.columns)
    first = objective.score(mix)
    (entry,) = (tmp_path / "outcomes").rglob("*.npz")
    older(entry)
    for name in ("accuracy", "f1_macro", "matthews", "worst_class_recall", "nll"):
        again = opened(clip_pool_template, tmp_path, metric=name).score(mix)
        assert again.cached
        assert again.metrics == {name: value for name, value in first.metrics.items() if name != "ece"}
    assert computed == [1]
    anew = opened(clip_pool_template, tmp_path, metric="ece").score(mix)
    assert computed == [2]
    assert not anew.cached
    assert anew.metrics == first.metrics
    assert opened(clip_pool_template, tmp_path).score(mix).metrics == first.metrics, "the entry tells all again"


def test_an_older_entry_of_some_samples_is_gone_on_with(
    clip_pool_template: Path, tmp_path: Path, impatient: list[int]
) -> None:
    objective = opened(clip_pool_template, tmp_path)
    mixes = [random_mix(make_groups("block", objective.pool.sizes), objective.pool.columns, seed=n) for n in (0, 1)]
    incumbent = objective.score(mixes[0])
    impatient.append(30)
    objective.race(mixes[1], incumbent)
    for entry in (tmp_path / "outcomes").rglob("*.npz"):
        older(entry)
    whole = objective.score(mixes[1])
    assert len(whole.outcomes) == 96
    assert "ece" not in whole.metrics, "of the first samples it is not known"
    fresh = opened(clip_pool_template, tmp_path / "other").score(mixes[1])
    assert np.array_equal(whole.outcomes.losses, fresh.outcomes.losses)


@pytest.mark.parametrize(("metric", "says"), [("f1", "use f1_macro"), ("top5", "use accuracy"), ("top4", "top4 is 1")])
def test_a_metric_that_is_not_for_the_split_is_one_error(
    metric: str, says: str, clip_pool_template: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=rf"^--metric {metric}: .*val\.npz: .*{says}"):
        opened(clip_pool_template, tmp_path, metric=metric)


def bits_of(outcomes: Outcomes) -> bytes:
    assert outcomes.logits is not None
    return outcomes.logits.values.tobytes()


def test_logits_are_the_same_bits_computed_and_read(clip_pool_template: Path, tmp_path: Path) -> None:
    mix = random_mix(make_groups("2", opened(clip_pool_template, tmp_path).pool.sizes), _columns())
    computed, read = (opened(clip_pool_template, tmp_path).score(mix) for _ in range(2))
    assert read.cached
    assert bits_of(read.outcomes) == bits_of(computed.outcomes)


def test_an_entry_without_logits_is_computed_again_where_they_are_needed(
    clip_pool_template: Path, tmp_path: Path, computed: list[int]
) -> None:
    objective = opened(clip_pool_template, tmp_path)
    mix = random_mix(make_groups("2", objective.pool.sizes), objective.pool.columns)
    first = objective.score(mix)
    (entry,) = (tmp_path / "outcomes").rglob("*.npz")
    older(entry, "logits")
    old = objective.score(mix)
    assert (old.cached, old.outcomes.logits, old.metrics) == (True, None, first.metrics)
    needing = objective.needing("logits")
    assert needing.tally is objective.tally
    anew = needing.score(mix)
    assert computed == [2]
    assert not anew.cached
    assert bits_of(anew.outcomes) == bits_of(first.outcomes)
    assert needing.score(mix).cached
    assert bits_of(objective.score(mix).outcomes) == bits_of(first.outcomes), "the entry tells all again"


def test_a_race_that_goes_on_keeps_logits(clip_pool_template: Path, tmp_path: Path, impatient: list[int]) -> None:
    objective = opened(clip_pool_template, tmp_path).needing("logits")
    mixes = [random_mix(make_groups("block", objective.pool.sizes), objective.pool.columns, seed=n) for n in (0, 1)]
    incumbent = objective.score(mixes[0])
    impatient.append(30)
    few = objective.race(mixes[1], incumbent)
    whole = objective.score(mixes[1])
    fresh = opened(clip_pool_template, tmp_path / "other").score(mixes[1])
    assert len(few.outcomes) == 30
    assert bits_of(few.outcomes) == bits_of(fresh.outcomes.first(30))
    assert bits_of(whole.outcomes) == bits_of(fresh.outcomes)
    (entry,) = (each for each in (tmp_path / "outcomes").rglob(f"{objective.key(mixes[1], 'validation')}.npz"))
    older(entry, "logits")
    impatient.append(10)
    again = objective.race(mixes[1], incumbent)
    assert (len(again.outcomes), again.cached) == (10, False)
    assert bits_of(again.outcomes) == bits_of(fresh.outcomes.first(10))


def test_ensembles_keep_logits(clip_pool_template: Path, tmp_path: Path) -> None:
    objective = opened(clip_pool_template, tmp_path)
    groups = make_groups("2", objective.pool.sizes)
    members = [one_hot(groups, objective.pool.columns, name) for name in objective.pool.columns[:2]]
    computed, read = (objective.score_ensemble(members) for _ in range(2))
    assert read.cached
    assert bits_of(computed.outcomes) == bits_of(read.outcomes)
