"""Outputs: what a surface is of, the kept logits of mixes as rows of one matrix; and outcomes from predicted ones.

A model's logits may all change by the same number without changing a prediction, so they are taken less their mean over
the columns, which keeps what is a polynomial of the coefficients one. Where a model has many classes, a sample's
columns are those that were among its first few for some mix, and the log-sum of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt.values.kept_logits import KeptLogits

# Columns of a sample beside the rest, where not all classes are kept: fewer than are kept of a mix, so that few of them
# were not kept of another.
COLUMNS = 12
# Of so many mixes, the first, a sample's classes are taken.
LOOKED_AT = 16
# What some metrics need beside classes and losses.
EVERYTHING = ("above", "confidence")


@dataclass(frozen=True, eq=False)
class Columns:
    """Which class each column of a sample's outputs is.

    Attributes:
        classes: ``[n, c]``, ascending in each row; beside them stands one more column, the rest. None where the columns
            are all classes.
        own: ``[n]``, the column of the right class.
        count: How many columns a sample has.
    """

    classes: NDArray[np.int64] | None
    own: NDArray[np.int64]
    count: int

    def __len__(self) -> int:
        return len(self.own)


@dataclass(frozen=True, eq=False)
class PredictedOutcomes:
    """What one mix is predicted to do, in the form that metrics take; see `mixopt.values.metrics.HasOutcomes`.

    Attributes:
        predicted: ``[n]`` classes.
        losses: ``[n]`` nats.
        above: ``[n]``, classes before the right one, of those that have a column; None where it was not asked for.
        confidence: ``[n]``, the probability of the predicted class; None where it was not asked for.
    """

    predicted: NDArray[np.int64]
    losses: NDArray[np.float64]
    above: NDArray[np.int64] | None
    confidence: NDArray[np.float64] | None

    def at(self, samples: NDArray[np.int64] | slice | int) -> PredictedOutcomes:
        """Those of some samples."""
        return PredictedOutcomes(
            self.predicted[samples],
            self.losses[samples],
            None if self.above is None else self.above[samples],
            None if self.confidence is None else self.confidence[samples],
        )


def columns_of(kept: Sequence[KeptLogits], labels: NDArray[np.int64]) -> Columns:
    """The columns of a split's samples.

    Args:
        kept: Of mixes on all samples, the first few of which are looked at.
        labels: ``[n]``.
    """
    if kept[0].classes is None:
        return Columns(None, labels, kept[0].class_count)
    size = kept[0].class_count
    rows = np.arange(len(labels))[:, None]
    best: NDArray[np.int64] = labels[:, None]
    values = np.full(best.shape, np.inf, dtype=np.float32)  # the right class always stays
    for each in kept[:LOOKED_AT]:
        if each.classes is None:
            continue
        best = np.hstack([best, each.classes])
        values = np.hstack([values, each.values])
        # Equal classes side by side, the largest of them first; the others give way.
        order = np.argsort(best * 2.0 - 1 / (1 + np.exp(-values.astype(np.float64))), axis=1, kind="stable")
        best, values = best[rows, order], values[rows, order]
        values[:, 1:][best[:, 1:] == best[:, :-1]] = -np.inf
        places = np.argsort(-values, axis=1, kind="stable")[:, :COLUMNS]
        best, values = best[rows, places], values[rows, places]
    width = min(COLUMNS, size)
    classes = np.sort(_filled(best[:, :width], values[:, :width], size), axis=1)
    own = np.argmax(classes == labels[:, None], axis=1).astype(np.int64)
    return Columns(classes, own, width + 1)


def outputs_of(kept: KeptLogits, columns: Columns) -> NDArray[np.float32]:
    """The outputs ``[k, columns]`` of a mix on the first ``k`` samples, as many as were kept."""
    if columns.classes is None or kept.classes is None or kept.rest is None:
        return np.asarray(kept.values - kept.values.mean(axis=1, keepdims=True))
    count = len(kept.values)
    classes = columns.classes[:count]
    values = np.full(classes.shape, -np.inf, dtype=np.float32)
    others = np.exp(kept.values, dtype=np.float64)
    largest = kept.values.copy()
    right = np.take_along_axis(classes, columns.own[:count, None], axis=1)
    for place in range(kept.values.shape[1]):
        is_here = classes == kept.classes[:, place, None]
        np.copyto(values, kept.values[:, place, None], where=is_here)
        others[is_here.any(axis=1), place] = 0
    # A class that was not kept is no larger than the smallest kept, and has a part in what all those left over have.
    # The right class is kept however small it is: it is not among those that were kept for being large.
    largest[kept.classes == right] = np.inf
    missing = np.isneginf(values)
    absent = missing.sum(axis=1)
    least = np.minimum(largest.min(axis=1), kept.rest - np.log1p(absent))
    np.copyto(values, least[:, None], where=missing)
    chance = np.exp(kept.rest, dtype=np.float64) - absent * np.exp(least) + others.sum(axis=1)
    rest = np.log(np.maximum(chance, np.finfo(float).tiny))[:, None]
    every = np.hstack([values, rest]).astype(np.float32)
    return np.asarray(every - every.mean(axis=1, keepdims=True))


def numbers_of(
    outputs: Tensor, columns: Columns, first: int = 0, needs: Sequence[str] = EVERYTHING
) -> PredictedOutcomes:
    """What outputs ``[m, k, columns]`` of m mixes mean on the samples from ``first`` on, as arrays ``[m, k]``.

    Ties as elsewhere: of equal outputs the lower class comes first.

    Args:
        outputs: Of the mixes.
        columns: What they are of, of all samples.
        first: The first of the samples.
        needs: What is wanted beside classes and losses.
    """
    samples = slice(first, first + outputs.shape[1])
    own = torch.from_numpy(columns.own[samples]).to(outputs.device)
    # One column after another: samples side by side are what processors are fast at.
    by_column = outputs.transpose(1, 2).contiguous()
    named = columns.count if columns.classes is None else columns.count - 1
    right = by_column.gather(1, own[None, None].expand(len(outputs), 1, -1))[:, 0]
    largest = by_column[:, :named].amax(dim=1)
    place = torch.zeros_like(right, dtype=torch.int32)
    for number in reversed(range(named)):
        place.masked_fill_(by_column[:, number] == largest, number)
    above = torch.zeros_like(place) if "above" in needs else None
    if above is not None:
        for number in range(named):
            column = by_column[:, number]
            above += torch.where(own > number, column >= right, column > right)
    top = largest if named == columns.count else torch.maximum(largest, by_column[:, -1])
    total = by_column.sub_(top[:, None]).exp_().sum(dim=1).log_().add_(top)
    predicted = place.long().cpu().numpy()
    if columns.classes is not None:
        predicted = columns.classes[samples][np.arange(outputs.shape[1]), predicted]
    return PredictedOutcomes(
        predicted,
        (total - right).double().cpu().numpy(),
        None if above is None else above.long().cpu().numpy(),
        torch.exp(largest - total).double().cpu().numpy() if "confidence" in needs else None,
    )


def joined(parts: Sequence[PredictedOutcomes]) -> PredictedOutcomes:
    """Samples one after another."""
    if len(parts) == 1:
        return parts[0]
    found: list[Any] = []
    for name in ("predicted", "losses", *EVERYTHING):
        every = [getattr(part, name) for part in parts]
        found.append(None if any(each is None for each in every) else np.concatenate(every, axis=-1))
    return PredictedOutcomes(*found)


def separated(outcomes: PredictedOutcomes) -> list[PredictedOutcomes]:
    """Of arrays ``[m, n]``, each mix's."""
    return [outcomes.at(number) for number in range(len(outcomes.predicted))]


def _filled(classes: NDArray[np.int64], values: NDArray[np.float32], size: int) -> NDArray[np.int64]:
    """Classes ``[n, c]`` in which those that stand for nothing give way to some that are not there yet."""
    for row in np.flatnonzero(np.isneginf(values).any(axis=1)):
        gone = np.isneginf(values[row])
        others = np.setdiff1d(np.arange(min(size, 2 * classes.shape[1])), classes[row][~gone])
        classes[row, gone] = others[: gone.sum()]
    return classes
