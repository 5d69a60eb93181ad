"""diagnosis.json: what is written is read, and what was damaged is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mixopt.errors import RunError
from mixopt.reporting.diagnosis import CheckpointInfo, Diagnosis, Midpoints, RowMix, diagnosis_from


def made() -> Diagnosis:
    one = CheckpointInfo(
        name="a", hash="00", distance=1.0, base_cosine=None, mean_cosine=0.5, scores={"validation": 0.5}
    )
    known = {"lr": 0.1, "aug": "flip", "on": True}
    return Diagnosis(
        version="1",
        metric="accuracy",
        base=None,
        checkpoints=(
            one,
            one.model_copy(update={"name": "b", "hyperparameters": known}),
        ),
        midpoints=Midpoints(names=("a", "b"), samples=9, gains=((None, 0.25), (0.25, None))),
        mixes=(RowMix(row="uniform", columns=("a", "b"), groups=("all",), coefficients=((0.5, 0.5),)),),
        missing={"trials": "too dear"},
        samples={"test": 3},
    )


def test_what_is_written_is_read() -> None:
    assert diagnosis_from(made().to_json(), "d.json") == made()
    assert made().mix_of("uniform") is not None
    assert made().mix_of("greedy") is None
    assert json.loads(made().to_json())["checksum"]


def refusal(text: str) -> str | None:
    """Why a text is refused; None where it is read."""
    try:
        diagnosis_from(text, "d.json")
    except RunError as error:
        return str(error)
    return None


def test_damage_anywhere_is_refused_with_the_file() -> None:
    text, random = made().to_json(), np.random.default_rng(0)
    for _ in range(300):
        place = int(random.integers(0, len(text) - 2))
        letter = "".join(chr(each) for each in random.integers(32, 127, int(random.integers(0, 3))))
        damaged = text[:place] + letter + text[place + int(random.integers(1, 9)) :]
        said = refusal(damaged)
        assert said is None or (said.startswith("d.json") and "the run's own command writes it anew" in said)
        assert said is not None or diagnosis_from(damaged, "d.json") == made(), damaged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "diagnosis format 2, expected 1"),
        ({"midpoints": Midpoints(names=("a", "b"), samples=9, gains=((None,),))}, "midpoints are not by pair"),
        (
            {"mixes": (RowMix(row="x", columns=("a",), groups=("all",), coefficients=((0.5, 0.5),)),)},
            "the mix of x has other rows or columns than it names",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, object], message: str) -> None:
    changed = made().model_copy(update=change)
    with pytest.raises(RunError, match=message):
        diagnosis_from(changed.to_json(), "d.json")
    with pytest.raises(RunError, match="a list, expected 1"):
        diagnosis_from("[]", "d.json")
