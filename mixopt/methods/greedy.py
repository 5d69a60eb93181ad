"""Greedy soup. Wortsman et al., "Model soups", ICML 2022, arXiv 2203.05482, recipe 1.

In ranked order, candidates are tried by what the mean of logits says of the soup with each of them: the prediction of
RADIN, Menes and Risser-Maroix, "Souping on a budget", arXiv 2401.17790, which ranks whole subsets by it and scores as
many as there is a budget for. Here it only orders; whether a candidate is added is always decided by a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mixopt.errors import SpecError
from mixopt.methods import Chosen
from mixopt.methods._predicted import AveragedLogits
from mixopt.methods.individual import by_value, ranking
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix, combine

# Refusals in a row after which ranked order stops: measured in studies/surface.
PATIENCE = 2


def choose(
    objective: Objective,
    columns: Mapping[str, Mix],
    *,
    seed: int,
    rule: Literal["at-least", "strict"] = "at-least",
    order: Literal["best", "random", "ranked"] = "best",
    patience: int | None = None,
) -> Chosen:
    """From the best down, or in another order, add a column to the uniform soup where that does not hurt.

    Evaluations, from the best down and ranked: one per column, then one per column but the first, or fewer with
    ``patience``; never below the best individual. In random order: one per column in all, the first alone and a soup
    for each of the others; never below the first.

    Args:
        objective: Scores the soups.
        columns: Candidates.
        seed: Of the random order; not used in the others.
        rule: ``at-least`` adds where the score is no worse (the paper's >=), ``strict`` only where it is better
            (the authors' code).
        order: ``best`` goes by the scores of the columns alone (the paper's recipe), ``random`` draws a permutation
            (its ablation), and ``ranked`` begins with the best and goes on with the candidate of whose soup most is
            predicted by the mean of the members' logits, ranked anew after every one that is added.
        patience: Stop after so many refusals in a row; 0 tries all. 2 in ranked order where it is not given, else 0.

    Raises:
        SpecError: A patience below 0; or, in ranked order, no logits: a user's own function scores.
    """
    if patience is not None and patience < 0:
        raise SpecError(f"patience={patience}: expected 0, which tries all, or a number of refusals")
    stop_after = (PATIENCE if order == "ranked" else 0) if patience is None else patience
    ordered, best, averaged = _ordered(objective, columns, order, seed)
    chosen, waiting, refused = ordered[:1], ordered[1:], 0
    soup = columns[chosen[0]]
    curve: list[dict[str, Any]] = [{"name": chosen[0], "value": best, "added": True}]
    accepts = objective.metric.at_least if rule == "at-least" else objective.metric.better
    predicted: dict[str, float] = {}
    while waiting and not (stop_after and refused >= stop_after):
        if averaged is not None and not refused:
            predicted = {name: averaged.value([*chosen, name]) for name in waiting}
            waiting = _by_prediction(objective, ordered, predicted)
        # Where this one is refused, the next ones are tried beside the same members.
        objective.expect(_with_each(columns, chosen, waiting[: objective.ahead]), unsure=True)
        name, *waiting = waiting
        members = [*chosen, name]
        (candidate,) = _with_each(columns, chosen, [name])
        value = objective.score(candidate).value
        added = accepts(value, best)
        step = {"name": name, "value": value, "added": added}
        curve.append({**step, "predicted": predicted[name]} if averaged is not None else step)
        refused = 0 if added else refused + 1
        if added:
            objective.forget()
            chosen, soup, best = members, candidate, value
    notes: dict[str, Any] = {"rule": rule, "chosen": chosen}
    if order != "best":
        notes["order"] = order
    if stop_after:
        notes["patience"] = stop_after
    return Chosen(soup, curves={"greedy": curve}, notes=notes)


def _with_each(columns: Mapping[str, Mix], chosen: Sequence[str], others: Sequence[str]) -> list[Mix]:
    """The uniform soups of the chosen columns and one more, for each of the others."""
    every = [[columns[member] for member in (*chosen, other)] for other in others]
    return [combine(members, [1 / len(members)] * len(members)) for members in every]


def _ordered(
    objective: Objective, columns: Mapping[str, Mix], order: Literal["best", "random", "ranked"], seed: int
) -> tuple[list[str], float, AveragedLogits | None]:
    """The columns in the order in which they are tried, the score of the first alone, and what ranks them anew."""
    if order == "random":
        every = list(columns)
        drawn = [every[place] for place in np.random.default_rng(seed).permutation(len(every))]
        return drawn, objective.score(columns[drawn[0]]).value, None
    if order == "best":
        ranked = ranking(objective, columns)
        return [name for name, _ in ranked], ranked[0][1], None
    needing = objective.needing("logits")
    needing.expect(columns.values())
    scores = {name: needing.score(mix) for name, mix in columns.items()}
    averaged = AveragedLogits(objective, scores, "order=ranked", "order=best or random")
    ranked = by_value(objective, {name: score.value for name, score in scores.items()})
    return [name for name, _ in ranked], ranked[0][1], averaged


def _by_prediction(objective: Objective, ordered: Sequence[str], predicted: Mapping[str, float]) -> list[str]:
    """The candidates, the best predicted first; equals by their own scores."""
    sign = objective.metric.sign
    return sorted((name for name in ordered if name in predicted), key=lambda name: -sign * predicted[name])
