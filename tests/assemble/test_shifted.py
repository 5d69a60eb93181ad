"""What tells of a shift beside the splits of an objective: samples without labels, and shifted images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mixopt import load_spec
from mixopt.assemble import Assembly, assemble, uniform_soup
from mixopt.assemble.shifted import with_shifted, with_unlabelled
from mixopt.errors import DataError, SpecError
from mixopt.runs.session import inputs_of
from mixopt.scoring.objective import Objective
from mixopt.spec import StudySpec
from mixopt.values.metrics import METRICS
from mixopt.values.samples import SYNTHETIC, UNLABELLED, VALIDATION
from tests.conftest import make_images
from tests.listening import Recorder
from tests.text_family import write_text_pool


def opened(pool: Path, folder: Path, heard: Recorder | None = None, **options: Any) -> tuple[StudySpec, Assembly, Any]:
    spec = load_spec({"models": pool, "cache": folder / "cache", "device": "cpu", "precision": "fp32", **options})
    listener = (heard or Recorder()).listener
    return spec, assemble(spec, listener), listener


def beside(pool: Path, folder: Path, heard: Recorder | None = None, **options: Any) -> Objective:
    found = with_unlabelled(*opened(pool, folder, heard, **options))
    assert found is not None
    return found


def write_flat(folder: Path, images: Any) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_outcomes_are_those_of_the_same_images_with_labels(clip_pool: Path, tmp_path: Path) -> None:
    with np.load(clip_pool / "shift.npz") as arrays:
        unlabelled = write_flat(tmp_path / "target", arrays["x"][:40])
    heard = Recorder()
    objective = beside(clip_pool, tmp_path, heard, unlabelled=unlabelled).needing("logits")
    mix = uniform_soup(objective.pool)
    ours, theirs = (objective.score(mix, split).outcomes for split in (UNLABELLED, "shift"))
    digests = {row.tobytes(): place for place, row in enumerate(objective.evaluators["shift"].split.digests)}
    places = [digests[row.tobytes()] for row in objective.evaluators[UNLABELLED].split.digests]
    assert len(set(places)) == len(ours) == 40
    assert ours.predicted.tolist() == theirs.predicted[places].tolist()
    np.testing.assert_allclose(ours.confidence, theirs.confidence[places], atol=1e-5)  # type: ignore[index,arg-type]
    # Of four classes all are kept.
    logits = [each.logits.values for each in (ours, theirs) if each.logits is not None]
    np.testing.assert_allclose(logits[0], logits[1][places], atol=1e-4)
    assert heard.warnings == [
        "40 of the 40 unlabelled images are in test split shift too: without their labels, but they take part in a "
        "choice"
    ]


def test_it_stands_beside_the_splits_and_is_weighed_by_nothing(clip_pool: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "target.npz", x=make_images(30, seed=9)["x"])
    spec, assembly, listener = opened(clip_pool, tmp_path, unlabelled=tmp_path / "target.npz")
    found = with_unlabelled(spec, assembly, listener)
    assert found is not None
    assert set(found.evaluators) - set(assembly.objective.evaluators) == {UNLABELLED}
    split = found.evaluators[UNLABELLED].split
    assert (len(split), split.classes, split.among, split.steers) == (30, assembly.family.classnames, None, True)
    assert found.count(UNLABELLED) == 30
    mix = uniform_soup(found.pool)
    assert found.score(mix).value == assembly.objective.score(mix).value
    assert not found.score(mix).beside


# Those that say something where there are four classes.
@pytest.mark.parametrize("metric", [name for name in METRICS if name not in ("f1", "top5")])
def test_every_metric_can_be_scored_beside_it(metric: str, clip_pool_template: Path, tmp_path: Path) -> None:
    """What metrics say of samples without labels means nothing, but they do not stand in the way."""
    np.savez(tmp_path / "target.npz", x=make_images(8, seed=9)["x"])
    objective = beside(clip_pool_template, tmp_path, unlabelled=tmp_path / "target.npz", metric=metric)
    score = objective.weighing({UNLABELLED: 0.5}).score(uniform_soup(objective.pool))
    assert len(score.beside[UNLABELLED].outcomes) == 8


def test_texts(tmp_path: Path) -> None:
    pool = write_text_pool(tmp_path / "pool")
    (tmp_path / "target.jsonl").write_text('{"text": "word1 word2"}\n{"text": "word3"}\n')
    objective = beside(pool, tmp_path, unlabelled=tmp_path / "target.jsonl")
    assert len(objective.score(uniform_soup(objective.pool), UNLABELLED).outcomes) == 2


def test_none_without_the_option(clip_pool_template: Path, tmp_path: Path) -> None:
    assert with_unlabelled(*opened(clip_pool_template, tmp_path)) is None


def test_a_users_own_function_has_no_predictions(clip_pool: Path, tmp_path: Path) -> None:
    data = {"search": "tests.own_functions:fixed"}
    given = opened(clip_pool, tmp_path, data=data, unlabelled=clip_pool / "test.npz", confirm=0)
    with pytest.raises(DataError, match=r"test\.npz \(--unlabelled\): the validation split is scored by your own func"):
        with_unlabelled(*given)


def test_what_is_not_there(clip_pool_template: Path, tmp_path: Path) -> None:
    given = opened(clip_pool_template, tmp_path, unlabelled=tmp_path / "moved")
    with pytest.raises(DataError, match="moved: no such file or folder; --unlabelled takes"):
        with_unlabelled(*given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"robust": "off"}, "--unlabelled: judges the last step for shifts, which robust"),
        ({"shifts": "synthetic"}, "there is none of where other splits steer; leave out this or shifts"),
        ({"select": {"a": "x.npz:0.3"}}, "there is none of where other splits steer; leave out this or select"),
        ({"data": {"test": {"unlabelled": "x.npz"}}}, "a test split is called unlabelled already; give that another"),
        ({"unlabelled": "package.module:function"}, "expected a file or folder of samples, not a function"),
        ({"unlabelled": None, "select": {"unlabelled": "x.npz:0.3"}}, "cannot be called 'unlabelled'"),
    ],
)
def test_what_cannot_go_with_it_is_refused(given: dict[str, Any], told: str, clip_pool_template: Path) -> None:
    with pytest.raises(SpecError, match=told):
        load_spec({"models": clip_pool_template, "unlabelled": "target", **given})


def test_a_run_does_not_write_over_it(clip_pool_template: Path, tmp_path: Path) -> None:
    spec = load_spec({"models": clip_pool_template, "unlabelled": tmp_path / "target.npz"})
    assert tmp_path / "target.npz" in inputs_of(spec)


def test_shifted_images_are_no_test_split_of_that_name(clip_pool: Path, tmp_path: Path) -> None:
    data = {"test": {SYNTHETIC: clip_pool / "shift.npz"}}
    spec, assembly, listener = opened(clip_pool, tmp_path, data=data)
    found = with_shifted(spec, assembly, listener)
    assert found is not None
    theirs = found.evaluators[SYNTHETIC].split
    assert theirs.steers
    assert theirs.labels.tolist() == found.evaluators[VALIDATION].split.labels.tolist()
    assert assembly.objective.evaluators[SYNTHETIC].split.source == str(clip_pool / "shift.npz")
