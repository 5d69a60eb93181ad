"""Learned soup by layer: a row per tensor or layer group. Wortsman et al., ICML 2022, arXiv 2203.05482, appendix I.

The authors' script holds all models in memory (a node of 490 GB for 72 of them); here it is the pool's stack plus one
model's activations and gradient. See `mixopt.methods.learned` for the two forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mixopt.methods import Chosen, layer_groups
from mixopt.methods.learned import Form, Schedule, Training, learn
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix

LARGEST, LEAST = 256, 16
# Few samples give few steps: a rate that falls needs so many to get anywhere, measured in studies/defaults.
STEPS = 40


@dataclass(frozen=True)
class Options:
    """The method's options.

    Attributes:
        form: ``softmax`` (the paper's) or ``affine``.
        groups: Layer groups, see `mixopt.values.groups.make_groups`.
        epochs: Passes over the split; the authors' 5, 3 with a learning rate that falls.
        lr: Learning rate; the authors' 0.05, 0.2 for the affine form.
        weight_decay: Of AdamW.
        batch: Samples per step; 256, or with a rate that falls fewer, for `STEPS` steps in all.
        step: What a parameter of 1 adds to a coefficient of the affine form.
        schedule: Of the learning rate: ``constant`` (the authors') or ``cosine``, down to 0 at the end.
    """

    form: Form = "softmax"
    groups: str = "tensor"
    epochs: int | None = None
    lr: float | None = None
    weight_decay: float = 0.0
    batch: int | None = None
    step: float = 0.1
    schedule: Schedule = "constant"


def choose(objective: Objective, columns: Mapping[str, Mix], *, seed: int, options: Options = Options()) -> Chosen:
    """Learn a row for every tensor (the paper's) or layer group, by AdamW on the validation split's loss.

    Evaluations: none; a pass over the split for gradients counts as one.

    Args:
        objective: Gives the gradients.
        columns: What to mix; two or more.
        seed: Of the order of the samples.
        options: How.

    Raises:
        SpecError: An option that is not a positive number, or an unknown group scheme.
        PoolError: Fewer than two columns.
        DataError: The validation split lacks classes of the model.
        ScoreError: The loss diverges.
    """
    rate = options.lr if options.lr is not None else 0.2 if options.form == "affine" else 0.05
    epochs = options.epochs if options.epochs is not None else 3 if options.schedule == "cosine" else 5
    training = Training(
        form=options.form,
        epochs=epochs,
        lr=rate,
        weight_decay=options.weight_decay,
        batch=options.batch if options.batch is not None else _batch(objective.samples, epochs, options.schedule),
        step=options.step,
        schedule=options.schedule,
    )
    return learn(objective, columns, layer_groups(objective, options.groups), training, seed)


def _batch(samples: int, epochs: int, schedule: Schedule) -> int:
    """Samples per step where none are asked for."""
    return LARGEST if schedule == "constant" else min(LARGEST, max(LEAST, samples * epochs // STEPS))
