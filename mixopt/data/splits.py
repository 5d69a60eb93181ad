"""The splits of a run, opened and checked together: the one that selects, those that steer beside it, the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from mixopt.data import open_split
from mixopt.data.class_map import read_class_map
from mixopt.data.source import Reading
from mixopt.errors import DataError, SpecError
from mixopt.errors import names as listed
from mixopt.imports import is_import_path
from mixopt.listener import Listener
from mixopt.spec import StudySpec
from mixopt.values.samples import SYNTHETIC, VALIDATION, Encoding, Samples


class Wants(Protocol):
    """What a model family says of its samples."""

    @property
    def encoding(self) -> Encoding:
        """What the model wants of its samples."""

    @property
    def classnames(self) -> Sequence[str] | None:
        """Class names in the order of the logits, where the family knows them."""


def open_splits(spec: StudySpec, family: Wants, listener: Listener, *, selects: bool = True) -> dict[str, Samples]:
    """The validation split and the tests by name, the former first.

    Args:
        spec: The options.
        family: Says what the model wants.
        listener: Told about notices.
        selects: Whether anything is chosen on the validation split, which then needs all of the model's classes.

    Raises:
        DataError: A split cannot be used, or the validation split is also a test split.
    """
    wanted: dict[str, Path] = {} if spec.data.validation is None else {VALIDATION: spec.data.validation}
    wanted |= spec.data.test
    # A user's own objective is no split of samples.
    wanted = {name: path for name, path in wanted.items() if not is_import_path(str(path))}
    if spec.holdout is not None:
        _refuse_same_file(spec)
    some = set(wanted) - ({VALIDATION} if selects else set())
    splits = _open_each(spec, wanted, family, family.classnames, listener, some=some)
    if VALIDATION in splits:
        _check_overlap(splits, listener)
        if spec.limit is not None:
            splits[VALIDATION] = splits[VALIDATION].first(spec.limit)
    return splits


def add_steering(
    spec: StudySpec, family: Wants, splits: dict[str, Samples], listener: Listener
) -> tuple[dict[str, Samples], dict[str, Any]]:
    """The splits with those that steer a search in second place, and how the shifted images were made.

    Raises:
        DataError: A split cannot be used, or one that steers is also a test split.
    """
    paths = {name: path for name, (path, _) in spec.select.items()}
    own = splits.get(VALIDATION)
    if own is None and SYNTHETIC in spec.steering:
        raise SpecError(
            f"--shifts: the validation split is scored by your own function ({spec.data.validation}), and has "
            "no images to shift; leave it out"
        )
    classnames = family.classnames or (None if own is None else own.classes)
    steering = _open_each(spec, paths, family, classnames, listener)
    shifts: dict[str, Any] = {}
    if SYNTHETIC in spec.steering:
        # Imports torchvision, which other runs can do without.
        from mixopt.data.shifts import describe_shifts, open_shifted

        steering[SYNTHETIC] = open_shifted(splits[VALIDATION], SYNTHETIC, spec.cache, listener)
        shifts = describe_shifts()
    tests = {name: split for name, split in splits.items() if name != VALIDATION}
    for name, split in steering.items():
        if own is not None and (shared := split.shared_with(own)):
            listener.warn(f"{shared} {split.unit}s of split {name}, which steers, are in the validation split too")
        _refuse_overlap(tests, split, f"split {name}, which steers", listener)
    steering = {name: replace(split, steers=True) for name, split in steering.items()}
    return {**({} if own is None else {VALIDATION: own}), **steering, **tests}, shifts


def _open_each(
    spec: StudySpec,
    wanted: Mapping[str, Path],
    family: Wants,
    classnames: Sequence[str] | None,
    listener: Listener,
    *,
    some: Set[str] = frozenset(),
) -> dict[str, Samples]:
    """Samples by name; where nobody knows their classes, the first one's numbering holds for all.

    Those named in ``some`` may have some of the classes.
    """
    splits: dict[str, Samples] = {}
    reading = Reading(
        spec.fields,
        skips=spec.bad_samples == "skip",
        codes={} if spec.class_map is None else read_class_map(spec.class_map),
        restricts=not spec.all_classes,
    )
    for name, path in wanted.items():
        splits[name] = open_split(
            path,
            name,
            family.encoding,
            classnames=classnames,
            cache=spec.cache,
            reading=replace(reading, takes_some=name in some, holdout=spec.holdout if name == VALIDATION else None),
            listener=listener,
        )
        if classnames is None and (classnames := splits[name].classes) is not None:
            listener.info(
                f"{path}: the model's classes are taken to be this split's, in its order ({listed(classnames)}); "
                "classnames in pool.toml says another"
            )
    return splits


def _refuse_same_file(spec: StudySpec) -> None:
    """What a part of selects is no test split."""
    whole = spec.data.validation
    for name, path in spec.data.test.items():
        if whole is not None and path.exists() and whole.exists() and path.samefile(whole):
            raise DataError(
                f"{path} (test split {name}): --holdout takes the validation split from it; what selects cannot also "
                "test: give another --test"
            )


def _check_overlap(splits: dict[str, Samples], listener: Listener) -> None:
    validation = splits[VALIDATION]
    if validation.labels.min() == validation.labels.max():
        listener.warn(f"{validation.source}: all {len(validation)} samples have one label")
    tests = {name: split for name, split in splits.items() if name != VALIDATION}
    _refuse_overlap(tests, validation, "validation split", listener)


def _refuse_overlap(tests: Mapping[str, Samples], choosing: Samples, called: str, listener: Listener) -> None:
    for name, split in tests.items():
        shared = split.shared_with(choosing)
        # A split of some of the classes asks another question, even of the same samples.
        if shared == len(split) and split.among is None:
            raise DataError(
                f"{split.source} (test split {name}): all its {split.unit}s are in the {called} {choosing.source}; "
                "what selects cannot also test: give another --test or --data"
            )
        if shared:
            listener.warn(f"{_counted(shared, split)} of test split {name} are in the {called} too")


def _counted(shared: int, split: Samples) -> str:
    return f"{'all ' if shared == len(split) else ''}{shared} {split.unit}s"
