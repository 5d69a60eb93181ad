"""What a row changed against another, class by class and sample by sample."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixopt.reporting.diagnosis import Changes, ClassChange, Flipped
from mixopt.reporting.rows import LabelledOutcomes
from mixopt.values.samples import IMAGES, Samples

SHOWN = 24  # samples in all, on all splits
SIDE = 80  # pixels of a picture
LONGEST = 280  # letters of a text

# Names and arrays of one record, to what it says; nothing where that is not known.
TextOf = Callable[[Mapping[str, NDArray[Any]]], str]


def changes(
    split: Samples, before: LabelledOutcomes, after: LabelledOutcomes, classes: Sequence[str] | None, text_of: TextOf
) -> Changes:
    """What changed on a split: by class, and the first `SHOWN` samples that did, gained and lost in turn.

    Args:
        split: The samples.
        before: What the reference did on them.
        after: What the row did.
        classes: The name of each label; None shows numbers.
        text_of: What a record says, where it holds no picture.
    """
    labels, was, now = before.labels, before.correct, after.correct
    gained, lost = now & ~was, was & ~now

    def named(label: int) -> str:
        return classes[label] if classes is not None and 0 <= label < len(classes) else str(label)

    by_class = [
        ClassChange(
            name=named(label),
            samples=int(np.sum(labels == label)),
            before=int(np.sum(was & (labels == label))),
            gained=int(np.sum(gained & (labels == label))),
            lost=int(np.sum(lost & (labels == label))),
        )
        for label in np.unique(labels).tolist()
    ]
    in_turn = chain.from_iterable(zip_longest(np.flatnonzero(gained).tolist(), np.flatnonzero(lost).tolist()))
    flipped = [
        Flipped(
            number=number,
            label=named(int(labels[number])),
            before=named(int(before.predicted[number])),
            after=named(int(after.predicted[number])),
            **_shown(split, number, text_of),
        )
        for number in [number for number in in_turn if number is not None][:SHOWN]
    ]
    return Changes(split=split.name, classes=tuple(by_class), flipped=tuple(flipped))


def fewer(found: Sequence[Changes]) -> tuple[Changes, ...]:
    """The same with at most `SHOWN` samples on all splits together, alike many of each."""
    each = SHOWN // max(1, len(found))
    return tuple(one.model_copy(update={"flipped": one.flipped[:each]}) for one in found)


def _shown(split: Samples, number: int, text_of: TextOf) -> dict[str, str]:
    if IMAGES in split.arrays:
        return {"picture": picture(split.arrays[IMAGES][number])}
    text = text_of({name: values[number] for name, values in split.arrays.items()})
    return {"text": text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"}


def picture(pixels: NDArray[np.uint8]) -> str:
    """An image ``[h, w, 3]`` as a small PNG, in base64."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode("ascii")
