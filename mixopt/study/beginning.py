"""What a study begins with, and keeps: its space, and what was scored before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna

from mixopt.errors import MixError
from mixopt.spaces import Space
from mixopt.study.records import ATTRIBUTE, space_of
from mixopt.study.studies import check_owner, has_begun
from mixopt.values.mix import Mix, rows_on


class Known(NamedTuple):
    """A mix that was scored.

    Attributes:
        mix: The mix.
        seen: On how many of the first samples of the validation split.
    """

    mix: Mix
    seen: int


def keep_space(
    study: optuna.Study,
    identity: Mapping[str, Any],
    make_space: Callable[[], Space],
    evidence: Callable[[], Sequence[Known]] = list,
) -> Space:
    """The space of a study: read back, or made and stored with the identity where the study is new.

    Args:
        study: The study.
        identity: What must not change between sessions, as JSON values.
        make_space: Makes the space of a new study.
        evidence: Mixes scored before a new study that its surfaces are fitted to; see `evidence_of`.

    Raises:
        RunError: The study is that of another run folder.
    """
    if has_begun(study):
        check_owner(study, identity)  # of a database, somebody else may have begun it while the start was found
        return space_of(study)
    space = make_space()
    kept: dict[str, Any] = {"identity": dict(identity), "space": space.describe()}
    if known := evidence():
        kept["evidence"] = [
            {"rows": rows, "seen": seen} for mix, seen in known if (rows := _rows_in(space, mix)) is not None
        ]
    study.set_user_attr(ATTRIBUTE, kept)
    return space


def _rows_in(space: Space, mix: Mix) -> list[list[float]] | None:
    """A mix's row in each of a space's layer groups, one where they are all the same; None where it has several."""
    try:
        rows = rows_on(mix, space.to_mix(np.zeros(space.dims)).groups)
    except MixError:
        return None
    found: list[list[float]] = (rows[:1] if np.all(rows == rows[0]) else rows).tolist()
    return found


def evidence_of(study: optuna.Study, space: Space) -> list[Known]:
    """What was scored before a study began, as it keeps it."""
    start = space.to_mix(np.zeros(space.dims))
    shape = start.coefficients.shape
    kept = study.user_attrs.get(ATTRIBUTE, {}).get("evidence", [])
    return [
        Known(Mix(start.groups, start.columns, np.broadcast_to(np.array(each["rows"]), shape)), each["seen"])
        for each in kept
    ]
