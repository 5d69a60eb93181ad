"""Folds: which samples judge what the others chose, in turn, so that every sample steers and judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixopt.surface.outputs import PredictedOutcomes, joined
from mixopt.values.samples import SYNTHETIC, VALIDATION

Samples = NDArray[np.int64]

FOLDS = 5


@dataclass(frozen=True, eq=False)
class Folds:
    """Samples by split, fold by fold.

    Attributes:
        judges: Of each fold, the samples that judge: each is in one fold, or in none.
        steers: Of each fold, those that choose: all others.
    """

    judges: tuple[dict[str, Samples], ...]
    steers: tuple[dict[str, Samples], ...]

    @property
    def judging(self) -> dict[str, Samples]:
        """The samples that judge in any fold, ascending."""
        return {name: np.sort(np.concatenate([fold[name] for fold in self.judges])) for name in self.judges[0]}

    def joined(self, by_fold: Sequence[Mapping[str, PredictedOutcomes]]) -> dict[str, PredictedOutcomes]:
        """What every sample that judges says of the mix of its own fold, in the order of `judging`.

        Args:
            by_fold: Of each fold's mix, outcomes on all samples of each split.
        """
        found = {}
        for name in self.judges[0]:
            parts = [fold[name] for fold in self.judges]
            order = np.argsort(np.concatenate(parts), kind="stable")
            taken = [outcomes[name].at(part) for outcomes, part in zip(by_fold, parts, strict=True)]
            found[name] = joined(taken).at(order)
        return found


def make_folds(labels: Mapping[str, Samples], judges_from: int = 0) -> Folds:
    """Folds of the samples of several splits, alike in classes.

    Of every class each fold has one sample more or less than the others: every fifth of the split's fixed order would
    not do, as classes of one size take turns there. Shifted images are judged with those that they were made from.

    Args:
        labels: Split to the labels ``[n]`` of its samples.
        judges_from: The first sample of the validation split that judges; those before it steer alone.
    """
    judges = []
    for fold in range(FOLDS):
        own = {}
        for name, each in labels.items():
            first = judges_from if name in (VALIDATION, SYNTHETIC) else 0
            classes = labels[VALIDATION] if name == SYNTHETIC else each
            by_class = first + np.argsort(classes[first:], kind="stable")
            own[name] = np.sort(by_class[fold::FOLDS])
        judges.append(own)
    steers = [
        {name: np.setdiff1d(np.arange(len(each)), fold[name], assume_unique=True) for name, each in labels.items()}
        for fold in judges
    ]
    return Folds(tuple(judges), tuple(steers))
