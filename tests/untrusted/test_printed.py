"""Text from files on a terminal: it shows itself and does nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.untrusted.printed import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nof lines", "plain\ttext\nof lines"),
        ("Zürich 東京 👩\u200d🔬", "Zürich 東京 👩\u200d🔬"),
        ("\x1b[31mred\x1b]8;;http://x\x07", r"\x1b[31mred\x1b]8;;http://x\x07"),
        ("back\x08\rover", r"back\x08\rover"),
        ("\u202eturned\u2066", r"\u202eturned\u2066"),
        ("two\u2028lines", r"two\u2028lines"),
        ("name\udcff", r"name\udcff"),
        ("\x9b2J", r"\x9b2J"),
        ("[bold]:smile:", "[bold]:smile:"),
    ],
)
def test_what_does_something_is_shown_as_its_code(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_what_is_shown_can_always_be_written(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert "\x1b" not in shown
    assert printable(shown) == shown
