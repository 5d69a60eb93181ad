"""Greedy soup. Wortsman et al., "Model soups", ICML 2022, arXiv 2203.05482, recipe 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mixopt.methods import Chosen
from mixopt.methods.individual import ranking
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix, combine


def choose(
    objective: Objective,
    columns: Mapping[str, Mix],
    *,
    seed: int,
    rule: Literal["at-least", "strict"] = "at-least",
    order: Literal["best", "random"] = "best",
) -> Chosen:
    """From the best down, or in random order, add a column to the uniform soup where that does not hurt.

    Evaluations, from the best down: one per column, then one per column but the first; never below the best
    individual. In random order: one per column in all, the first alone and a soup for each of the others; never
    below the first.

    Args:
        objective: Scores the soups.
        columns: Candidates.
        seed: Of the random order; not used from the best down.
        rule: ``at-least`` adds where the score is no worse (the paper's >=), ``strict`` only where it is better
            (the authors' code).
        order: ``best`` goes by the scores of the columns alone (the paper's recipe), ``random`` draws a permutation
            (its ablation).
    """
    ordered, best = _ordered(objective, columns, order, seed)
    chosen = ordered[:1]
    soup = columns[chosen[0]]
    curve: list[dict[str, Any]] = [{"name": chosen[0], "value": best, "added": True}]
    accepts = objective.metric.at_least if rule == "at-least" else objective.metric.better
    for name in ordered[1:]:
        members = [*chosen, name]
        candidate = combine([columns[member] for member in members], [1 / len(members)] * len(members))
        value = objective.score(candidate).value
        added = accepts(value, best)
        curve.append({"name": name, "value": value, "added": added})
        if added:
            chosen, soup, best = members, candidate, value
    notes: dict[str, Any] = {"rule": rule, "chosen": chosen}
    return Chosen(soup, curves={"greedy": curve}, notes=notes if order == "best" else {**notes, "order": order})


def _ordered(
    objective: Objective, columns: Mapping[str, Mix], order: Literal["best", "random"], seed: int
) -> tuple[list[str], float]:
    """The columns in the order in which they are tried, and the score of the first alone."""
    if order == "random":
        every = list(columns)
        drawn = [every[place] for place in np.random.default_rng(seed).permutation(len(every))]
        return drawn, objective.score(columns[drawn[0]]).value
    ranked = ranking(objective, columns)
    return [name for name, _ in ranked], ranked[0][1]
