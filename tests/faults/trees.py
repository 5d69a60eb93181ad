"""Ways to damage JSON and TOML: the values, keys and lists in it, and the text around them."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import tomli_w

from mixopt.untrusted.texts import checksum_of
from tests.faults.mutations import Change, Mutation, Random, rewriting

DEEP = "[" * 100_000 + "]" * 100_000
DEEP_TABLES = '{"a":' * 50_000 + "1" + "}" * 50_000
# In the name of what is damaged and has a checksum that fits: another result may then come of it.
MENDED = "mended"
# Stands in a tree for text that no value would give.
_RAW = "\x01raw:"
RAW = ("1e999", "-1e999", DEEP, DEEP_TABLES, "9" * 5000, "0x10", "tru", "[1,]")

NAMES = (
    "",
    ".",
    "..",
    "../outside.safetensors",
    "../../outside",
    "/proc/nowhere/x",
    "n" * 300,
    "a\x00b",
    "\x1b[31mred\x1b[0m\x07",
    "\x9b2J",
    "[bold]loud[/bold]",
    "[/]",
    "[link=https://example.org]x[/link]",
    ":smile:",
    "two\nlines\r\nand\ttabs",
    "\u202eright to left",
    "\ud800",
    "\N{PILE OF POO}\u0301",
    "{} {0} {name} %s %(x)s $HOME ~",
    "x" * 100_000,
    "nan",
    "*",
    "[",
    "(",
    "(a+)+$",
)
NUMBERS = (0, 1, -1, 2, 7, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**400, -(2**63))
FLOATS = (0.0, -0.0, 0.5, 1e-320, 1e308, -1.5, math.nan, math.inf, -math.inf)
ODD: tuple[Any, ...] = (None, True, False, *NUMBERS, *FLOATS, [], {}, [[]], [None], {"a": 1}, [1, "a"], *NAMES)


def pick(random: Random, choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


def places_in(tree: Any) -> list[tuple[Any, Any]]:
    """Every container in a tree with each of its keys."""
    keys: list[Any] = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    found = [(tree, key) for key in keys]
    for key in keys:
        found += places_in(tree[key])
    return found


def _at(random: Random, tree: Any, kind: type) -> tuple[Any, Any] | None:
    found = [(container, key) for container, key in places_in(tree) if isinstance(container, kind)]
    if not found:
        return None
    # Keys near the root are few and matter; those of long lists are many.
    near = found[: max(1, len(found) // 10)]
    return found[int(random.integers(len(found)))] if random.random() < 0.6 else pick(random, near)


Edit = Callable[[Random, Any], Any]


def odd_value(random: Random, tree: Any) -> Any:
    if spot := _at(random, tree, object):
        spot[0][spot[1]] = pick(random, ODD)
    return tree


def odd_text(random: Random, tree: Any) -> Any:
    if spot := _at(random, tree, object):
        spot[0][spot[1]] = pick(random, NAMES)
    return tree


def odd_number(random: Random, tree: Any) -> Any:
    found = [(box, key) for box, key in places_in(tree) if type(box[key]) in (int, float)]
    if found:
        container, key = pick(random, found)
        container[key] = pick(random, (*NUMBERS, *FLOATS, container[key] + 1, -container[key]))
    return tree


def text_replaced(random: Random, tree: Any) -> Any:
    found = [(box, key) for box, key in places_in(tree) if isinstance(box[key], str)]
    if found:
        container, key = pick(random, found)
        container[key] = pick(random, (*NAMES, container[key] + "x", container[key][1:], container[key].upper()))
    return tree


def raw_value(random: Random, tree: Any) -> Any:
    if spot := _at(random, tree, object):
        spot[0][spot[1]] = _RAW + str(int(random.integers(len(RAW))))
    return tree


def drop(random: Random, tree: Any) -> Any:
    if spot := _at(random, tree, object):
        del spot[0][spot[1]]
    return tree


def drop_a_key(random: Random, tree: Any) -> Any:
    if spot := _at(random, tree, dict):
        del spot[0][spot[1]]
    return tree


def rename_a_key(random: Random, tree: Any) -> Any:
    if spot := _at(random, tree, dict):
        spot[0][pick(random, (*NAMES, f"{spot[1]}x", str(spot[1]).upper()))] = spot[0].pop(spot[1])
    return tree


def add_a_key(random: Random, tree: Any) -> Any:
    if spot := _at(random, tree, dict):
        spot[0][pick(random, ("extra", "__class__", *NAMES))] = pick(random, ODD)
    return tree


def exchange(random: Random, tree: Any) -> Any:
    first, second = _at(random, tree, object), _at(random, tree, object)
    if first and second:
        one, other = first[0][first[1]], second[0][second[1]]
        # A value put inside itself would have no end.
        if not _holds(one, second[0]) and not _holds(other, first[0]):
            first[0][first[1]], second[0][second[1]] = other, one
    return tree


def _holds(value: Any, container: Any) -> bool:
    return value is container or any(box is container for box, _ in places_in(value))


def double_an_item(random: Random, tree: Any) -> Any:
    if spot := _at(random, tree, list):
        spot[0].insert(spot[1], spot[0][spot[1]])
    return tree


def turn_a_list_round(random: Random, tree: Any) -> Any:
    if spot := _at(random, tree, list):
        spot[0].reverse()
    return tree


def long_list(random: Random, tree: Any) -> Any:
    if spot := _at(random, tree, object):
        spot[0][spot[1]] = [spot[0][spot[1]]] * 3000
    return tree


def wrapped(random: Random, tree: Any) -> Any:
    if spot := _at(random, tree, object):
        spot[0][spot[1]] = pick(random, ([spot[0][spot[1]]], {"value": spot[0][spot[1]]}, str(spot[0][spot[1]])))
    return tree


def another_root(random: Random, tree: Any) -> Any:
    return pick(random, (None, 5, True, "text", [], {}, [tree], {"a": tree}, 10**400, math.nan))


EDITS: tuple[Edit, ...] = (
    odd_value,
    odd_text,
    odd_number,
    text_replaced,
    raw_value,
    drop,
    drop_a_key,
    rename_a_key,
    add_a_key,
    exchange,
    double_an_item,
    turn_a_list_round,
    long_list,
    wrapped,
)


def json_text(tree: Any, separators: tuple[str, str] | None = None) -> str:
    """JSON with the raw texts in it."""
    text = json.dumps(tree, ensure_ascii=False, separators=separators)
    for number, raw in enumerate(RAW):
        text = text.replace(json.dumps(f"{_RAW}{number}"), raw)
    return text


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def mended(tree: Any) -> Any:
    """The tree with a checksum that fits, where it has one: who makes a hostile file makes that too."""
    if isinstance(tree, dict) and "checksum" in tree:
        with suppress(ValueError, TypeError, RecursionError):
            tree["checksum"] = checksum_of(tree)
    return tree


def mending(edit: Edit) -> Edit:
    """An edit after which the checksum fits again."""

    def edited(random: Random, tree: Any) -> Any:
        return mended(edit(random, tree))

    edited.__name__ = f"{MENDED}_{edit.__name__}"
    return edited


def json_change(edit: Edit) -> Change:
    """A change of a JSON file from one of its value."""

    def change(random: Random, content: bytes) -> bytes:
        return encoded(json_text(edit(random, json.loads(content))))

    change.__name__ = f"json_{edit.__name__}"
    return change


def nested_without_end(random: Random, content: bytes) -> bytes:
    return pick(random, (DEEP, DEEP_TABLES, '{"a":' * 50_000, "[" * 100_000)).encode()  # type: ignore[no-any-return]


def twice_the_same_key(random: Random, content: bytes) -> bytes:
    tree = json.loads(content)
    if not isinstance(tree, dict) or not tree:
        return content
    key = pick(random, list(tree))
    return encoded(json_text(tree)[:-1] + f", {json.dumps(key)}: {json_text(pick(random, ODD))}}}")


def other_encoding(random: Random, content: bytes) -> bytes:
    text = content.decode()
    return pick(  # type: ignore[no-any-return]
        random,
        (
            b"\xef\xbb\xbf" + content,
            text.encode("utf-16"),
            text.encode("utf-32-be"),
            text.replace("a", "\xe9").encode("latin-1", "replace"),
            content.replace(b"\n", b"\r\n"),
            content.replace(b" ", b"\xc2\xa0"),
        ),
    )


MENDING: tuple[Edit, ...] = tuple(mending(edit) for edit in EDITS)
JSON: tuple[Mutation, ...] = (
    *(rewriting(json_change(edit)) for edit in (*EDITS, *MENDING, another_root)),
    rewriting(nested_without_end),
    rewriting(twice_the_same_key),
    rewriting(other_encoding),
)


def line_change(edit: Edit) -> Change:
    """A change of a file of one JSON value per line from one of a value."""

    def change(random: Random, content: bytes) -> bytes:
        lines = content.splitlines()
        number = int(random.integers(len(lines)))
        lines[number] = encoded(json_text(edit(random, json.loads(lines[number])), (",", ":")))
        return b"\n".join(lines) + b"\n"

    change.__name__ = f"line_{edit.__name__}"
    return change


ODD_LINES = (
    b"null",
    b"5",
    b"[]",
    b"{}",
    b'""',
    b"",
    b"   ",
    b"{",
    b"\xff\xfe",
    b"\x00" * 100,
    DEEP.encode(),
    DEEP_TABLES.encode(),
    b'{"op_code": "x", "worker_id": "a"}',
    b'{"op_code": 99, "worker_id": "a"}',
    b'{"op_code": 4}',
    b'{"op_code": 4, "worker_id": "a", "study_id": 77}',
    b'{"op_code": 6, "worker_id": "a", "trial_id": 10000, "state": 1, "values": null}',
    b'{"label": 5}',
    b'{"text": "word1", "label": null}',
    b'{"text": "word1", "label": -1}',
    b'{"text": "word1", "label": 99999999999999999999}',
    b'{"text": 5, "label": "sad"}',
    b'{"text": "x", "label": "\x1b[31m"}',
)


def odd_line(random: Random, content: bytes) -> bytes:
    lines = content.splitlines()
    lines.insert(int(random.integers(len(lines) + 1)), pick(random, ODD_LINES))
    return b"\n".join(lines) + b"\n"


def line_removed(random: Random, content: bytes) -> bytes:
    lines = content.splitlines()
    del lines[int(random.integers(len(lines)))]
    return b"\n".join(lines) + b"\n"


def line_doubled(random: Random, content: bytes) -> bytes:
    lines = content.splitlines()
    number = int(random.integers(len(lines)))
    return b"\n".join([*lines[: number + 1], *lines[number:]]) + b"\n"


def lines_exchanged(random: Random, content: bytes) -> bytes:
    lines = content.splitlines()
    one, two = (int(random.integers(len(lines))) for _ in range(2))
    lines[one], lines[two] = lines[two], lines[one]
    return b"\n".join(lines) + b"\n"


def lines_cut(random: Random, content: bytes) -> bytes:
    lines = content.splitlines()
    return b"\n".join(lines[: int(random.integers(len(lines)))]) + b"\n"


LINES: tuple[Mutation, ...] = (
    *(rewriting(line_change(edit)) for edit in (*EDITS, another_root)),
    *(rewriting(change) for change in (odd_line, line_removed, line_doubled, lines_exchanged, lines_cut)),
    rewriting(other_encoding),
)


def toml_change(edit: Edit) -> Change:
    """A change of a TOML file from one of its tables."""

    def change(random: Random, content: bytes) -> bytes:
        tree = edit(random, tomllib.loads(content.decode()))
        text = tomli_w.dumps(_for_toml(tree) if isinstance(tree, dict) else {"value": _for_toml(tree)})
        for number, raw in enumerate(RAW):
            text = text.replace(json.dumps(f"{_RAW}{number}"), raw)
        return encoded(text)

    change.__name__ = f"toml_{edit.__name__}"
    return change


def _for_toml(value: Any) -> Any:
    """What TOML can hold: it has no null."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return {str(key): _for_toml(item) for key, item in value.items()}
    return [_for_toml(item) for item in value] if isinstance(value, list) else value


LONG_KEY = ".".join(["a"] * 50_000)
TOML_ENDS = (
    f"{LONG_KEY} = 1\n",
    f"[{LONG_KEY}]\n",
    f"[[{LONG_KEY}]]\n",
    f"x = {{ {LONG_KEY} = 1 }}\n",
    f"x = {DEEP}\n",
    "x = " + "{a = " * 50_000 + "1" + "}" * 50_000 + "\n",
    "x = [\n" * 50_000,
    "seed = 1\nseed = 2\n",
    "[data]\n[data]\n",
    'x = """\n',
    "x = '\x1b[31m'\n",
    'x = "\\ud800"\n',
    "x = 1979-05-27T07:32:00Z\n",
    "x = 1e999\n",
    "x = nan\n",
    f"x = {'9' * 5000}\n",
    f"x = 0x{'f' * 5000}\n",
    f'x = "{"y" * 100_000}"\n',
    "[a]\n" * 3,
    "= 1\n",
    "x\n",
    "\x00\n",
    "".join(f"[t{number}]\n" for number in range(20_000)),
    "".join(f"k{number} = 1\n" for number in range(20_000)),
)


def odd_end(random: Random, content: bytes) -> bytes:
    return content + b"\n" + pick(random, TOML_ENDS).encode()  # type: ignore[no-any-return]


def odd_beginning(random: Random, content: bytes) -> bytes:
    return pick(random, TOML_ENDS).encode() + content  # type: ignore[no-any-return]


TOML: tuple[Mutation, ...] = (
    *(rewriting(toml_change(edit)) for edit in EDITS),
    rewriting(odd_end),
    rewriting(odd_beginning),
    rewriting(other_encoding),
)
