"""Uniform soup: the mean of all. Wortsman et al., "Model soups", ICML 2022, arXiv 2203.05482."""

from __future__ import annotations

from collections.abc import Mapping

from mixopt.methods import Chosen
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix, combine


def choose(objective: Objective, columns: Mapping[str, Mix], *, seed: int) -> Chosen:
    """Give every column the weight 1/N.

    Evaluations: none.
    """
    return Chosen(combine(list(columns.values()), [1 / len(columns)] * len(columns)))
