"""Trajectory: checkpoints of one training run, averaged in the order in which they were saved.

Uniform: the mean of the last k, as in SWA, Izmailov et al., UAI 2018, arXiv 1803.05407. EMA: an exponential moving
average from the first checkpoint on, Tarvainen & Valpola, NeurIPS 2017, arXiv 1703.01780; what it does to the weights
of a run is studied by Morales-Brotons et al., TMLR 2024, arXiv 2411.18704. Those average during training, step by step
or once an epoch; here it is done afterwards, over the checkpoints that were kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from mixopt.errors import SpecError, listing, names
from mixopt.methods import Chosen, sweep_choice
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix, combine

DECAYS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def choose(
    objective: Objective,
    columns: Mapping[str, Mix],
    *,
    seed: int,
    form: Literal["uniform", "ema"] = "uniform",
    last: int | None = None,
    decays: tuple[float, ...] = DECAYS,
) -> Chosen:
    """Average the last k checkpoints, or all with weights that decay; k or the decay by the validation split.

    Of equals the smallest k or decay. Evaluations: one per checkpoint (uniform; none with ``last``), or one per decay.

    Args:
        objective: Scores the averages.
        columns: Checkpoints of one run, two or more; the last number in a name is its place, as in ``step_1000``.
        seed: Not used; nothing here is random.
        form: ``uniform``: the mean of the last k; ``ema``: ``m_t = decay * m_(t-1) + (1 - decay) * checkpoint_t``,
            from ``m_1 = checkpoint_1`` on.
        last: The k of ``uniform``, without a search.
        decays: The decays of ``ema`` to choose from, from 0 (the last checkpoint alone) to below 1.

    Raises:
        SpecError: Names without a number or with the same one; fewer than two columns; a wrong option, or one of the
            other form.
        ScoreError: No average has a finite score.
    """
    ordered = in_order(columns)
    mixes = [columns[name] for name in ordered]
    notes = {"form": form, "order": ordered}
    along: dict[float, Mix]
    if form == "ema":
        if last is not None:
            raise SpecError(f"last: expected with form=uniform only, found last={last} with form=ema; give decays")
        along = {decay: combine(mixes, _ema_weights(len(mixes), decay)) for decay in _checked(decays)}
        return sweep_choice(objective, along, "decay", notes)
    if decays != DECAYS:
        raise SpecError("decays: expected with form=ema only, found them with form=uniform; add form=ema")
    if last is not None:
        if not 1 <= last <= len(mixes):
            raise SpecError(f"last: expected a number from 1 to {len(mixes)}, the checkpoints, found {last}")
        return Chosen(_mean(mixes[-last:]), notes={"last": last, **notes})
    along = {count: _mean(mixes[-count:]) for count in range(1, len(mixes) + 1)}
    return sweep_choice(objective, along, "last", notes)


def in_order(columns: Iterable[str]) -> list[str]:
    """Names by the last number in each, ascending.

    Raises:
        SpecError: Fewer than two names, one without a number, or two with the same.
    """
    of_number: dict[int, list[str]] = {}
    without = []
    every = list(columns)
    for name in every:
        if found := re.findall(r"[0-9]+", name):
            of_number.setdefault(int(found[-1]), []).append(name)
        else:
            without.append(name)
    problems = [f"{names(shared)} have the same number, {number}" for number, shared in of_number.items() if shared[1:]]
    if without:
        problems.append(f"no number in {names(without)}")
    if len(every) < 2:
        problems.append(f"expected two or more checkpoints, found {names(every) or 'none'}")
    if problems:
        expected = "expected names with different last numbers that tell the order, such as step_1000"
        raise SpecError(listing(expected, problems))
    return [of_number[number][0] for number in sorted(of_number)]


def _mean(mixes: list[Mix]) -> Mix:
    return combine(mixes, [1 / len(mixes)] * len(mixes))


def _ema_weights(count: int, decay: float) -> list[float]:
    """The weight of each checkpoint in the last average: the recurrence, unrolled."""
    weights = [1.0]
    for _ in range(count - 1):
        weights = [*(decay * weight for weight in weights), 1 - decay]
    return weights


def _checked(decays: tuple[float, ...]) -> tuple[float, ...]:
    if not decays or not all(0 <= decay < 1 for decay in decays):
        raise SpecError(f"decays: expected values from 0 to below 1, found {names(map(str, decays)) or 'none'}")
    return tuple(sorted(set(decays)))
