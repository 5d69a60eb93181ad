"""Outputs: what a surface is of, the kept logits of mixes as rows of one matrix; and outcomes from predicted ones.

A model's logits may all change by the same number without changing a prediction, so they are taken less their mean over
the columns, which keeps what is a polynomial of the coefficients one. Where a model has many classes, a sample's
columns are those that were among its first few for some mix, and the log-sum of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt.values.kept_logits import KeptLogits

# Columns of a sample beside the rest, where not all classes are kept.
COLUMNS = 16
# Of so many mixes, the first, a sample's classes are taken.
LOOKED_AT = 16
LEAST = -1e9


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
        above: ``[n]``, classes before the right one.
        confidence: ``[n]``, the probability of the predicted class.
    """

    predicted: NDArray[np.int64]
    losses: NDArray[np.float64]
    above: NDArray[np.int64]
    confidence: NDArray[np.float64]

    def at(self, samples: NDArray[np.int64] | slice) -> PredictedOutcomes:
        """Those of some samples."""
        return PredictedOutcomes(
            self.predicted[samples], self.losses[samples], self.above[samples], self.confidence[samples]
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
    # Rows one after another are one ascending list of places.
    first = np.arange(count)[:, None] * kept.class_count
    wanted, known = (first + classes).ravel(), (first + kept.classes).ravel()
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found = (known[places] == wanted).reshape(classes.shape)
    taken = np.zeros(len(known), dtype=bool)
    taken[places[found.ravel()]] = True
    # A class that was not kept is no larger than the smallest kept, nor than all that were not.
    least = np.minimum(kept.values.min(axis=1), kept.rest)[:, None]
    values = np.where(found, kept.values.ravel()[places].reshape(classes.shape), least)
    others = np.where(taken.reshape(kept.values.shape), -np.inf, kept.values)
    rest = np.logaddexp(kept.rest, np.logaddexp.reduce(others, axis=1))[:, None]
    every = np.hstack([values, rest]).astype(np.float32)
    return np.asarray(every - every.mean(axis=1, keepdims=True))


def numbers_of(outputs: Tensor, columns: Columns, first: int = 0) -> list[PredictedOutcomes]:
    """What outputs ``[m, k, columns]`` of m mixes mean on the samples from ``first`` on, mix by mix."""
    own = torch.from_numpy(columns.own[first : first + outputs.shape[1]]).to(outputs.device)
    right = outputs.gather(2, own[None, :, None].expand(len(outputs), -1, 1))
    total = torch.logsumexp(outputs, dim=2)
    named = outputs if columns.classes is None else outputs[..., :-1]
    largest, places = named.max(dim=2)
    lower = torch.arange(named.shape[2], device=outputs.device) < own[:, None]
    above = ((named > right) | ((named == right) & lower)).sum(dim=2)
    losses = (total - right[..., 0]).double().cpu().numpy()
    confidence = torch.exp(largest - total).double().cpu().numpy()
    predicted = places.cpu().numpy()
    if columns.classes is not None:
        classes = columns.classes[first : first + outputs.shape[1]]
        predicted = np.take_along_axis(
            np.broadcast_to(classes, (len(outputs), *classes.shape)), predicted[..., None], 2
        )
        predicted = predicted[..., 0]
    before = above.cpu().numpy()
    return [PredictedOutcomes(*each) for each in zip(predicted, losses, before, confidence, strict=True)]


def joined(parts: Sequence[PredictedOutcomes]) -> PredictedOutcomes:
    """One after another."""
    if len(parts) == 1:
        return parts[0]
    return PredictedOutcomes(
        np.concatenate([part.predicted for part in parts]),
        np.concatenate([part.losses for part in parts]),
        np.concatenate([part.above for part in parts]),
        np.concatenate([part.confidence for part in parts]),
    )


def _filled(classes: NDArray[np.int64], values: NDArray[np.float32], size: int) -> NDArray[np.int64]:
    """Classes ``[n, c]`` in which those that stand for nothing give way to some that are not there yet."""
    for row in np.flatnonzero(np.isneginf(values).any(axis=1)):
        gone = np.isneginf(values[row])
        others = np.setdiff1d(np.arange(min(size, 2 * classes.shape[1])), classes[row][~gone])
        classes[row, gone] = others[: gone.sum()]
    return classes
