"""A mix as a picture shows it."""

from __future__ import annotations

import numpy as np

from mixopt.reporting.diagnosis import RowMix
from mixopt.scoring.objective import Objective
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix

# Rows of a mix that a picture can show.
MOST_GROUPS = 64


def shown(row: str, mix: Mix, objective: Objective) -> RowMix:
    """A mix to four digits, its layer groups joined to blocks where there are too many of them."""
    groups, values, averaged = mix.groups, mix.coefficients, len(mix.groups) > MOST_GROUPS
    if averaged:
        sizes = objective.pool.sizes
        blocks = make_groups("block", sizes)
        place = {tensor: number for number, (_, tensors) in enumerate(groups.items) for tensor in tensors}
        values = np.stack(
            [
                np.average(
                    mix.coefficients[[place[tensor] for tensor in tensors]],
                    axis=0,
                    weights=[sizes[tensor] for tensor in tensors],
                )
                for _, tensors in blocks.items
            ]
        )
        groups = blocks
    return RowMix(
        row=row,
        columns=mix.columns,
        groups=groups.names,
        coefficients=tuple(tuple(round(each, 4) for each in line) for line in values.tolist()),
        averaged=averaged,
    )
