"""Greedy soup. Wortsman et al., "Model soups", ICML 2022, arXiv 2203.05482, recipe 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mixopt.methods import Choice
from mixopt.methods.individual import ranking
from mixopt.mix import Mix, combine
from mixopt.objective import Objective


def choose(
    objective: Objective,
    columns: Mapping[str, Mix],
    *,
    seed: int,
    rule: Literal["at-least", "strict"] = "at-least",
) -> Choice:
    """From the best down, add a column to the uniform soup where that does not hurt.

    Evaluations: one per column, then one per column but the first. Never below the best individual.

    Args:
        objective: Scores the soups.
        columns: Candidates.
        seed: Not used; the order is that of the scores.
        rule: ``at-least`` adds where the score is no worse (the paper's >=), ``strict`` only where it is better
            (the authors' code).
    """
    ranked = ranking(objective, columns)
    chosen = [ranked[0][0]]
    soup, best = columns[chosen[0]], ranked[0][1]
    curve: list[dict[str, Any]] = [{"name": chosen[0], "value": best, "added": True}]
    accepts = objective.metric.at_least if rule == "at-least" else objective.metric.better
    for name, _ in ranked[1:]:
        members = [*chosen, name]
        candidate = combine([columns[member] for member in members], [1 / len(members)] * len(members))
        value = objective.score(candidate).value
        added = accepts(value, best)
        curve.append({"name": name, "value": value, "added": added})
        if added:
            chosen, soup, best = members, candidate, value
    return Choice(soup, curves={"greedy": curve}, notes={"rule": rule, "chosen": chosen})
