"""What a value of an option may be: pure functions, which raise ValueError with what was expected."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from mixopt.errors import SpecError, unknown
from mixopt.values.groups import SCHEMES
from mixopt.values.samples import SYNTHETIC, VALIDATION

AUTO = "auto"
# Model families by the name of their module in `mixopt.families`; any other is named by import path.
FAMILIES = ("open_clip", "transformers", "timm", "torchvision", "clip_classifier")
SYNTHETIC_WEIGHT = 0.5
MOST_WORKERS = 1024
# What a column of a file of records can be.
ROLES = ("text", "text_pair", "label", "image")
_BETWEEN_FIELDS = re.compile(rf",\s*(?=(?:{'|'.join(ROLES)})\s*=)")

_SCHEDULER = re.compile(r"(\w+://)?(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d{1,5}")

Count = int | Literal["auto"] | None
Ingredients = tuple[str | int, ...] | int | Literal["auto"]


def known(kind: str, value: str, names: Iterable[str], more: str = "") -> str:
    """A name, if it is one of those."""
    if value not in (every := tuple(names)):
        raise ValueError(unknown(kind, value, every, more))
    return value


def workers_of(value: Any) -> Any:
    """A number of workers as text, or ``auto``."""
    text = str(value).strip()
    if value is None or text == AUTO:
        return None if value is None else AUTO
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= MOST_WORKERS:
        raise ValueError(f"expected a number from 1 to {MOST_WORKERS}, or auto (found {text})")
    return str(int(text))


def scheduler_of(value: Any) -> Any:
    """The address of a Dask scheduler, with its protocol."""
    if value is None:
        return None
    text = str(value).strip()
    if _SCHEDULER.fullmatch(text) is None:
        raise ValueError(f"expected tcp://HOST:PORT, as `dask scheduler` prints it (found {text})")
    return text if "://" in text else f"tcp://{text}"


def ingredients_of(value: Any) -> Ingredients:
    """Globs, a number or ``auto``, or a list of globs with one of the latter at its end."""
    patterns, count = split_ingredients(value)
    if isinstance(count, int) and count < 2:
        raise ValueError(f"expected 2 or more, or auto (found {count})")
    if count is None:
        return patterns
    return (*patterns, count) if patterns else count


def split_ingredients(value: Any) -> tuple[tuple[str, ...], Count]:
    """The globs, and how many ingredients a search takes; of several numbers the last."""
    parts = value if isinstance(value, (list, tuple)) else [value] if isinstance(value, int) or value == AUTO else None
    if parts is None or not all(isinstance(part, (str, int)) for part in parts):
        raise ValueError("input should be a list of texts")
    counts = [part for part in parts if isinstance(part, int) or part == AUTO]
    return tuple(part for part in parts if part not in counts), counts[-1] if counts else None


def merged_ingredients(before: Any, after: Any) -> Any:
    """What two layers say together: the later one's globs win over the earlier one's, and its number over theirs."""
    try:
        patterns, count = split_ingredients(before)
        more, wins = split_ingredients(after)
    except ValueError:
        return after
    wanted = count if wins is None else wins
    return [*(more or patterns), *([] if wanted is None else [wanted])]


def rows_of(value: Any) -> Any:
    """Names of rows, of which a text with commas holds several."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        return value
    found = tuple(name.strip() for part in parts for name in part.split(",") if name.strip())
    if parts and not found:
        raise ValueError("expected at least one row")
    return found


def fields_of(value: Any) -> Any:
    """Role to column, which may be given as texts such as ``text=sentence,label=sentiment``."""
    parts = [value] if isinstance(value, str) else value
    if isinstance(parts, (list, tuple)):
        texts = [part for text in parts if isinstance(text, str) for part in _BETWEEN_FIELDS.split(text)]
        pairs = [text.partition("=") for text in texts]
        if len(texts) < len(parts) or any(not (role.strip() and sign and column) for role, sign, column in pairs):
            raise ValueError(f"expected ROLE=COLUMN, such as text=sentence (found {value!r})")
        parts = {role.strip(): column for role, _, column in pairs}
    for role in parts if isinstance(parts, Mapping) else ():
        known("role", str(role), ROLES)
    return parts


def scheme_of(value: Any) -> Any:
    """A scheme of layer groups, their number, or a file of them."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and not text.isdigit() and not text.endswith(".toml"):
        return known("group scheme", text, SCHEMES, ", a number of groups, or a .toml file of regular expressions")
    return text


def files_and_weights(value: Any) -> Any:
    """Name to file and weight, each of which may be one text, FILE:WEIGHT."""
    if not isinstance(value, Mapping):
        return value
    found = {}
    for name, each in value.items():
        if isinstance(each, str):
            file, sign, text = each.rpartition(":")
            if not (file and sign):
                raise ValueError(f"{name}: expected FILE:WEIGHT, such as {each}:0.3 (found {each!r})")
            each = (file, weight_of(text))
        found[name] = each
    return found


def one_name(data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``[data]``, of which ``search`` is another name for ``validation``.

    Raises:
        SpecError: Both are given.
    """
    if {"search", VALIDATION} <= data.keys():
        raise SpecError("[data]: search and validation are two names of one key, the split that selects; leave one out")
    return {(VALIDATION if key == "search" else key): value for key, value in data.items()}


def shift_weight(shifts: str) -> float:
    """The weight in ``synthetic`` or ``synthetic:WEIGHT``."""
    name, sign, weight = shifts.partition(":")
    if name != SYNTHETIC or (sign and not weight):
        raise ValueError(f"expected none, {SYNTHETIC} or {SYNTHETIC}:WEIGHT")
    return weight_of(weight) if sign else SYNTHETIC_WEIGHT


def weight_of(value: str | float) -> float:
    """A weight above 0 and below 1."""
    try:
        weight = float(value)
    except ValueError:
        weight = 0.0
    if not 0 < weight < 1:
        raise ValueError(f"expected a weight above 0 and below 1 (found {value!r})")
    return weight


def check_weights(weights: list[float]) -> None:
    """Refuse weights that leave nothing for the validation split."""
    if sum(weights) >= 1:
        shown = " + ".join(f"{weight:g}" for weight in weights)
        raise ValueError(f"the weights {shown} leave nothing for the validation split; their sum must be below 1")
