"""Tables of results on terminals of some widths, and where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mixopt.cli.screen import Screen
from mixopt.cli.show import show_report
from mixopt.reporting.rows import Failure, LabelledOutcomes, Row
from mixopt.reporting.schema import Front, FrontObjective, FrontPoint, Report
from mixopt.reporting.tables import table
from tests.reports import report_of

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOURS = re.compile(r"\x1b\[[0-9;]*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[0-9;]*m")
LEARNED = "learned_by_layer:affine:groups=block:cosine"
NAMES = ("base", "individual", "uniform", "greedy", LEARNED, "search")
SPLITS = ("test", "scanned", "inverted", "blurred", "noisy", "edges")


def made(splits: tuple[str, ...] = SPLITS, command: str = "search", failures: Sequence[Failure] = ()) -> Report:
    """A report of as many rows and splits as the demo's; ``search`` is the best row."""
    random, rows = np.random.default_rng(0), []
    for number, name in enumerate(NAMES):
        labels = np.zeros(400, dtype=np.int64)
        samples = {
            split: LabelledOutcomes(labels, (random.random(400) > 0.6 + 0.05 * number).astype(np.int64), np.ones(400))
            for split in ("validation", *splits)
        }
        metrics = {split: {"accuracy": float(each.correct.mean()), "nll": 1.0} for split, each in samples.items()}
        rows.append(Row(name, metrics, samples, 123, 123, 1_234_567, 0, 1234.5, 12, peak_memory=10**9))
    return report_of([*rows, *failures], best="search", command=command)


def on_terminal(columns: int, monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": str(columns), "TERM": "xterm-256color", **more}.items():
        monkeypatch.setenv(name, value)


def shown(report: Report, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    show_report(Screen(quiet=False, as_json=False), report, folder)
    return capsys.readouterr().out


def lines_of(text: str) -> list[str]:
    """The lines of tables, which alone begin with a space."""
    return [line for line in ESCAPES.sub("", text).splitlines() if line.startswith(" ") and line.strip()]


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 140])
@pytest.mark.parametrize("command", ["search", "compare"])
def test_a_table_is_whole_and_fits(
    columns: int, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_terminal(columns, monkeypatch)
    report = made(command=command)
    text = shown(report, Path("run"), capsys)
    header, rule, *rows = lines_of(text)[: 2 + len(NAMES)]
    assert max(len(line.rstrip()) for line in (header, rule, *rows)) <= columns
    tables = [line for line in lines_of(text) if line.split()[0] == "method"]
    assert len(tables) == 1 + ("paired difference" in text)
    assert [row.split()[0] for row in rows[:4]] == list(NAMES[:4])
    # A number is whole or not there.
    whole = {cell.split()[0] for row in table(report, details=True)[1] for cell in row[1:]} | {"1.2M"}
    for row in rows:
        assert set(re.findall(r"(?<= )[\d.,]+\w?(?= |$)", row)) <= whole, row
    said = " ".join(ESCAPES.sub("", text).split())
    missing = re.search(r"not shown: (.*?) \(more: --json, a wider terminal\)", said)
    names = missing[1].split(", ") if missing else []
    assert names
    for name in table(report, details=True)[0][1:]:
        assert (name in header.split() or name in header) != (name in names), name


def test_at_80_columns_are_names_scores_bars_and_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_terminal(80, monkeypatch)
    header, _, *rows = lines_of(shown(made(), Path("run"), capsys))
    assert header.split() == ["method", "selection", "test", "scanned", "inverted", "images"]
    assert "learned_by_layer:..." in rows[4]
    assert "▏" in rows[0]
    assert "████████ ★" in rows[5]
    assert sum("★" in row for row in rows) == 1
    assert all(row.endswith("1.2M") for row in map(str.rstrip, rows))


def test_a_wide_terminal_shows_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_terminal(250, monkeypatch)
    report = made(command="compare")
    text = shown(report, Path("run"), capsys)
    assert "not shown" not in text
    assert "intervals are at most" not in text
    for row in table(report, intervals=True, details=True)[1]:
        assert all(cell in text for cell in row)


def test_bars_say_which_row_is_better_where_lower_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_terminal(80, monkeypatch)
    labels = np.zeros(9, dtype=np.int64)
    rows = []
    for name, loss in (("greedy", 0.5), ("uniform", 0.9), ("search", 0.2)):
        found = {"validation": LabelledOutcomes(labels, labels, np.full(9, loss))}
        rows.append(Row(name, {"validation": {"nll": loss}}, found, 1, 1, 9, 0, 0.1, 1))
    text = shown(report_of(rows, "nll", best="search"), Path("run"), capsys)
    lengths = [line.count("█") for line in lines_of(text)[2:]]
    assert lengths[2] == 8 > lengths[0] > lengths[1] == 0


def test_rows_that_failed_and_ensembles_stand_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_terminal(80, monkeypatch)
    report = made(command="compare", failures=[Failure("model_stock", "it needs the base")])
    *others, last = report.methods
    ensemble = report.made[3].model_copy(update={"name": "ensemble", "models": 12})
    report = report.model_copy(update={"methods": (*others, ensemble, last)})
    text = shown(report, Path("run"), capsys)
    header, _, *rows = lines_of(text)[: 2 + len(report.methods)]
    assert header.split()[-1] == "inference"
    assert rows[-1].split() == ["model_stock", *"-" * (len(header.split()) - 1)]
    assert rows[-2].split()[-1] == "12x"
    assert rows[0].split()[-1] == "1x"


def test_a_front_of_many_splits_says_what_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_terminal(80, monkeypatch)
    objectives = tuple(FrontObjective(name=name, weight=0.2) for name in ("validation", *SPLITS))
    points = (FrontPoint(trial=3, values=(0.5,) * 7, on_front=False),)
    front = Front(objectives=objectives, signal="accuracy", direction="maximize", points=points, picked=3)
    text = shown(made().model_copy(update={"front": front}), Path("run"), capsys)
    grid = [line for line in lines_of(text) if "weight" in line or "picked" in line]
    assert len(grid) == 2
    assert max(map(len, grid)) <= 80
    assert grid[1].rstrip().endswith("picked, not on the front: no trial was confirmed")
    assert "not shown: " in text[text.index("Pareto") :]


def test_a_page_is_named_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_terminal(80, monkeypatch)
    assert "report.html" not in shown(made(), tmp_path, capsys)
    (tmp_path / "report.html").write_text("", encoding="utf-8")
    assert "report.html" in shown(made(), tmp_path, capsys).replace("\n", ""), "a long path is broken"


def test_no_colour_is_kept_to(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_terminal(80, monkeypatch, NO_COLOR="1")
    assert not COLOURS.search(shown(made(), Path("run"), capsys))


def test_a_pipe_gets_whole_plain_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    report = made()
    text = shown(report, Path("run"), capsys)
    assert "\x1b" not in text
    assert not set("█▏★≈…") & set(text)
    header, cells = table(report)
    lines = lines_of(text)
    assert [re.split(r"\s{2,}", line.strip()) for line in (lines[0], *lines[2:])] == [header, *cells]


PROGRAM = """
from pathlib import Path
from mixopt.cli.screen import Screen
from mixopt.cli.show import show_report
from tests.cli.test_terminal import made

screen = Screen(quiet=False, as_json=False)
with screen.listening() as listener:
    listener.progress("baselines", 1, 2)
    listener.info("a notice")
show_report(screen, made(command="compare"), Path("run"))
"""


def in_a_terminal(columns: int, **environment: str) -> str:
    """What the program writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR")}
    kept |= {"TERM": "xterm-256color", **environment}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=theirs, stdout=theirs, stderr=theirs, env=kept):
        os.close(theirs)
        written = b""
        while True:
            try:
                written += (got := os.read(ours, 65536))
            except OSError:  # the other end was closed
                break
            if not got:
                break
    os.close(ours)
    return written.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [60, 80])
def test_a_real_terminal_gets_one_table_that_fits(columns: int) -> None:
    text = in_a_terminal(columns)
    grid = lines_of(text.split("accuracy by method; run", 1)[1])[: 2 + len(NAMES)]
    assert len(grid) == 2 + len(NAMES)
    assert max(map(len, grid)) <= columns
    assert "★" in grid[-1]
    assert "\x1b[?25l" in text, "progress is drawn"


def test_a_real_terminal_without_colours_blocks_or_a_cursor() -> None:
    text = in_a_terminal(80, NO_COLOR="1", TERM="dumb", PYTHONIOENCODING="ascii")
    assert "\x1b[?25l" not in text
    assert not COLOURS.search(text)
    assert text.isascii()
    assert "######## *" in text
    assert "+-0.0" in text, "an interval's width"
    assert "baselines: 1 of 2" in text, "a line instead of a bar"
