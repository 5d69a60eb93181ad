"""LiNeS: from the base to a fine-tuned model, further in deeper layers. Wang et al., ICLR 2025, arXiv 2410.17146.

``fused = base + weight * (column - base)`` with a weight per layer, ``alpha + beta * (l - 1) / (L - 1)`` for block l
of L: shallow layers, which hold what is general, stay nearer to the base. What lies outside the numbered blocks (the
stem, and the head as well) gets ``alpha``, as in the authors' code. With ``beta = 1 - alpha``, theirs for a single
fine-tuned model, the last block is always the column's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from mixopt.errors import SpecError, names
from mixopt.files import natural_key
from mixopt.methods import TENTHS, Chosen, Points, sweep_choice, swept
from mixopt.methods.wise_ft import ends
from mixopt.scoring.objective import Objective
from mixopt.values.groups import Groups, block_names, make_groups
from mixopt.values.mix import Mix, rows_on


def choose(
    objective: Objective,
    columns: Mapping[str, Mix],
    *,
    seed: int,
    alphas: tuple[float, ...] = TENTHS,
    beta: float | None = None,
    points: Points = "all",
) -> Chosen:
    """Choose the weight of the first block on the validation split; of equals, the smallest.

    Evaluations: one per column where there are several, then one per alpha, or fewer of them with ``points`` few.

    Args:
        objective: Scores the mixes.
        columns: Fine-tuned models; of several, the one that scores best is used.
        seed: Not used; nothing here is random.
        alphas: Weights of the first block to choose from, from 0 (the base's own) to 1 (the column's).
        beta: What the last block gets beyond the first, from 0 to 1; ``1 - alpha`` where it is not given.
        points: As in `mixopt.methods.wise_ft`.

    Raises:
        SpecError: A value outside 0 to 1, no mixed tensor lies in a numbered block, or ``few`` where there are no
            logits, as a user's own function scores.
        PoolError: The pool has no base.
        ScoreError: No alpha gives a finite score.
    """
    weights = swept("alphas", alphas)
    if beta is not None:
        swept("beta", (beta,))
    pool = objective.pool
    groups = make_groups("block", pool.sizes)
    # Tensors that are the same in all columns count as layers too: a frozen block is still one of the L.
    towers = [
        blocks for blocks in _towers([*pool.fixed, *pool.sizes]) if any(block in groups.names for block in blocks)
    ]
    if not towers:
        raise SpecError(
            "lines: expected mixed tensors in numbered blocks, such as blocks.0.weight, found only "
            f"{names(pool.sizes)}; use wise_ft, which treats all layers alike"
        )
    name, base, column = ends(objective, columns)
    step = {alpha: 1 - alpha if beta is None else beta for alpha in weights}
    along = {alpha: _mix(base, column, groups, towers, alpha, step[alpha]) for alpha in weights}
    choice = sweep_choice(objective, along, "alpha", {"column": name}, points)
    layers = {re.sub(r"[._]?\d+$", "", blocks[0]): len(blocks) for blocks in towers}
    return replace(choice, notes={**choice.notes, "beta": step[choice.notes["alpha"]], "layers": layers})


def _mix(base: Mix, column: Mix, groups: Groups, towers: list[list[str]], alpha: float, beta: float) -> Mix:
    """``(1 - weight) * base + weight * column``, the weight by the depth of the layer group."""
    weight_of = {
        block: alpha + beta * (number / (len(blocks) - 1) if len(blocks) > 1 else 1.0)
        for blocks in towers
        for number, block in enumerate(blocks)
    }
    own = groups.index()
    finest = groups.refine(column.groups)
    weight = np.array([[weight_of.get(groups.names[own[tensors[0]]], alpha)] for _, tensors in finest.items])
    rows = (1 - weight) * rows_on(base, finest) + weight * rows_on(column, finest)
    return Mix(finest, column.columns, rows)


def _towers(tensors: Iterable[str]) -> list[list[str]]:
    """The blocks of every tower in depth order; a block belongs to a tower that names a stem or a head of its own."""
    parts = sorted(set(block_names(tensors).values()), key=natural_key)
    outside = {part for part in parts if part.rpartition(".")[2] in ("stem", "head")}
    roots = {part.rpartition(".")[0] for part in outside}
    towers: dict[str, list[str]] = {}
    for block in parts:
        if block not in outside:
            root = next((root for root in roots if root and block.startswith(f"{root}.")), "")
            towers.setdefault(root, []).append(block)
    return list(towers.values())
