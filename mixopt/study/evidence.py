"""Evidence: the mixes that were scored, as what surfaces are fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from mixopt.errors import MixoptError
from mixopt.scoring.objective import Objective
from mixopt.spaces import Space
from mixopt.study.beginning import Known
from mixopt.study.landscape import Landscape, Steering
from mixopt.study.studies import mix_of
from mixopt.surface.fitting import Surface, fit
from mixopt.values.kept_logits import KeptLogits
from mixopt.values.mix import Mix, rows_on
from mixopt.values.samples import VALIDATION

Floats = NDArray[np.float64]

# However near all trials lie, a last climb may go so far.
LEAST_REACH = 0.1


class Evidence:
    """What a study's trials tell, and other mixes scored before it; remembered as long as this is.

    Args:
        objective: Gives the logits: from its cache, or by scoring again.
        space: The study's.
        others: What else was scored; mixes that have no row for each of the space's layer groups tell nothing here.
    """

    def __init__(self, objective: Objective, space: Space, others: Sequence[Known] = ()) -> None:
        self._objective = objective.needing("logits")
        self._space = space
        self._groups = space.to_mix(np.zeros(space.dims)).groups
        self._others = [each for each in others if self._rows_of(each.mix) is not None]
        # By split, the mixes that its surface was fitted to last, with the samples that each was scored on.
        self._fitted: dict[str, tuple[list[tuple[Mix, int]], Surface]] = {}

    def landscape(self, trials: Sequence[FrozenTrial]) -> Landscape:
        """What complete trials, the start first, and the other mixes tell.

        Raises:
            MixoptError: There are no logits.
        """
        whole = self._objective.count(VALIDATION)
        own = [(mix_of(trial, self._space), int(trial.user_attrs.get("seen", whole))) for trial in trials]
        weights = {VALIDATION: 1 - sum(self._objective.weights.values()), **self._objective.weights}
        return Landscape(
            self._space,
            {name: self._steering(name, weight, own) for name, weight in weights.items()},
            self._objective.signal,
        )

    def reach(self, trials: Sequence[FrozenTrial]) -> float:
        """How far trials lie from the start in any dimension of the box: what a surface of them is of."""
        every = np.array([[trial.params[label] for label in self._space.labels] for trial in trials])
        return max(LEAST_REACH, float(np.max(np.abs(every), initial=0.0)))

    def _steering(self, name: str, weight: float, own: Sequence[tuple[Mix, int]]) -> Steering:
        count = self._objective.count(name)
        labels = self._objective.evaluators[name].split.labels[:count]
        first, *rest = own
        if name == VALIDATION:
            wanted = [first, *((mix, seen) for mix, seen in self._others if mix != first[0]), *rest]
        else:
            wanted = [(mix, count) for mix, _ in own]
        coefficients = np.stack([rows_on(mix, self._groups) for mix, _ in wanted])
        known, before = self._fitted.get(name, ([], None))
        if wanted[: len(known)] != known:
            known, before = [], None
        surface = fit(
            coefficients,
            (self._logits(mix, name, length) for mix, length in wanted[len(known) :]),
            labels,
            device=self._objective.evaluators[name].device,
            before=before,
        )
        self._fitted[name] = wanted, surface
        return Steering(surface, labels, weight)

    def _logits(self, mix: Mix, split: str, count: int) -> KeptLogits:
        found = self._objective.outcomes(mix, split, count).logits
        if found is None:
            raise MixoptError(f"--sampler surface: {split} gives no logits to fit a surface to; use another sampler")
        return found

    def _rows_of(self, mix: Mix) -> Floats | None:
        try:
            return rows_on(mix, self._groups)
        except MixoptError:
            return None
