"""Synthetic shifts: five in turn, the same every time, alike at every size, decoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mixopt.data import open_split
from mixopt.data.shifts import SHIFTS, open_shifted, shifted
from mixopt.families.image_encoding import image_encoding
from mixopt.values.samples import Preprocess, Samples
from tests.conftest import make_images

KINDS = list(SHIFTS)
ENCODING = image_encoding(Preprocess(None, (0.5,) * 3, (0.25,) * 3, lambda image: image, "test"))


@pytest.fixture
def split(tmp_path: Path) -> Samples:
    np.savez(tmp_path / "val.npz", **make_images(23, seed=0))
    return open_split(tmp_path / "val.npz", "validation", ENCODING, classnames=None, cache=tmp_path / "cache")


def picture(side: int) -> NDArray[np.uint8]:
    """One smooth coloured image, the same at every size but for sampling, ``[1, side, side, 3]``."""
    place = (np.arange(side) + 0.5) / side
    waves = [np.outer(np.sin(7 * place + phase), np.cos(11 * place)) for phase in (0.0, 1.0, 2.0)]
    return (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)[None]


def test_every_sample_is_shifted_by_its_number_and_keeps_its_label(split: Samples, tmp_path: Path) -> None:
    found = open_shifted(split, "synthetic", tmp_path / "cache")
    assert np.array_equal(found.labels, split.labels)
    assert found.arrays["images"].shape == split.arrays["images"].shape
    for number, image in enumerate(found.arrays["images"]):
        kind = KINDS[number % 5]
        alone = shifted(np.array(split.arrays["images"][number : number + 1]), kind, np.array([number]))[0]
        assert np.max(np.abs(alone.astype(int) - image)) <= 1, kind  # a batch may round otherwise
        assert not np.array_equal(image, split.arrays["images"][number])


def test_it_is_decoded_once_and_has_a_fingerprint_of_its_own(
    split: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = open_shifted(split, "synthetic", tmp_path / "cache")
    monkeypatch.setattr("mixopt.data.shifts.shifted", None)
    again = open_shifted(split, "synthetic", tmp_path / "cache")
    assert isinstance(again.arrays["images"], np.memmap)
    assert again.fingerprint == found.fingerprint != split.fingerprint


def test_another_severity_is_another_copy(split: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_shifted(split, "synthetic", tmp_path / "cache")
    monkeypatch.setitem(SHIFTS, "contrast", {"factor": 0.9})
    assert open_shifted(split, "synthetic", tmp_path / "cache").fingerprint != before.fingerprint


def test_a_shorter_split_has_the_same_images(split: Samples, tmp_path: Path) -> None:
    whole = open_shifted(split, "synthetic", tmp_path / "cache")
    short = open_shifted(split.first(11), "synthetic", tmp_path / "cache")
    assert np.max(np.abs(short.arrays["images"].astype(int) - whole.arrays["images"][:11])) <= 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "noise"])
def test_severity_grows_with_the_image(kind: str) -> None:
    small, large = (
        float(np.abs(shifted(picture(side), kind, np.array([0])).astype(float) - picture(side)).mean())
        for side in (32, 224)
    )
    # Halving the resolution costs a smooth image ever less, the larger it is; all others are alike.
    assert small >= large if kind == "resolution" else large == pytest.approx(small, rel=0.25)


def test_each_shift_does_what_it_is_called() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    made = {kind: shifted(image, kind, np.array([7])).astype(float) for kind in KINDS}

    def steps(pixels: NDArray[np.float64]) -> float:
        return float(np.abs(np.diff(pixels, axis=2)).mean())

    before = steps(image.astype(float))
    assert steps(made["blur"]) < before
    assert steps(made["resolution"]) < before
    assert made["contrast"].std() == pytest.approx(0.4 * image.std(), rel=0.05)
    assert np.array_equal(made["edges"][..., 0], made["edges"][..., 1])
    flat = np.full((1, 32, 32, 3), 90, dtype=np.uint8)
    assert shifted(flat, "edges", np.array([0])).min() >= 254  # no edges: white
    noise = shifted(flat, "noise", np.array([0])).astype(float) - 90
    assert noise.std() == pytest.approx(25.5, rel=0.05)
    assert not np.array_equal(shifted(flat, "noise", np.array([1])), shifted(flat, "noise", np.array([0])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (7, 3)])
def test_images_of_any_size_can_be_shifted(kind: str, shape: tuple[int, int]) -> None:
    assert shifted(np.full((2, *shape, 3), 9, dtype=np.uint8), kind, np.arange(2)).shape == (2, *shape, 3)
