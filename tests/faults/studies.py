"""Ways to damage what Optuna keeps a study in: a journal's lines and a database's rows."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from hashlib import blake2b
from pathlib import Path

from tests.faults.mutations import Change, Mutation, Random, rewriting
from tests.faults.payloads import pickled
from tests.faults.trees import (
    DEEP,
    EDITS,
    LINES,
    MENDED,
    Edit,
    encoded,
    json_text,
    line_doubled,
    line_removed,
    lines_cut,
    lines_exchanged,
    odd_line,
    pick,
)

# What mixopt ends a journal's lines with, where it does.
_SUMMED = re.compile(rb'(.*),"sum":"([0-9a-f]{16})"\}', re.DOTALL)
# CMA-ES keeps its optimizer as the hexadecimal digits of a pickle, cut into pieces.
_DIGITS = re.compile(rb'("cma:optimizer[^"]*": ?)"([0-9a-f]*)"')


def hostile_optimizer(random: Random, content: bytes) -> bytes:
    hostile = pick(random, pickled()).hex().encode()

    def replaced(found: re.Match[bytes]) -> bytes:
        return found[1] + b'"' + (hostile if b":0" in found[1] else b"") + b'"'

    return _DIGITS.sub(replaced, content)


def other_optimizer(random: Random, content: bytes) -> bytes:
    digits = pick(random, (b"", b"zz", b"8004", b"80044e2e", b"0" * 4000))
    return _DIGITS.sub(lambda found: found[1] + b'"' + digits + b'"', content)


def chained(content: bytes) -> bytes:
    """A journal whose lines have sums that fit again: each is of its line and of all before it."""
    before, lines = b"", []
    for line in content.splitlines():
        found = _SUMMED.fullmatch(line)
        before = blake2b(found[1] + b"}" if found else line, digest_size=8, key=before).digest()
        lines.append(found[1] + b',"sum":"' + before.hex().encode() + b'"}' if found else line)
    return b"\n".join(lines) + b"\n"


def chaining(change: Change) -> Mutation:
    """A change after which the sums fit again: who makes a hostile journal makes them too."""

    def changed(random: Random, content: bytes) -> bytes:
        return chained(change(random, content))

    return rewriting(changed, f"{MENDED}_{change.__name__}")


def edited(edit: Edit) -> Change:
    """A change of what one line says, its sum apart."""

    def change(random: Random, content: bytes) -> bytes:
        lines = content.splitlines()
        number = int(random.integers(len(lines)))
        tree = json.loads(lines[number])
        has_sum = tree.pop("sum", None) is not None
        text = encoded(json_text(edit(random, tree), (",", ":")))
        lines[number] = text[:-1] + b',"sum":"0123456789abcdef"}' if has_sum and len(text) > 2 else text
        return b"\n".join(lines) + b"\n"

    change.__name__ = f"line_{edit.__name__}"
    return change


JOURNAL: tuple[Mutation, ...] = (
    *LINES,
    *(chaining(edited(edit)) for edit in EDITS),
    *(chaining(change) for change in (odd_line, line_removed, line_doubled, lines_exchanged, lines_cut)),
    rewriting(hostile_optimizer),
    *(chaining(change) for change in (hostile_optimizer, hostile_optimizer, other_optimizer)),
)

_ODD_JSON = (
    "null",
    "5",
    "[]",
    "{}",
    '""',
    "{",
    "",
    DEEP,
    '{"kind": 5}',
    '{"name": 5}',
    "NaN",
    "1e999",
    "\x1b[31m",
    '"x"',
)


def _tables(base: sqlite3.Connection) -> list[str]:
    return [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]


def _sql(change: Callable[[Random, sqlite3.Connection], None]) -> Mutation:
    def apply(random: Random, path: Path) -> None:
        with closing(sqlite3.connect(path)) as base:
            base.execute("PRAGMA foreign_keys = OFF")
            change(random, base)
            base.commit()

    return Mutation(change.__name__, apply)


def row_value(random: Random, base: sqlite3.Connection) -> None:
    """One column of one row."""
    filled = [name for name in _tables(base) if base.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]]
    table = pick(random, filled)
    column = pick(random, [row[1] for row in base.execute(f'PRAGMA table_info("{table}")')])
    rows = [row for (row,) in base.execute(f'SELECT rowid FROM "{table}" ORDER BY rowid')]
    value = pick(random, (None, 0, -1, 2**62, 1.5, float("inf"), "", "text", "x" * 100_000, b"\xff\xfe", *_ODD_JSON))
    try:
        base.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', (value, pick(random, rows)))
    except sqlite3.IntegrityError:  # a column that takes no such value
        base.execute(f'DELETE FROM "{table}" WHERE rowid = ?', (pick(random, rows),))


def row_json(random: Random, base: sqlite3.Connection) -> None:
    """What an attribute or a distribution says."""
    spots = [(name, row[1]) for name in _tables(base) for row in base.execute(f'PRAGMA table_info("{name}")')]
    table, column = pick(random, [spot for spot in spots if spot[1].endswith("_json")])
    rows = [row for (row,) in base.execute(f'SELECT rowid FROM "{table}" ORDER BY rowid')]
    if rows:
        changed = (pick(random, _ODD_JSON), pick(random, rows))
        base.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', changed)


def rows_removed(random: Random, base: sqlite3.Connection) -> None:
    base.execute(f'DELETE FROM "{pick(random, _tables(base))}" WHERE rowid % 2 = ?', (int(random.integers(2)),))


def table_removed(random: Random, base: sqlite3.Connection) -> None:
    base.execute(f'DROP TABLE "{pick(random, _tables(base))}"')


def columns_renamed(random: Random, base: sqlite3.Connection) -> None:
    table = pick(random, _tables(base))
    column = pick(random, [row[1] for row in base.execute(f'PRAGMA table_info("{table}")')])
    base.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO "other"')


def hostile_row(random: Random, base: sqlite3.Connection) -> None:
    hostile = pick(random, pickled()).hex()
    base.execute("UPDATE trial_system_attributes SET value_json = '\"\"' WHERE key LIKE 'cma:optimizer%'")
    base.execute(
        "UPDATE trial_system_attributes SET value_json = ? WHERE key LIKE 'cma:optimizer%:0'", (f'"{hostile}"',)
    )


DATABASE: tuple[Mutation, ...] = tuple(
    _sql(change)
    for change in (
        row_value,
        row_value,
        row_json,
        row_json,
        rows_removed,
        table_removed,
        columns_renamed,
        hostile_row,
        hostile_row,
    )
)
