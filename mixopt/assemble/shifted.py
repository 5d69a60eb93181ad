"""What tells of a shift, beside the splits of an objective: shifted images, or samples without labels."""

from __future__ import annotations

from dataclasses import replace

from mixopt.assemble import Assembly
from mixopt.data.source import Reading
from mixopt.data.unlabelled import open_unlabelled
from mixopt.errors import DataError
from mixopt.listener import Listener
from mixopt.scoring.evaluator import Evaluator
from mixopt.scoring.objective import Objective
from mixopt.spec import StudySpec
from mixopt.values.samples import SYNTHETIC, UNLABELLED, VALIDATION, Samples


def with_shifted(spec: StudySpec, assembly: Assembly, listener: Listener) -> Objective | None:
    """The objective with a split of the selection images under synthetic shifts, which none of its scores weighs.

    A test split of this name gives way to it there, and stands in the assembly's own objective as before.

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
    validation = objective.evaluators[VALIDATION]
    if not isinstance(validation, Evaluator) or validation.split.unit != "image":
        return None
    # Imports torchvision, which other runs can do without.
    from mixopt.data.shifts import open_shifted

    split = open_shifted(validation.split, SYNTHETIC, spec.cache, listener)
    return _beside(spec, assembly, split, objective.tuning, listener)


def with_unlabelled(spec: StudySpec, assembly: Assembly, listener: Listener) -> Objective | None:
    """The objective with a split of the samples of ``--unlabelled``, which none of its scores weighs.

    Args:
        spec: The options.
        assembly: Whose objective.
        listener: Told about notices, and progress while decoding.

    Returns:
        None where no samples are named.

    Raises:
        DataError: The samples cannot be used, or a user's own function scores.
    """
    if spec.unlabelled is None:
        return None
    objective = assembly.objective
    validation = objective.evaluators[VALIDATION]
    if not isinstance(validation, Evaluator):
        raise DataError(
            f"{spec.unlabelled} (--unlabelled): the validation split is scored by your own function "
            f"({spec.data.validation}), which gives no predictions to compare; leave it out"
        )
    split = open_unlabelled(
        spec.unlabelled,
        UNLABELLED,
        assembly.family.encoding,
        classnames=assembly.family.classnames or validation.split.classes,
        cache=spec.cache,
        reading=Reading(spec.fields, skips=spec.bad_samples == "skip"),
        listener=listener,
    )
    for name, evaluator in objective.evaluators.items():
        # Allowed, as their labels stay unknown, but no longer samples that nothing was chosen by.
        if isinstance(evaluator, Evaluator) and name != VALIDATION and (shared := split.shared_with(evaluator.split)):
            listener.warn(
                f"{shared:,} of the {len(split):,} unlabelled {split.unit}s are in test split {name} too: without "
                "their labels, but they take part in a choice"
            )
    return _beside(spec, assembly, split, None, listener)


def _beside(spec: StudySpec, assembly: Assembly, split: Samples, cut: int | None, listener: Listener) -> Objective:
    """The objective with a split more, which is no test."""
    evaluator = Evaluator(
        replace(split, steers=True),
        assembly.family.encoding,
        assembly.device,
        spec.batch_size,
        cut=cut,
        listener=listener,
    ).at(assembly.precision.mode, spec.compile)
    return replace(assembly.objective, scorer=assembly.objective.scorer.beside(split.name, evaluator))
