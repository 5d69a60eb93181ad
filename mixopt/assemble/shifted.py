"""The selection images under synthetic shifts, beside the splits of an objective that does not weigh them."""

from __future__ import annotations

from dataclasses import replace

from mixopt.assemble import Assembly
from mixopt.listener import Listener
from mixopt.scoring.evaluator import Evaluator
from mixopt.scoring.objective import Objective
from mixopt.spec import StudySpec
from mixopt.values.samples import SYNTHETIC, VALIDATION


def with_shifted(spec: StudySpec, assembly: Assembly, listener: Listener) -> Objective | None:
    """The objective with a split of the selection images under synthetic shifts, which none of its scores weighs.

    Args:
        spec: The options.
        assembly: Whose objective.
        listener: Told about progress while images are shifted.

    Returns:
        None where the samples are no images, or a user's own function scores.

    Raises:
        RunError: The shifted copy cannot be read back.
    """
    objective = assembly.objective
    if SYNTHETIC in objective.evaluators:
        return objective
    validation = objective.evaluators[VALIDATION]
    if not isinstance(validation, Evaluator) or validation.split.unit != "image":
        return None
    # Imports torchvision, which other runs can do without.
    from mixopt.data.shifts import open_shifted

    split = replace(open_shifted(validation.split, SYNTHETIC, spec.cache, listener), steers=True)
    evaluator = Evaluator(
        split, assembly.family.encoding, assembly.device, spec.batch_size, cut=objective.tuning, listener=listener
    ).at(assembly.precision.mode, spec.compile)
    scorer = replace(objective.scorer, evaluators={**objective.evaluators, SYNTHETIC: evaluator})
    return replace(objective, scorer=scorer)
