"""The classes of a source, matched by name to those of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import DataError, names
from mixopt.listener import Listener


def match_classes(
    path: Path,
    labels: NDArray[np.int64],
    classes: Sequence[str] | None,
    classnames: Sequence[str] | None,
    listener: Listener,
) -> NDArray[np.int64]:
    """Labels in the model's numbering.

    Args:
        path: The source, for messages.
        labels: ``[n]``, in the source's own numbering.
        classes: The name of each label, where the source knows them.
        classnames: The model's, in the order of its logits, where they are known.
        listener: Told where the two stand in another order.

    Raises:
        DataError: Labels beyond the classes, or classes that are not the model's.
    """
    known = len(classes) if classes is not None else len(classnames) if classnames is not None else None
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (known is not None and high >= known):
        wanted = "0 and more" if known is None else f"0 to {known - 1} as there are {known} classes"
        raise DataError(f"{path}: labels go from {low} to {high}, expected {wanted}")
    if classes is None or classnames is None or list(classes) == list(classnames):
        return labels
    places = {_plain(name): number for number, name in enumerate(classnames)}
    found = {_plain(name) for name in classes}
    # A name without a sample is no matter: a folder that holds something else stands beside class folders.
    used = set(np.unique(labels).tolist())
    strange = [name for number, name in enumerate(classes) if _plain(name) not in places and number in used]
    absent = [name for name in classnames if _plain(name) not in found]
    if strange or absent or len(found) != len(classes) or len(places) != len(classnames):
        odd = [f"unknown: {names(strange)}"] if strange else []
        odd += [f"missing: {names(absent)}"] if absent else []
        raise DataError(
            f"{path}: its classes are not those of the model: expected {names(classnames)}; found {names(classes)} "
            f"({'; '.join(odd) or 'a name stands there twice'}). "
            "Correct classnames in pool.toml or the classes of the split"
        )
    mapping = np.array([places.get(_plain(name), -1) for name in classes], dtype=np.int64)
    if not np.array_equal(mapping[mapping >= 0], np.arange(len(classnames))):
        listener.info(f"{path}: its classes stand in another order than classnames; labels are matched by name")
    return mapping[labels]


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()
