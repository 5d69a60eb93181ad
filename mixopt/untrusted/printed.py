"""Text that files brought, as it may be shown: nothing in it moves a cursor, rings, colours or turns a line round."""

from __future__ import annotations

import unicodedata

# Control characters, formatting such as marks of writing direction, surrogates (bytes of a name that are no UTF-8),
# and separators of lines and paragraphs.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT = frozenset("\n\t\u200d")


def printable(text: str) -> str:
    """The text with every character that does something other than show itself written as its code."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(each if each in _KEPT or unicodedata.category(each) not in _HIDDEN else _code(each) for each in text)


def _code(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
