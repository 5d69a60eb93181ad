"""Ensembles of logits: reference rows of a comparison. They are no mixes, and cost k times the inference.

Wortsman et al., "Model soups", ICML 2022, arXiv 2203.05482, section 3: the mean of unnormalised logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mixopt.methods.individual import ranking
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix


@dataclass(frozen=True)
class Ensemble:
    """Several models whose logits are averaged.

    Attributes:
        members: Their mixes, by name.
        curves: As in `mixopt.methods.Chosen`.
        notes: As in `mixopt.methods.Chosen`.
    """

    members: dict[str, Mix]
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def ensemble(objective: Objective, columns: Mapping[str, Mix], *, seed: int) -> Ensemble:
    """All columns.

    Evaluations: none.
    """
    return Ensemble(dict(columns))


def greedy_ensemble(
    objective: Objective,
    columns: Mapping[str, Mix],
    *,
    seed: int,
    rule: Literal["at-least", "strict"] = "at-least",
) -> Ensemble:
    """From the best down, add a column where the ensemble is no worse for it: the greedy recipe with ensembles.

    Evaluations: one per column, then one per column but the first.

    Args:
        objective: Scores the ensembles.
        columns: Candidates.
        seed: Not used; the order is that of the scores.
        rule: As in `mixopt.methods.greedy`.
    """
    ranked = ranking(objective, columns)
    chosen, best = [ranked[0][0]], ranked[0][1]
    curve: list[dict[str, Any]] = [{"name": chosen[0], "value": best, "added": True}]
    accepts = objective.metric.at_least if rule == "at-least" else objective.metric.better
    for name, _ in ranked[1:]:
        value = objective.score_ensemble([columns[member] for member in [*chosen, name]]).value
        added = accepts(value, best)
        curve.append({"name": name, "value": value, "added": added})
        if added:
            chosen, best = [*chosen, name], value
    return Ensemble(
        {name: columns[name] for name in chosen}, curves={"greedy": curve}, notes={"rule": rule, "chosen": chosen}
    )


ENSEMBLES: dict[str, Callable[..., Ensemble]] = {"ensemble": ensemble, "greedy_ensemble": greedy_ensemble}
