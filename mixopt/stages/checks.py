"""What a sampler needs of a search, refused before any work."""

from __future__ import annotations

from mixopt.errors import SpecError
from mixopt.scoring.objective import Objective
from mixopt.scoring.own_objective import OwnEvaluator
from mixopt.spec import StudySpec
from mixopt.values.samples import VALIDATION


def check_surface(spec: StudySpec, objective: Objective) -> None:
    """Refuse what a surface of logits cannot be fitted to."""
    if spec.refine is not None:
        raise SpecError(
            f"--refine {spec.refine}: --sampler surface has one round, and its last choice moves as many layer groups "
            "as the samples support; leave out --refine, or choose another sampler"
        )
    for name in (VALIDATION, *spec.steering):
        if isinstance(objective.evaluators[name], OwnEvaluator):
            raise SpecError(
                f"--sampler surface: the split {name} is scored by your own function, which gives no logits; choose "
                "cmaes, tpe, gp or random"
            )
