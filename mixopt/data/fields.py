"""Which column of a file of records is the label, which the text or the image: by name, or as the user says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixopt.errors import DataError, names, unknown

LABEL, TEXT, PAIR, IMAGE = "label", "text", "text_pair", "image"
# The role's own name decides; of the others, two are one too many.
USUAL = {
    LABEL: ("labels", "target", "class", "y"),
    TEXT: ("sentence", "content", "review"),
    IMAGE: ("path", "file", "filename", "img"),
}
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)


@dataclass(frozen=True)
class Roles:
    """Which column is what.

    Attributes:
        label: The label's; None where labels are not read and none shows.
        texts: Role to column of one text or two; empty where none shows.
        image: The image's, where there may be one.
        notices: What was taken as what where the names do not say it themselves.
    """

    label: str | None
    texts: Mapping[str, str]
    image: str | None
    notices: tuple[str, ...]


def roles_of(path: Path, columns: Sequence[str], fields: Mapping[str, str], *, labelled: bool = True) -> Roles:
    """The roles of a file's columns.

    Args:
        path: The file, for messages.
        columns: Their names.
        fields: Role to column, as the user says.
        labelled: Whether labels are read, and have to be there.

    Raises:
        DataError: The user names a column that is not there, or there is no label, or doubt about which one is.
    """
    if not labelled and fields.get(LABEL) not in columns:
        fields = {role: column for role, column in fields.items() if role != LABEL}
    for role, column in fields.items():
        if column not in columns:
            raise DataError(f"{path}: --fields {role}={column}: {unknown('column', column, columns)}")
    label = _column_of(path, columns, LABEL, fields) if labelled else _unread_label(columns, fields)
    if label is None and labelled:
        shown = names(columns, 20) or "none"
        raise DataError(
            f'{path}: expected a column "label" ({", ".join(USUAL[LABEL])} do too), found the columns {shown}; '
            "say which: --fields label=NAME"
        )
    texts = _texts(columns, fields)
    taken = {**({LABEL: label} if label is not None and labelled else {}), **texts}
    told = [] if labelled or label is None else [f"its column {label} is a label's, and is not read"]
    told += [taken_as(role, column) for role, column in taken.items() if role != column and role not in fields]
    others = [column for column in _named(columns, USUAL[LABEL]) if column not in (label, *fields.values())]
    if others and labelled and LABEL not in fields:
        told.append(f"the label is {label}, not {' or '.join(others)} (--fields label={others[0]} says otherwise)")
    return Roles(label, texts, _column_of(path, columns, IMAGE, fields), tuple(told))


def taken_as(role: str, column: str) -> str:
    """What is told of a column that is taken for something else than its name says."""
    return f"the {role} is its column {column} (--fields {role}=NAME says otherwise)"


def both(path: Path, roles: Roles) -> DataError:
    """The error where a record may be a text or an image."""
    text = roles.texts[TEXT]
    return DataError(
        f"{path}: its records may be texts (column {text}) or images (column {roles.image}); say which: "
        f"--fields text={text} or --fields image={roles.image}"
    )


def _column_of(path: Path, columns: Sequence[str], role: str, fields: Mapping[str, str]) -> str | None:
    if role in fields:
        return fields[role]
    found = _named(columns, (role,)) or _named(columns, USUAL[role])
    free = [column for column in found if column not in fields.values()]
    if len(free) > 1 and role == LABEL:
        raise DataError(
            f"{path}: {' and '.join(free)} may both be the {role} (columns: {names(columns, 20)}); say which: "
            f"--fields {role}={free[0]}"
        )
    return free[0] if len(free) == 1 else None


def _unread_label(columns: Sequence[str], fields: Mapping[str, str]) -> str | None:
    """The label's column where labels are not read: no part of the records, where it shows which one it is."""
    found = _named(columns, (LABEL,)) or _named(columns, USUAL[LABEL])
    free = [fields[LABEL]] if LABEL in fields else [column for column in found if column not in fields.values()]
    return free[0] if len(free) == 1 else None


def _texts(columns: Sequence[str], fields: Mapping[str, str]) -> dict[str, str]:
    """Role to column of the texts; in doubt none, which is an error only for a model that takes texts."""
    given = {role: fields[role] for role in (TEXT, PAIR) if role in fields}
    if given:
        return given
    own = _named(columns, (TEXT,))
    if len(own) == 1:
        pair = _named(columns, (PAIR,))
        return {TEXT: own[0], **({PAIR: pair[0]} if pair else {})}
    pairs = [found for pair in PAIRS if len(found := _named(columns, pair)) == 2]
    if pairs:
        return dict(zip((TEXT, PAIR), pairs[0], strict=True)) if len(pairs) == 1 else {}
    found = _named(columns, USUAL[TEXT])
    return {TEXT: found[0]} if len(found) == 1 else {}


def _named(columns: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The columns of these names, in any case of letters, in the order of the names."""
    return [column for name in wanted for column in columns if column.casefold() == name]
