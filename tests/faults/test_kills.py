"""Commands killed at an event of the file system, begun again, and held against a run that nothing disturbed.

``pytest -m campaign`` kills 500 times; MIXOPT_CAMPAIGN names a folder for the counts (campaign-kills.json).
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import filelock
import pytest

from tests.faults import child, left
from tests.faults.commands import COMMANDS, RECIPE_FROM, write_pools
from tests.faults.events import AFTER, ANY, BEFORE, Strike, moments_of
from tests.faults.left import differing, left_in, stale_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and killed")

SEED = 0
ORDINARY, CAMPAIGN = 20, 500
SOON = 12  # events within which a process that goes on is killed again


@dataclass(frozen=True)
class Whole:
    """A run that nothing disturbed.

    Attributes:
        arguments: Its command line.
        folder: Where it ran.
        left: What it left.
        counts: Kind of event to how many there were.
    """

    arguments: list[str]
    folder: Path
    left: dict[str, Any]
    counts: dict[str, int]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """Runs each command undisturbed, once."""
    paths = write_pools(tmp_path_factory.mktemp("pools"))
    known: dict[str, Whole] = {}

    def get(name: str) -> Whole:
        if name not in known:
            if "{recipe}" in COMMANDS[name].line:
                paths["recipe"] = get(RECIPE_FROM).folder / "run" / "recipe.json"
            folder, arguments = tmp_path_factory.mktemp(name), COMMANDS[name].arguments(paths)
            code = child.run(arguments, folder, eager=COMMANDS[name].eager)
            assert code == 0, printed_in(folder)
            counts = json.loads((folder / child.EVENTS).read_text())
            del counts[ANY]
            known[name] = Whole(arguments, folder, left_in(folder), counts)
        return known[name]

    return get


def printed_in(folder: Path) -> str:
    return (folder / child.OUTPUT).read_text()


def last_line(folder: Path) -> str:
    return (printed_in(folder).splitlines() or [""])[-1]


def points_of(name: str, counts: dict[str, int]) -> list[Strike]:
    """Every point at which a command can be killed, in an order drawn once, in which kinds and moments take turns."""
    drawn = random.Random(f"{SEED} {name}")
    kinds = []
    for event, count in sorted(counts.items()):
        for moment in moments_of(event):
            kinds.append([Strike(event, number, moment) for number in drawn.sample(range(1, count + 1), count)])
    return [point for taken in zip_longest(*kinds) for point in taken if point is not None]


def strikes_of(name: str, turn: int, counts: dict[str, int]) -> list[Strike]:
    """When to kill a command; every third time once more, soon after it goes on."""
    points, drawn = points_of(name, counts), random.Random(f"{SEED} {name} {turn}")
    again = [Strike(ANY, drawn.randint(1, SOON), drawn.choice((BEFORE, AFTER)))] if turn % 3 == 2 else []
    return [points[turn % len(points)], *again]


def kill_and_go_on(name: str, strikes: list[Strike], undisturbed: Whole, folder: Path) -> tuple[int, list[str]]:
    """Kill a command, and begin it again until it ends: how often it was killed, and what is not as it should be."""
    kills = 0
    for number, strike in enumerate([*strikes, None]):
        code = child.run(undisturbed.arguments, folder, strike, COMMANDS[name].eager)
        assert number > 0 or code == child.KILLED, "control: the first one is met"
        if code != child.KILLED:
            break
        kills += 1
    if code != 0:
        return kills, ["did not end" if code is None else f"exit code {code}: {last_line(folder)}"]
    return kills, differing(undisturbed.left, left_in(folder)) + [f"left behind: {each}" for each in stale_in(folder)]


def check(
    name: str,
    turn: int,
    undisturbed: Whole,
    folder: Path,
    record: Callable[[str, object], None],
) -> None:
    strikes = strikes_of(name, turn, undisturbed.counts)
    kills, wrong = kill_and_go_on(name, strikes, undisturbed, folder)
    record("killed", {"command": name, "event": strikes[0].event, "kills": kills, "wrong": wrong})
    assert not wrong, f"after {strikes}: {wrong}"
    shutil.rmtree(folder)


@pytest.mark.parametrize("turn", range(ORDINARY), ids=lambda turn: f"{list(COMMANDS)[turn % len(COMMANDS)]}-{turn}")
def test_killed_it_goes_on_to_the_same(
    turn: int, whole: Callable[[str], Whole], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    name = list(COMMANDS)[turn % len(COMMANDS)]
    check(name, turn, whole(name), tmp_path, record_property)


CASES = [(name, turn) for turn in range(CAMPAIGN) for name, command in COMMANDS.items() if turn < command.cases][
    :CAMPAIGN
]


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "turn"), CASES)
def test_campaign(
    name: str,
    turn: int,
    whole: Callable[[str], Whole],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    check(name, turn, whole(name), tmp_path, record_property)


def test_another_seed_would_be_noticed(whole: Callable[[str], Whole], tmp_path: Path) -> None:
    """Control: what is compared depends on what was proposed."""
    undisturbed = whole("cmaes")
    assert child.run([*undisturbed.arguments, "--seed", "1"], tmp_path) == 0, printed_in(tmp_path)
    assert {"model.safetensors", "recipe.json", "report.json", "trials"} <= set(
        differing(undisturbed.left, left_in(tmp_path))
    )


def test_what_is_left_behind_would_be_noticed(tmp_path: Path) -> None:
    """Control: locks, holders and files of processes that are gone, and a lock that is held."""
    run = tmp_path / "run"
    run.mkdir()
    names = [".report.json.ab.tmp", "run.lock.holder", "study.journal.lock", "study.journal.lock-1.rename"]
    for name in names:
        (run / name).symlink_to("nowhere")
    assert stale_in(tmp_path) == [f"run/{name}" for name in names]
    with filelock.FileLock(run / left.LOCK):
        assert stale_in(tmp_path)[len(names) :] == ["run.lock is held"]
    assert len(stale_in(tmp_path)) == len(names)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_undisturbed_run_leaves_nothing_behind(name: str, whole: Callable[[str], Whole]) -> None:
    undisturbed = whole(name)
    assert stale_in(undisturbed.folder) == []
    assert undisturbed.counts.keys() >= {"fsync", "rename", "temporary", "mkdir"}
