"""Damaged and hostile files of every kind: the same result, one clear error, or a warning; nothing else, ever.

One case again: ``MIXOPT_CASE=kind:number pytest tests/faults/test_fuzz.py -k one_case``. The long campaign:
``pytest tests/faults/test_fuzz.py -m campaign -s``, with ``MIXOPT_CAMPAIGN_CASES`` and ``MIXOPT_CAMPAIGN_JSON``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import cases, damaged_commands
from tests.faults.box import Box, inside, make_box
from tests.faults.readers import KINDS

ORDINARY = 300
TOGETHER = 10
# Damage comes to light where libraries give up what they hold, whenever that is.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    return make_box(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def expected(box: Box) -> cases.Expected:
    return cases.cached_results(box)


def groups_of_cases() -> Iterator[object]:
    for kind, count in cases.shares(ORDINARY).items():
        for first in range(0, count, TOGETHER):
            numbers = range(first, min(first + TOGETHER, count))
            yield pytest.param(kind, numbers, id=f"{kind}-{numbers.start}-{numbers.stop - 1}")


@pytest.mark.parametrize(("kind", "numbers"), list(groups_of_cases()))
def test_damage_is_told_or_harmless(kind: str, numbers: range, box: Box, expected: cases.Expected) -> None:
    undamaged = expected(KINDS[kind])
    verdicts = [cases.run_case(box, KINDS[kind], number, undamaged) for number in numbers]
    wrong = [str(verdict) for verdict in verdicts if not verdict.is_fine]
    assert not wrong, "\n".join(wrong)


@pytest.mark.skipif("MIXOPT_CASE" not in os.environ, reason="MIXOPT_CASE=kind:number names no case to run again")
def test_one_case(box: Box, expected: cases.Expected) -> None:
    name, _, number = os.environ["MIXOPT_CASE"].partition(":")
    verdict = cases.run_case(box, KINDS[name], int(number), expected(KINDS[name]))
    sys.stdout.write(f"{verdict}\n")
    assert verdict.is_fine, verdict


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_is_always_the_same(kind: str, box: Box) -> None:
    """The same damage to the same bytes, and everything back in its place afterwards."""
    number = next(number for number in range(100) if cases.mutation_of(KINDS[kind], number).name == "flip_many_bits")
    seen = []
    for _ in range(2):
        with inside(box.folder):
            path, _ = cases.damage(box, KINDS[kind], number)
            seen.append((path, path.read_bytes()))
        assert box.put_back() == [box.folder / path]
    assert seen[0] == seen[1]
    assert seen[0][1] != box.files[box.folder / seen[0][0]][0]


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_campaign(box: Box, expected: cases.Expected, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten thousand cases, and every tenth through the command line as well; counts go to a file and to the screen."""
    total = int(os.environ.get("MIXOPT_CAMPAIGN_CASES", "10000"))
    target = Path(os.environ.get("MIXOPT_CAMPAIGN_JSON", tmp_path / "campaign.json"))
    read = [
        cases.run_case(box, kind, number, expected(kind))
        for name, kind in KINDS.items()
        for number in range(cases.shares(total)[name])
    ]
    middle = time.monotonic()
    context, outside = damaged_commands.prepare(), []
    for name, count in cases.shares(total // 10, commands=True).items():
        undamaged = damaged_commands.expected_of(context, box, KINDS[name])
        outside += [damaged_commands.run_case(context, box, KINDS[name], number, undamaged) for number in range(count)]
    results = {"in the process": read, "through the command line": outside}
    target.write_text(json.dumps({name: cases.report_values(each) for name, each in results.items()}, indent=2) + "\n")
    with capsys.disabled():
        for name, verdicts in results.items():
            sys.stdout.write(f"\n{len(verdicts):,} cases {name}\n{cases.table(cases.summary(verdicts))}\n")
        sys.stdout.write(f"commands took {time.monotonic() - middle:.0f} s; all in {target}\n")
    wrong = cases.failures([*read, *outside])
    assert not wrong, "\n".join(wrong)
