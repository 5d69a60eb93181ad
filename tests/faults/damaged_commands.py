"""The same cases through the command line: each in a process of its own, forked where all is imported already."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.box import Box, inside
from tests.faults.cases import Verdict, damage, is_left_out, mutation_of, names_its_place
from tests.faults.payloads import MARKER
from tests.faults.readers import Kind
from tests.faults.trees import MENDED

SECONDS = 60.0
MEMORY = 12 * 2**30
PRELOADED = [
    "torch",
    "open_clip",
    "mixopt.cli",
    "mixopt.runs.search",
    "mixopt.runs.compare",
    "mixopt.runs.evaluate",
    "mixopt.runs.report",
    "mixopt.families.open_clip",
    "mixopt.families.custom",
    "tests.tiny_family",
]
# Where a number differs from run to run, or with what lay in the cache.
_VOLATILE = frozenset({"seconds", "wall_seconds", "time", "computed", "reused", "peak_memory", "images", "checksum"})


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; None where it was stopped.
        out: What it printed.
        err: What it told.
    """

    code: int | None
    out: str
    err: str


def prepare() -> Any:
    """Where processes are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run(context: Any, box: Box, argv: tuple[str, ...]) -> Ended:
    """Run ``mixopt`` with arguments in the box."""
    logs = [box.folder.parents[2] / name for name in ("out.txt", "err.txt")]
    process = context.Process(target=_work, args=(argv, str(box.folder), *map(str, logs)))
    process.start()
    process.join(SECONDS)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    out, err = (log.read_text(errors="replace") if log.exists() else "" for log in logs)
    for log in logs:
        log.unlink(missing_ok=True)
    return Ended(code, out, err)


def _work(argv: tuple[str, ...], folder: str, out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ |= {"XDG_CACHE_HOME": "cache_home", "HF_HUB_OFFLINE": "1"}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.path.insert(0, folder)  # what a file names can be imported
    sys.argv = ["mixopt", *argv]
    from mixopt.cli import main

    main()


def argv_of(kind: Kind, number: int) -> tuple[str, ...]:
    """The command of a case; every other one prints JSON."""
    return (*kind.command, "--json") if number % 2 == 0 else kind.command


def expected_of(context: Any, box: Box, kind: Kind) -> str:
    """What the command prints of the undamaged example, as JSON."""
    ended = run(context, box, argv_of(kind, 0))
    box.put_back()
    assert ended.code == 0, ended
    return _plain(ended.out)


def run_case(context: Any, box: Box, kind: Kind, number: int, expected: str) -> Verdict:
    """Damage, run the command, judge, and put everything back."""
    name = mutation_of(kind, number).name
    if is_left_out(kind, number):
        return Verdict(kind.name, number, name, "left out")
    try:
        with inside(box.folder):
            path, name = damage(box, kind, number, kind.command_target)
        argv = argv_of(kind, number)
        outcome, detail = _judged(
            run(context, box, argv), kind, path, expected if "--json" in argv and MENDED not in name else ""
        )
        if (box.folder / MARKER).exists():
            outcome, detail = "code executed", f"({outcome}) {detail}"
    finally:
        box.put_back()
    if strangers := box.strangers():
        outcome, detail = "wrote elsewhere", strangers[0].name
    return Verdict(kind.name, number, name, outcome, detail)


def _judged(ended: Ended, kind: Kind, path: Path, expected: str) -> tuple[str, str]:
    said = ended.out + ended.err
    last = (ended.err.strip().splitlines() or [""])[-1][:300]
    if ended.code is None:
        return "hang", f"more than {SECONDS:g} s"
    if "Traceback" in said or ended.code not in (0, 2, 3):
        frames = re.findall(r'File "[^"]*?/(mixopt/[^"]*)", line (\d+)', ended.err)
        shown = " > ".join(f"{file}:{line}" for file, line in frames[-2:])
        return "traceback", f"exit {ended.code}; {shown} > {last}"
    if odd := [each for each in said if each not in "\n\t" and unicodedata.category(each) in ("Cc", "Cs")]:
        return "control characters", f"{odd[0]!r} in {last!r}"
    if ended.code == 2:
        message = ended.err.partition("error: ")[2] or said
        return ("clear error" if names_its_place(message, kind, path) else "unclear error"), last
    if expected and _plain(ended.out) == expected:
        return ("warned and same" if "warning" in ended.err else "same"), ""
    if expected and kind.carries_checksum:
        return "silently other", ended.out[:200]
    return ("other valid" if not kind.carries_checksum else "same"), ""


def _plain(out: str) -> str:
    """Printed JSON without what differs from run to run."""
    return json.dumps(_without(json.loads(out)), sort_keys=True)


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(item) for key, item in value.items() if key not in _VOLATILE}
    return [_without(item) for item in value] if isinstance(value, list) else value
