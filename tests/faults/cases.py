"""One case: a file damaged in one way, read, and what is to be said of it."""

from __future__ import annotations

import re
import resource
import signal
import stat
import sys
import threading
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import mixopt
from tests.faults.box import Box, inside
from tests.faults.mutations import BINDS, Mutation
from tests.faults.payloads import MARKER, MODULE
from tests.faults.readers import KINDS, Kind
from tests.faults.trees import MENDED
from tests.listening import Recorder

# Seconds that a case may take, and bytes that it may have beyond those of the process before.
LONGEST = 20.0
MOST_MEMORY = 2 * 2**30

FINE = ("clear error", "same", "warned and same", "other valid", "left out")
WRONG = (
    "unclear error",
    "traceback",
    "code executed",
    "silently other",
    "hang",
    "wrote elsewhere",
    "control characters",
)


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Attributes:
        kind: Of the file.
        number: Of the case.
        mutation: How it was damaged.
        outcome: One of `FINE` or `WRONG`.
        detail: What tells of it: the error's message or the end of a traceback.
    """

    kind: str
    number: int
    mutation: str
    outcome: str
    detail: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether this is as it should be."""
        return self.outcome in FINE

    def __str__(self) -> str:
        return f"{self.kind}:{self.number} ({self.mutation}) {self.outcome}: {self.detail}"


class Hang(BaseException):
    """A case takes too long: no `Exception`, so that nobody catches it."""


def mutation_of(kind: Kind, number: int) -> Mutation:
    """The mutation of a case: all of a kind's in turn, in another order every time."""
    turn, place = divmod(number, len(kind.mutations))
    order = np.random.default_rng([zlib.crc32(kind.name.encode()), turn]).permutation(len(kind.mutations))
    return kind.mutations[int(order[place])]


def damage(box: Box, kind: Kind, number: int, target: str = "") -> tuple[Path, str]:
    """Damage the example as the case says; in the box's folder. Returns the file and the mutation's name."""
    mutation = mutation_of(kind, number)
    random = np.random.default_rng([zlib.crc32(kind.name.encode()), number, 1])
    files = sorted(path for path in Path().glob(target or kind.target) if box.folder / path in box.files)
    path = files[int(random.integers(len(files)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mutation.apply(random, path)
    return path, mutation.name


def is_left_out(kind: Kind, number: int) -> bool:
    """Whether the case tells nothing here: permissions do not bind an administrator."""
    return mutation_of(kind, number).name == "unreadable" and not BINDS


def run_case(box: Box, kind: Kind, number: int, expected: str) -> Verdict:
    """Damage, read, judge, and put everything back.

    Args:
        box: The examples.
        kind: Of the file.
        number: Of the case.
        expected: `result_of` the undamaged example.
    """
    name = mutation_of(kind, number).name
    if is_left_out(kind, number):
        return Verdict(kind.name, number, name, "left out")
    with inside(box.folder):
        sys.modules.pop(MODULE, None)
        path, searched = Path(), list(sys.path)
        try:
            # What a file names can be imported: nothing but mixopt keeps it from being.
            sys.path.insert(0, str(box.folder))
            path, name = damage(box, kind, number)
            outcome, detail = _judged(kind, path, expected, MENDED in name)
            if Path(MARKER).exists():
                outcome, detail = "code executed", f"({outcome}) {detail}"
        finally:
            sys.path[:] = searched
            changed = box.put_back()
            strangers = box.strangers()
    if strangers:
        outcome, detail = "wrote elsewhere", str(strangers[0].name)
    elif harmed := [each for each in changed if _is_given(box, each) and each != box.folder / path]:
        outcome, detail = "wrote elsewhere", f"{harmed[0].relative_to(box.folder)} ({outcome} {detail})"
    return Verdict(kind.name, number, name, outcome, detail)


def result_of(box: Box, kind: Kind) -> str:
    """What the undamaged example gives."""
    with inside(box.folder):
        try:
            found, heard = _read(kind)
        finally:
            box.put_back()
    assert not heard.warnings, heard.warnings
    return found


def _read(kind: Kind) -> tuple[str, Recorder]:
    heard = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return repr(kind.read(heard.listener)), heard


def _judged(kind: Kind, path: Path, expected: str, is_mended: bool) -> tuple[str, str]:
    try:
        with limited(path):
            found, heard = _read(kind)
    except mixopt.MixoptError as error:
        clear = names_its_place(str(error), kind, path)
        return ("clear error" if clear else "unclear error"), " ".join(str(error).split())[:300]
    except Hang:
        return "hang", f"more than {LONGEST:g} s"
    except (Exception, SystemExit) as error:
        return "traceback", where(error)
    if found == expected:
        return ("warned and same" if heard.warnings else "same"), " ".join(heard.warnings)[:300]
    if kind.carries_checksum and not is_mended:
        return "silently other", found[:200]
    return "other valid", ""


def names_its_place(message: str, kind: Kind, path: Path) -> bool:
    """Whether a message names the file, the checkpoint by its name, or the option that leads to it."""
    if path.name in message or "made.safetensors" in message or re.search(r"--[a-z]{3}", message):
        return True
    if any(f"{folder}:" in message or f"{folder}/" in message for folder in path.parents if folder.name):
        return True
    if path.suffix == ".toml" or kind.name == "clip_config":
        # What stands in them is named by its key, or is itself a file.
        return re.search(r"^(- )?\S*(classnames|templates|[\w./-]+/[\w./-]+)", message) is not None
    # A checkpoint goes by its name, and a part of one by that of the whole.
    return re.search(rf"\b{re.escape(re.split('[.-]', path.name)[0])}\b", message) is not None


def where(error: BaseException) -> str:
    """The last lines of a traceback that are of mixopt, and of whom it called."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/mixopt/" in frame.filename]
    last = [*own[-2:], *([frames[-1]] if frames and frames[-1] not in own else [])]
    shown = " > ".join(f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in last)
    return f"{shown}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _short(name: str) -> str:
    for mark in ("/site-packages/", "/mixopt/"):
        if mark in name:
            return (
                mark.strip("/").replace("site-packages", "")
                + "/" * (mark != "/site-packages/")
                + name.partition(mark)[2]
            )
    return "/".join(name.split("/")[-2:])


def _is_given(box: Box, path: Path) -> bool:
    """Whether a file is a user's: nothing may change it."""
    place = path.relative_to(box.folder)
    given = {"pool", "sharded", "trainers", "steps", "pickled", "legacy", "texts", "images", "tables", "clip", "bnpool"}
    return path in box.files and (place.parts[0] in given or (place.suffix == ".toml" and len(place.parts) == 1))


@contextmanager
def limited(path: Path) -> Iterator[None]:
    """Bound the block's time and memory; a pipe in a file's place is opened from the other end once time is over."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    handler, running = signal.signal(signal.SIGALRM, stop), signal.setitimer(signal.ITIMER_REAL, LONGEST)
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = _size() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit if before[1] < 0 else min(limit, before[1]), before[1]))
    opener = _Opener(path, LONGEST + 1) if _is_pipe(path) else None
    try:
        yield
    finally:
        if opener is not None:
            opener.end()
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_REAL, *running)
        signal.signal(signal.SIGALRM, handler)


class _Opener:
    """Opens a pipe's other end after a while: who waits there, deaf to signals, goes on."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path.absolute()
        self._timer = threading.Timer(seconds, self._open)
        self._timer.daemon = True
        self._timer.start()

    def _open(self) -> None:
        import os

        os.close(os.open(self._path, os.O_RDWR | os.O_NONBLOCK))

    def end(self) -> None:
        self._timer.cancel()
        self._timer.join()


def _is_pipe(path: Path) -> bool:
    return path.exists() and stat.S_ISFIFO(path.stat().st_mode)


def _size() -> int:
    words = Path("/proc/self/statm").read_text().split()
    return int(words[0]) * resource.getpagesize()


def shares(total: int, *, commands: bool = False) -> dict[str, int]:
    """Kind to number of cases, by how many ways there are to damage it; they make the total.

    Args:
        total: The cases of all kinds.
        commands: Of those kinds alone that a command reads.
    """
    ways = {name: len(kind.mutations) for name, kind in KINDS.items() if kind.command or not commands}
    counts = {name: total * count // sum(ways.values()) for name, count in ways.items()}
    for name in sorted(ways, key=lambda name: -ways[name])[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


Expected = Callable[[Kind], str]


def cached_results(box: Box) -> Expected:
    """`result_of`, once for each kind."""
    known: dict[str, str] = {}

    def expected(kind: Kind) -> str:
        if kind.name not in known:
            known[kind.name] = result_of(box, kind)
        return known[kind.name]

    return expected


def summary(verdicts: list[Verdict]) -> dict[str, dict[str, int]]:
    """Kind to outcome to how many."""
    found: dict[str, dict[str, int]] = {}
    for verdict in verdicts:
        counts = found.setdefault(verdict.kind, dict.fromkeys((*FINE, *WRONG), 0))
        counts[verdict.outcome] += 1
    return found


def table(counts: dict[str, dict[str, int]]) -> str:
    """The counts as lines of text, with their sums."""
    columns = [name for name in (*FINE, *WRONG) if any(row[name] for row in counts.values())]
    lines = [["kind", *columns], *([kind, *(str(row[name]) for name in columns)] for kind, row in counts.items())]
    lines.append(["all", *(str(sum(row[name] for row in counts.values())) for name in columns)])
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def failures(verdicts: list[Verdict]) -> list[str]:
    """Every distinct way to fail, the commonest first, with an example."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        if not verdict.is_fine:
            groups.setdefault((verdict.outcome, _pattern(verdict)), []).append(verdict)
    ordered = sorted(groups.values(), key=lambda group: -len(group))
    return [f"{len(group)} x {', '.join(sorted({each.kind for each in group}))}; {group[0]}" for group in ordered]


def _pattern(verdict: Verdict) -> str:
    if verdict.outcome == "traceback":
        return verdict.detail.rpartition(" > ")[0] + re.sub(r"[\d'\"].*", "", verdict.detail.rpartition(" > ")[2][:90])
    return f"{verdict.kind} {re.sub(r'[0-9]+', '', verdict.detail[:40])}"


def report_values(verdicts: list[Verdict]) -> dict[str, Any]:
    """A summary as plain JSON values."""
    return {
        "cases": len(verdicts),
        "wrong": sum(not verdict.is_fine for verdict in verdicts),
        "counts": summary(verdicts),
        "failures": failures(verdicts),
    }
