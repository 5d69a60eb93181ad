"""Learned soup: one row of coefficients by gradient. Wortsman et al., ICML 2022, arXiv 2203.05482, appendix I.

Minimises the cross-entropy of ``scale * logits`` on the validation split over the scale and the coefficients. The scale
is an aid of the training: it is discarded. The rows are a softmax (the paper's) or affine: they sum to 1 and may hold
negative entries, which "Learning Scalable Model Soup on a Single GPU", Li et al., ECCV 2024, arXiv 2407.03641, shows to
be better. All checkpoints lie in the pool's stack; beyond it, this takes one model's activations and gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mixopt.errors import MixError, PoolError, ScoreError, SpecError, names
from mixopt.methods import Chosen
from mixopt.scoring.objective import Objective
from mixopt.values.groups import Groups, make_groups
from mixopt.values.mix import Mix, rows_on

Form = Literal["softmax", "affine"]
Schedule = Literal["constant", "cosine"]
# A loss that has grown so much over the first one (or over 1 nat) will not come back.
DIVERGED = 10.0


@dataclass(frozen=True)
class Training:
    """How coefficients are learned.

    Attributes:
        form: ``softmax``, or ``affine``: 1/N plus ``step`` times the centred parameters.
        epochs: Passes over the validation split.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
        batch: Samples per step.
        step: What a parameter of 1 adds to a coefficient of the affine form.
        schedule: Of the learning rate: ``constant``, or ``cosine``, which falls to 0 at the end (Loshchilov and Hutter
            2017, without restarts).
    """

    form: Form
    epochs: int
    lr: float
    weight_decay: float
    batch: int
    step: float
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        for option, value, least in (("epochs", self.epochs, 1), ("batch", self.batch, 1)):
            if value < least:
                raise SpecError(f"{option}: expected {least} or more, found {value}")
        for option, number in (("lr", self.lr), ("step", self.step)):
            if not 0 < number < math.inf:
                raise SpecError(f"{option}: expected a number above 0, found {number}")
        if not 0 <= self.weight_decay < math.inf:
            raise SpecError(f"weight_decay: expected 0 or more, found {self.weight_decay}")


@dataclass(frozen=True)
class Options:
    """The method's options.

    Attributes:
        form: ``softmax`` (the paper's) or ``affine``.
        epochs: Passes over the split; the paper's 3, 5 for the affine form.
        lr: Learning rate; the paper's 0.1, 0.2 for the affine form.
        weight_decay: Of AdamW; torch's own default.
        batch: Samples per step.
        step: What a parameter of 1 adds to a coefficient of the affine form.
    """

    form: Form = "softmax"
    epochs: int | None = None
    lr: float | None = None
    weight_decay: float = 0.01
    batch: int = 256
    step: float = 0.1


def choose(objective: Objective, columns: Mapping[str, Mix], *, seed: int, options: Options = Options()) -> Chosen:
    """Learn one row for all layer groups, by AdamW on the validation split's loss from the uniform soup.

    Evaluations: none; a pass over the split for gradients counts as one.

    Args:
        objective: Gives the gradients.
        columns: What to mix; two or more.
        seed: Of the order of the samples.
        options: How.

    Raises:
        SpecError: An option that is not a positive number.
        PoolError: Fewer than two columns.
        DataError: The validation split lacks classes of the model.
        ScoreError: The loss diverges.
    """
    affine = options.form == "affine"
    training = Training(
        form=options.form,
        epochs=options.epochs if options.epochs is not None else 5 if affine else 3,
        lr=options.lr if options.lr is not None else 0.2 if affine else 0.1,
        weight_decay=options.weight_decay,
        batch=options.batch,
        step=options.step,
    )
    return learn(objective, columns, make_groups("whole", objective.pool.sizes), training, seed)


def learn(objective: Objective, columns: Mapping[str, Mix], groups: Groups, training: Training, seed: int) -> Chosen:
    """Learn one row of coefficients per layer group.

    Args:
        objective: Gives the gradients.
        columns: What to mix.
        groups: The layer groups that get a row each.
        training: How.
        seed: Of the order of the samples.

    Raises:
        PoolError: Fewer than two columns.
        ScoreError: The loss diverges.
    """
    if len(columns) < 2:
        raise PoolError(f"a learned soup needs at least two ingredients, found {names(columns) or 'none'}")
    finest = groups
    for mix in columns.values():
        finest = finest.refine(mix.groups)
    own = groups.index()
    row_of = torch.tensor([own[tensors[0]] for _, tensors in finest.items])
    stacked = torch.from_numpy(np.stack([rows_on(mix, finest) for mix in columns.values()], axis=1))

    parameters = torch.zeros(len(groups), len(columns), dtype=torch.float64, requires_grad=True)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([parameters, scale], lr=training.lr, weight_decay=training.weight_decay)
    steps = training.epochs * math.ceil(objective.samples / training.batch)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    random = np.random.default_rng(seed)
    curve: list[dict[str, Any]] = []
    first: float | None = None
    for epoch in range(1, training.epochs + 1):
        losses = []
        order = random.permutation(objective.samples)
        for begin in range(0, len(order), training.batch):
            samples = order[begin : begin + training.batch]
            # [n_finest, n_columns of the pool]: the learned rows, spread over what each column is made of.
            rows = torch.einsum("gj,gjc->gc", _rows(parameters, training)[row_of], stacked)
            advice = f"use a smaller lr (now {training.lr:g})"
            try:
                found = objective.gradient(_mix(finest, columns, rows), samples, float(scale.detach()))
            except (ScoreError, MixError) as error:
                if first is None:
                    raise  # the soup that it starts from
                raise ScoreError(f"learning diverged in epoch {epoch}: {error}; {advice}") from error
            first = found.loss if first is None else first
            if found.loss > DIVERGED * max(first, 1.0):
                raise ScoreError(
                    f"learning diverged in epoch {epoch}: the loss grew from {first:.3g} to {found.loss:.3g}; {advice}"
                )
            optimizer.zero_grad()
            rows.backward(torch.from_numpy(found.coefficients))  # type: ignore[no-untyped-call]
            scale.grad = torch.tensor(found.scale, dtype=torch.float64)
            optimizer.step()
            if training.schedule == "cosine":
                cosine.step()
            losses.append(found.loss * len(samples))
        curve.append({"x": epoch, "value": sum(losses) / len(order)})
    with torch.no_grad():
        rows = torch.einsum("gj,gjc->gc", _rows(parameters, training)[row_of], stacked)
    notes = {**asdict(training), "optimizer": "AdamW", "rows": len(groups), "scale": float(scale.detach())}
    try:
        mix = _mix(finest, columns, rows)
    except MixError as error:
        raise ScoreError(f"learning diverged in its last step: {error}; {advice}") from error
    return Chosen(mix, curves={"loss": curve}, notes=notes)


def _rows(parameters: Tensor, training: Training) -> Tensor:
    """Coefficients of the columns, ``[n_groups, n_columns]``; every row sums to 1."""
    if training.form == "softmax":
        return torch.softmax(parameters, dim=1)
    centred = parameters - parameters.mean(dim=1, keepdim=True)
    return 1 / parameters.shape[1] + training.step * centred


def _mix(groups: Groups, columns: Mapping[str, Mix], rows: Tensor) -> Mix:
    return Mix(groups, next(iter(columns.values())).columns, rows.detach().numpy())
