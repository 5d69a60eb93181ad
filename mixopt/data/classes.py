"""The classes of a source, matched by name to those of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixopt.data.class_map import Target
from mixopt.data.source import Reading
from mixopt.errors import DataError, names
from mixopt.listener import Listener

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Matched:
    """Labels in the model's numbering.

    Attributes:
        labels: ``[n]``.
        classes: The names of the classes by their numbers, where they are known.
        among: The classes that the split has, where these are not all and logits are restricted to them.
    """

    labels: Labels
    classes: tuple[str, ...] | None
    among: tuple[int, ...] | None = None


def match_classes(
    path: Path,
    labels: Labels,
    classes: Sequence[str] | None,
    wanted: Sequence[str] | None,
    reading: Reading,
    listener: Listener,
) -> Matched:
    """Labels in the model's numbering.

    Args:
        path: The source, for messages.
        labels: ``[n]``, in the source's own numbering.
        classes: The name of each label, where the source knows them.
        wanted: The model's, in the order of its logits, where they are known.
        reading: What codes stand for, and whether some of the model's classes will do.
        listener: Told what was matched how.

    Raises:
        DataError: Labels beyond the classes, or classes that are not the model's.
    """
    _check_range(path, labels, classes, wanted)
    if classes is None:
        if reading.codes and wanted is not None:
            listener.info(f"{path}: its labels are numbers of the model's classes already; --class-map is not used")
        return Matched(labels, None if wanted is None else tuple(wanted))
    targets: list[Target] = [reading.codes.get(name, name) for name in classes]
    if wanted is None:
        return _unnamed(path, labels, targets)
    if targets == list(wanted):
        return Matched(labels, tuple(wanted))
    places = _places_of(path, labels, targets, wanted, listener)
    mapping = np.array([-1 if place is None else place for place in places], dtype=np.int64)
    declared = sorted(place for place in places if place is not None)
    if len(set(declared)) < len(declared):
        raise DataError(f"{path}: its classes are {_shown(targets)}, two of which are one of the model's; correct them")
    absent = [name for number, name in enumerate(wanted) if number not in set(declared)]
    if absent and not reading.takes_some:
        raise _not_the_models(path, targets, wanted, f"missing: {names(absent)}")
    if not np.array_equal(mapping[mapping >= 0], np.arange(len(wanted))) and not absent:
        listener.info(f"{path}: its classes stand in another order than classnames; labels are matched by name")
    among = _among(path, declared, len(wanted), reading, listener) if absent else None
    return Matched(mapping[labels], tuple(wanted), among)


def _among(path: Path, declared: list[int], count: int, reading: Reading, listener: Listener) -> tuple[int, ...] | None:
    """What logits are restricted to where a split has some of the classes."""
    has = f"{path}: has {len(declared)} of the model's {count} classes"
    if not reading.restricts:
        listener.info(f"{has}; scored over all {count} (--all-classes)")
        return None
    if len(declared) < 2:
        raise DataError(f"{has}, among which every answer is right; --all-classes scores over all {count}")
    listener.info(f"{has}; logits are restricted to these (--all-classes scores over all)")
    return tuple(declared)


def _check_range(path: Path, labels: Labels, classes: Sequence[str] | None, wanted: Sequence[str] | None) -> None:
    known = len(classes) if classes is not None else len(wanted) if wanted is not None else None
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (known is not None and high >= known):
        expected = "0 and more" if known is None else f"0 to {known - 1} as there are {known} classes"
        raise DataError(f"{path}: labels go from {low} to {high}, expected {expected}")


def _unnamed(path: Path, labels: Labels, targets: Sequence[Target]) -> Matched:
    """Where nobody knows the model's classes: the numbers that a class map gives, or the source's own."""
    if not any(isinstance(target, int) for target in targets):
        return Matched(labels, tuple(str(target) for target in targets))
    used = set(np.unique(labels).tolist())
    if odd := [str(target) for number, target in enumerate(targets) if isinstance(target, str) and number in used]:
        raise DataError(
            f"{path}: --class-map gives no number for {names(odd)}, and the model's class names are unknown"
        )
    mapping = np.array([target if isinstance(target, int) else -1 for target in targets], dtype=np.int64)
    return Matched(mapping[labels], None)


def _places_of(
    path: Path, labels: Labels, targets: Sequence[Target], wanted: Sequence[str], listener: Listener
) -> list[int | None]:
    """The number of each class in the model; None for one that is unknown and has no sample."""
    # Names as they stand first: "Red" and "red" may be two classes.
    literal = _numbers(wanted)
    exact = _numbers(_plain(name) for name in wanted)
    # Lists of ImageNet's classes have several names for one: "tench, Tinca tinca".
    first = _numbers(_plain(name.partition(",")[0]) for name in wanted)
    used = set(np.unique(labels).tolist())

    def place(target: Target) -> int | None:
        if isinstance(target, int):
            return target if target < len(wanted) else None
        plain = exact.get(_plain(target), first.get(_plain(target.partition(",")[0])))
        return literal.get(target, plain)

    found = [place(target) for target in targets]
    if any(each is None for each in found) and _are_numbers(targets, len(wanted)):
        listener.info(f"{path}: its classes are called by the numbers of the model's, {_shown(targets)}")
        return [int(target) for target in targets]
    # A name without a sample is no matter: a folder that holds something else stands beside class folders.
    strange = [str(target) for number, target in enumerate(targets) if found[number] is None and number in used]
    if strange:
        twice = [name for name, count in Counter(map(_plain, wanted)).items() if count > 1]
        more = f"; the model has {names(twice)} twice" if twice else ""
        raise _not_the_models(path, targets, wanted, f"unknown: {names(strange)}{more}")
    return found


def _are_numbers(targets: Sequence[Target], count: int) -> bool:
    """Whether the names are the numbers of all classes, in the order in which they sort as texts too.

    Models trained on folders called 0 to 10 have them in the order 0, 1, 10, 2: then nobody can tell which is meant.
    """
    if not all(isinstance(target, str) and target.isdecimal() for target in targets):
        return False
    return [int(target) for target in targets] == list(range(count))


def _numbers(plain: Iterable[str]) -> dict[str, int]:
    """Name to number, of the names that stand there once."""
    every = list(plain)
    counts = Counter(every)
    return {name: number for number, name in enumerate(every) if counts[name] == 1}


def _not_the_models(path: Path, targets: Sequence[Target], wanted: Sequence[str], why: str) -> DataError:
    return DataError(
        f"{path}: its classes are not those of the model: expected {names(wanted)}; found {_shown(targets)} ({why}). "
        "Correct classnames in pool.toml or the classes of the split, or say what its names stand for: --class-map FILE"
    )


def _shown(targets: Sequence[Target]) -> str:
    return names(map(str, targets))


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()
