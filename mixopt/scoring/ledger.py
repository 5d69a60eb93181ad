"""The ledger: which mixes the cache holds outcomes of, so that a later run can ask for those of its own checkpoints.

A content key says what outcomes depend on, but not what the mix was. Beside the entries lies one file for each
condition: all that a key holds but the mix (the split, the precision, BatchNorm statistics, batching, saved dtypes, the
family). A file holds lines of JSON, each with a checksum. A *frame* is what many mixes share: checkpoints, by their
content, and layer groups. A *mix* names its frame and its key, and has coefficients for the checkpoints that it uses.
Lines are only ever appended, by several processes if need be, and whatever is damaged is told and passed over.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StrictInt

from mixopt.errors import MixoptError
from mixopt.files import append
from mixopt.listener import Listener
from mixopt.scoring.keys import Keys
from mixopt.untrusted import READER_ERRORS, is_environment, open_regular, reason_of
from mixopt.untrusted.texts import check_checksum, check_depth, checksum_of, with_checksum
from mixopt.untrusted.values import validated
from mixopt.values.groups import Groups
from mixopt.values.mix import Mix
from mixopt.weights.pool import Pool

# Bytes of a file that are read, some hundred thousand mixes; and of a line.
MOST, LONGEST = 2**28, 2**24
_DAMAGE: tuple[type[Exception], ...] = (*READER_ERRORS, MixoptError)
_Number = Annotated[StrictInt, Field(ge=0)]


class _FrameLine(BaseModel):
    """What many mixes share: content hashes of checkpoints, and layer groups."""

    columns: list[str]
    groups: list[tuple[str, list[str]]]


class _MixLine(BaseModel):
    """A mix: its content key, its frame's checksum, the columns there that it uses, and ``[groups, used]`` float64."""

    key: str
    frame: str
    used: list[_Number]
    coefficients: str


@dataclass(frozen=True, eq=False)
class _Frame:
    """A frame as the pool that is open now has it.

    Attributes:
        columns: Content hashes of checkpoints.
        rows: Layer groups in the file.
        groups: Those of them that hold mixed tensors of the pool, with no other tensors.
        places: ``[len(groups)]``, their rows.
        is_whole: Whether they hold all mixed tensors of the pool.
    """

    columns: list[str]
    rows: int
    groups: Groups
    places: NDArray[np.int64]
    is_whole: bool


class Ledger:
    """The mixes of one pool in a cache's ledger.

    Args:
        folder: The cache.
        pool: The checkpoints.
        keys: What outcomes depend on.
        listener: Warned of what is damaged, and once where nothing can be written: scores are cached nevertheless.
    """

    def __init__(self, folder: Path, pool: Pool, keys: Keys, listener: Listener | None = None) -> None:
        self.folder = folder
        self._pool = pool
        self._keys = keys
        self._listener = listener or Listener()
        self._is_written = True
        # File to what this process wrote there: keys of mixes, and frames by their groups.
        self._entered: dict[Path, set[str]] = {}
        self._frames: dict[Path, dict[Groups, str]] = {}

    def keyed_by(self, keys: Keys) -> Ledger:
        """That of the same pool and cache, whose outcomes depend on something else."""
        return Ledger(self.folder, self._pool, keys, self._listener)

    def path_of(self, split: str, statistics: bytes = b"") -> Path:
        """The file of a condition; arguments as for `Keys.of_mix`."""
        condition = self._keys.of_condition(split, statistics)
        return self.folder / "ledger" / condition[:2] / f"{condition}.jsonl"

    def enter(self, key: str, mix: Mix, split: str, statistics: bytes = b"") -> None:
        """Note that outcomes of a mix are about to be stored, once in this process.

        Args:
            key: Of the outcomes.
            mix: Over the pool's columns.
            split: As for `Keys.of_mix`.
            statistics: As for `Keys.of_mix`.
        """
        path = self.path_of(split, statistics)
        if not os.path.exists(path):  # also where that cannot be known
            self._entered.pop(path, None)
            self._frames.pop(path, None)
        entered, frames = self._entered.setdefault(path, set()), self._frames.setdefault(path, {})
        if key in entered or not self._is_written:
            return
        lines = []
        if (frame := frames.get(mix.groups)) is None:
            shared = self._frame_of(mix.groups)
            frame = checksum_of(shared)
            lines.append(shared)
        used = np.flatnonzero(np.any(mix.coefficients != 0, axis=0))
        content = np.ascontiguousarray(mix.coefficients[:, used], dtype="<f8").tobytes()
        coefficients = base64.b64encode(content).decode()
        lines.append({"key": key, "frame": frame, "used": used.tolist(), "coefficients": coefficients})
        try:
            append(path, b"".join(map(_line, lines)), cache=self.folder)
        except (OSError, ValueError) as error:
            self._is_written = False
            self._listener.warn(
                f"{path}: cannot be written ({reason_of(error)}), so later runs will not know which mixes this one "
                "scored; their scores are cached nevertheless"
            )
            return
        entered.add(key)
        frames[mix.groups] = frame

    def read(self, split: str, statistics: bytes = b"") -> list[tuple[str, Mix]]:
        """The mixes of a condition, over the pool's columns, each with the key of its outcomes, as they were entered.

        Left out are those of checkpoints that the pool lacks, and those whose outcomes are others in this pool, since
        other tensors are the same in all of its checkpoints. Mixes come with the groups that they were scored with.

        Args:
            split: As for `Keys.of_mix`.
            statistics: As for `Keys.of_mix`.
        """
        path = self.path_of(split, statistics)
        known: dict[str, Mix] = {}
        frames: dict[str, _Frame] = {}
        bad: list[str] = []
        try:
            with open_regular(path) as stream:
                for number, line in enumerate(_lines(stream), start=1):
                    try:
                        self._take(line, frames, known, split, statistics)
                    except _DAMAGE as error:
                        bad.append(f"line {number}: {reason_of(error)}")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except READER_ERRORS as error:
            bad.append(f"{'unreadable' if is_environment(error) else 'damaged'}: {reason_of(error)}")
        if bad:
            more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
            self._listener.warn(
                f"damaged ledger of mixes {path} ({bad[0]}{more}): passed over; those mixes are not known to have been "
                "scored until they are scored again"
            )
        return list(known.items())

    def _frame_of(self, groups: Groups) -> dict[str, Any]:
        return {"columns": list(self._column_of), "groups": [[name, list(tensors)] for name, tensors in groups.items]}

    @cached_property
    def _column_of(self) -> Mapping[str, int]:
        """Content hash to column, in the order of the columns."""
        return {fingerprint: number for number, fingerprint in enumerate(self._pool.fingerprints.values())}

    def _take(
        self, line: bytes, frames: dict[str, _Frame], known: dict[str, Mix], split: str, statistics: bytes
    ) -> None:
        """Add what a line says to the frames, or to the mixes that are known.

        Raises:
            Exception: One of `READER_ERRORS`, or a `MixoptError`: it is damaged.
        """
        text = line.decode()
        check_depth(text)
        values = json.loads(text)
        check_checksum(values)
        if "groups" in values:
            frames[values["checksum"]] = self._framed(validated(_FrameLine, values))
            return
        entry = validated(_MixLine, values)
        if entry.key in known:
            return
        if entry.frame not in frames:
            raise ValueError("a mix of checkpoints and layer groups that are not told")
        mix = self._mixed(frames[entry.frame], entry)
        # Who is told that a mix was scored will look for its outcomes.
        if mix is not None and self._keys.of_mix(mix, split, statistics) == entry.key:
            known[entry.key] = mix

    def _framed(self, line: _FrameLine) -> _Frame:
        mixed = self._pool.sizes.keys()
        every = Groups(tuple((name, tuple(tensors)) for name, tensors in line.groups))
        inside = [
            (row, (name, tuple(tensor for tensor in tensors if tensor in mixed)))
            for row, (name, tensors) in enumerate(every.items)
        ]
        kept = [(row, item) for row, item in inside if item[1]]
        groups = Groups(tuple(item for _, item in kept))
        is_whole = groups.index().keys() == mixed
        return _Frame(line.columns, len(every), groups, np.array([row for row, _ in kept], dtype=np.int64), is_whole)

    def _mixed(self, frame: _Frame, entry: _MixLine) -> Mix | None:
        """The mix over the pool's columns, if it can be one."""
        content = base64.b64decode(entry.coefficients, validate=True)
        rows = np.frombuffer(content, dtype="<f8").reshape(frame.rows, len(entry.used))
        holders = [frame.columns[place] for place in entry.used]
        if not self._column_of.keys() >= set(holders):
            return None
        groups, places = frame.groups, frame.places
        if not frame.is_whole:
            if len(holders) > 1:
                return None
            # A checkpoint alone is the same whichever tensors are mixed.
            groups, places = Groups((("whole", tuple(self._pool.sizes)),)), np.zeros(1, dtype=np.int64)
        coefficients = np.zeros((len(groups), len(self._pool.columns)))
        coefficients[:, [self._column_of[holder] for holder in holders]] = rows[places]
        return Mix(groups, self._pool.columns, coefficients)


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(with_checksum(values), separators=(",", ":")).encode() + b"\n"


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a file that are not empty.

    Raises:
        ValueError: A line, or the file, is longer than any that is written.
    """
    left = MOST
    while line := stream.readline(min(LONGEST, left) + 1):
        left -= len(line)
        if len(line) > LONGEST or left < 0:
            raise ValueError("longer than any ledger; the rest of it is not read")
        if line.strip():
            yield line
