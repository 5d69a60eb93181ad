"""Best individual: the column that scores best alone; what people keep of a sweep."""

from __future__ import annotations

from collections.abc import Mapping

from mixopt.methods import Chosen
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix


def choose(objective: Objective, columns: Mapping[str, Mix], *, seed: int) -> Chosen:
    """Score every column once and take the best; of equals, the first.

    Evaluations: one per column.
    """
    ranked = ranking(objective, columns)
    return Chosen(
        columns[ranked[0][0]],
        curves={"individuals": [{"name": name, "value": value} for name, value in ranked]},
        notes={"best": ranked[0][0]},
    )


def best_column(objective: Objective, columns: Mapping[str, Mix]) -> str:
    """The name of the column that scores best; a column alone is not scored."""
    return next(iter(columns)) if len(columns) == 1 else ranking(objective, columns)[0][0]


def ranking(objective: Objective, columns: Mapping[str, Mix]) -> list[tuple[str, float]]:
    """Columns and their scores, best first; equals keep their order."""
    objective.expect(columns.values())
    return by_value(objective, {name: objective.score(mix).value for name, mix in columns.items()})


def by_value(objective: Objective, values: Mapping[str, float]) -> list[tuple[str, float]]:
    """Names and values of the objective's metric, best first; equals keep their order."""
    return sorted(values.items(), key=lambda pair: -objective.metric.sign * pair[1])
