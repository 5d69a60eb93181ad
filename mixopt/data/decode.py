"""A source's records encoded, in evaluation order, into the decoded cache: all of them, or those that can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import joblib
import numpy as np
from numpy.typing import NDArray

from mixopt.data.encode import Arrays, Form, encoded, form_of
from mixopt.data.encoded_store import write_decoded
from mixopt.data.source import Reading, Source
from mixopt.errors import DataError
from mixopt.listener import Listener
from mixopt.untrusted import is_environment
from mixopt.values.samples import IMAGES, Encoding, stratified_order

# Records at a time, side by side.
CHUNK = 256
Result = TypeVar("Result")


def decode(
    path: Path,
    source: Source,
    encoding: Encoding,
    reading: Reading,
    *,
    folder: Path,
    cache: Path,
    listener: Listener,
) -> None:
    """Encode every record that is wanted, in evaluation order, and keep them in a folder of the cache.

    Args:
        path: The source, for messages.
        source: The same, opened.
        encoding: Makes arrays of records.
        reading: Says how many are wanted, and whether those that cannot be read are left out.
        folder: From `mixopt.data.encoded_store.decoded_folder`.
        cache: The cache that the folder lies in.
        listener: Told about progress.

    Raises:
        DataError: There are none, or one that is not left out cannot be read.
    """
    every = len(source.labels)
    if every == 0:
        raise DataError(f"{path}: the split is empty; expected at least one record")
    order = stratified_order(source.labels)
    if reading.holdout is not None:
        order = order[: max(1, round(every * reading.holdout))]
    records, bad, wanted = _Records(path, source, encoding), list(source.bad), len(order) + len(source.bad)
    held_out = [_held_out(reading.holdout, len(order), every)] if reading.holdout is not None else []
    if reading.skips:
        order, more = _readable(path, records, order, listener)
        bad += more
    records.fix_form(int(order[0]))
    samples = _in_order(path, order, records.arrays_of, "decoding", listener)
    write_decoded(
        folder,
        samples,
        source.labels[order],
        source.classes,
        lambda: [*held_out, *source.converted(), *records.resized()],
        skipped=_skipped(path, bad, wanted),
        cache=cache,
    )


class _Records:
    """The records of a source as arrays, all of the form of one of them."""

    def __init__(self, path: Path, source: Source, encoding: Encoding) -> None:
        self._path, self._source, self._encoding = path, source, encoding
        self._form: Form | None = None
        # By number: what is decoded twice counts once.
        self._sizes: dict[int, tuple[int, ...]] = {}

    def fix_form(self, number: int) -> None:
        """Let all others be of the form of a record."""
        self._form = None
        self._form = form_of(self.arrays_of(number))

    def arrays_of(self, number: int) -> Arrays:
        """A record's arrays; raises `DataError` where it cannot be read or is of another form."""
        record = self._source.load(number)
        with _located(f"{self._path}{self._source.where(number)}"):
            arrays = encoded(self._encoding, record)
            if self._form is not None:
                self._form.check(arrays)
        if isinstance(record, np.ndarray) and arrays.keys() == {IMAGES}:
            self._sizes[number] = record.shape[:2]
        return arrays

    def problem_of(self, number: int) -> str:
        """What is wrong with a record; empty where it can be read.

        Raises:
            DataError: It cannot be read for want of memory or a permission, which is none of its own faults.
        """
        try:
            self.arrays_of(number)
        except DataError as error:
            if _is_environment(error):
                raise
            return str(error)
        return ""

    def resized(self) -> list[str]:
        """What is told of images that were of another size before; nothing where none was."""
        size = (self._form.shapes.get(IMAGES) or ())[:2] if self._form else ()
        others = sorted(set(self._sizes.values()) - {size})
        if not others:
            return []
        shown = ", ".join(f"{height}x{width}" for height, width in others[:3])
        said = f"images of size {shown} are resized to {'x'.join(map(str, size))} as the model takes them"
        enlarged = any(len(size) == 2 and min(other) < min(size) for other in others)
        return [f"{said}; {told}" if enlarged and (told := self._encoding.enlarging) else said]


def _readable(
    path: Path, records: _Records, order: NDArray[np.int64], listener: Listener
) -> tuple[NDArray[np.int64], list[str]]:
    """Those of the records that can be read, in order, and what is wrong with each of the others."""
    bad: list[str] = []
    for first, number in enumerate(order):
        if problem := records.problem_of(int(number)):
            bad.append(problem)
            continue
        # The first that can be read says what form all have.
        records.fix_form(int(number))
        problems = list(_in_order(path, order[first:], records.problem_of, "checking", listener))
        kept = [number for number, problem in zip(order[first:], problems, strict=True) if not problem]
        return np.array(kept, dtype=np.int64), [*bad, *(problem for problem in problems if problem)]
    raise DataError(f"{path}: none of {len(order):,} records can be read; the first: {bad[0]}")


def _in_order(
    path: Path, order: NDArray[np.int64], work: Callable[[int], Result], what: str, listener: Listener
) -> Iterator[Result]:
    """What work gives for each record, several side by side."""
    with joblib.Parallel(n_jobs=-1, prefer="threads") as parallel:
        for start in range(0, len(order), CHUNK):
            yield from parallel(joblib.delayed(work)(int(number)) for number in order[start : start + CHUNK])
            listener.progress(f"{what} {path.name}", min(start + CHUNK, len(order)), len(order))


def _held_out(share: float, taken: int, every: int) -> str:
    return (
        f"{taken:,} of its {every:,} records are taken, each class in proportion (--holdout {share:g}), and the rest "
        "is not used; where models were trained on them, scores here are too good"
    )


def _skipped(path: Path, bad: list[str], wanted: int) -> str:
    """What is told of records that were left out; empty where none was."""
    if not bad:
        return ""
    first = bad[0].removeprefix(str(path)).lstrip("/\\,: ")
    return f"{len(bad):,} of {wanted:,} records are left out, as they cannot be read (--bad-samples skip): {first}"


def _is_environment(error: BaseException) -> bool:
    """Whether memory, a permission or the disk is behind an error; a file that is not there is the source's own."""
    cause: BaseException | None = error
    while cause is not None:
        if is_environment(cause) and not isinstance(cause, FileNotFoundError):
            return True
        cause = cause.__cause__
    return False


@contextmanager
def _located(place: str) -> Iterator[None]:
    """Errors say which record they are about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    except Exception as error:
        error.add_note(f"while encoding {place}")  # the family's own: its traceback is what helps
        raise
