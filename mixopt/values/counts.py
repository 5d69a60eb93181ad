"""Metrics that are no means over samples: from whole counts, and what each sample adds to them.

Every function here takes labels ``[n]`` and predicted classes (or hits and confidences) ``[n]``, and gives the metric
and ``[n]`` values of it with one sample left out each, in closed form: leaving one out changes few counts.

What a sample adds is its jackknife pseudo-value (Tukey 1958; Efron and Tibshirani, "An introduction to the bootstrap",
1993, section 11.5), centred so that the mean is the metric itself: ``theta + (n - 1) * (mean(theta_) - theta_i)``,
where ``theta_i`` is the metric without sample i. Of a mean these are its terms. They stand wherever terms are compared
sample by sample: in races, in confirmation, in standard errors and in paired tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Values = NDArray[np.float64]
LeftOut = tuple[float, Values]

# Of the expected calibration error: bins of equal width.
BINS = 15


def pseudo_values(found: LeftOut) -> Values:
    """What each sample adds, ``[n]``; the mean is the metric."""
    value, without = found
    if len(without) < 2:  # nothing is left without it
        return np.full(len(without), value)
    return np.asarray(value + (len(without) - 1) * (without.mean() - without))


def f1(labels: Labels, predicted: Labels) -> LeftOut:
    """F1 of class 1: ``2 tp / (2 tp + fp + fn)``, 0 where class 1 is nowhere (scikit-learn's ``f1_score``)."""
    real, said = labels == 1, predicted == 1
    hit, either = real & said, real.astype(np.int64) + said
    twice, total = 2 * int(hit.sum()), int(either.sum())
    return _ratio(np.array(twice), np.array(total)).item(), _ratio(twice - 2 * hit, total - either)


def f1_macro(labels: Labels, predicted: Labels) -> LeftOut:
    """The plain mean of every class's F1, over the classes that are labelled or predicted (scikit-learn's macro F1)."""
    hit, hits, real, said = _counts(labels, predicted)
    either = real + said
    each = _ratio(2 * hits, either)
    total, classes = float(each.sum()), int(np.sum(either > 0))

    def change(members: Labels, hits_less: Labels, less: Labels) -> tuple[Values, Labels]:
        """What leaving one out changes of the sum over classes, and of their number."""
        rest = either[members] - less
        return _ratio(2 * (hits[members] - hits_less), rest) - each[members], (rest == 0).astype(np.int64)

    # A hit is counted twice in its own class; a miss once in the label's and once in the predicted one's.
    one = np.ones(len(labels), dtype=np.int64)
    own, own_gone = change(labels, hit.astype(np.int64), one + hit)
    other, other_gone = change(predicted, np.zeros_like(one), one)
    sums = total + own + np.where(hit, 0.0, other)
    return total / max(1, classes), sums / np.maximum(1, classes - own_gone - np.where(hit, 0, other_gone))


def matthews(labels: Labels, predicted: Labels) -> LeftOut:
    """Matthews' correlation of labels and predictions, for any number of classes (Gorodkin 2004, scikit-learn's).

    0 where either is the same for all samples.
    """
    hit, hits, real, said = _counts(labels, predicted)
    count = len(labels)
    right, both, real_squares, said_squares = hits.sum(), real @ said, real @ real, said @ said

    def correlation(right: Labels, count: int, both: Labels, real_squares: Labels, said_squares: Labels) -> Values:
        spread = np.sqrt(np.float64(count**2 - real_squares)) * np.sqrt(np.float64(count**2 - said_squares))
        found: Values = np.divide(right * count - both, spread, out=np.zeros_like(spread), where=spread > 0)
        return found

    whole = correlation(right, count, both, real_squares, said_squares)
    without = correlation(
        right - hit,
        count - 1,
        both - said[labels] - real[predicted] + hit,
        real_squares - 2 * real[labels] + 1,
        said_squares - 2 * said[predicted] + 1,
    )
    return whole.item(), without


def worst_class_recall(labels: Labels, predicted: Labels) -> LeftOut:
    """The lowest share of hits of any class that occurs."""
    hit, hits, real, _ = _counts(labels, predicted)
    recalls = np.where(real > 0, hits / np.maximum(1, real), np.inf)
    lowest, second, *_ = [*np.sort(recalls)[:2], np.inf]
    others = np.where((recalls == lowest)[labels] & (np.sum(recalls == lowest) == 1), second, lowest)
    rest = real[labels] - 1
    own = np.where(rest > 0, (hits[labels] - hit) / np.maximum(1, rest), np.inf)
    return float(lowest), np.minimum(others, own)


def calibration_error(hits: NDArray[np.bool_], confidence: Values) -> LeftOut:
    """Expected calibration error: how far accuracy is from confidence, by bins of confidence, weighted by samples.

    Guo et al., "On calibration of modern neural networks", ICML 2017, arXiv 1706.04599, equation 3, with `BINS` bins of
    equal width, each with its upper end: torchmetrics' ``norm="l1"``, which differs at the very ends of bins.
    """
    places = np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1), confidence, side="left") - 1, 0, BINS - 1)
    gaps = hits - confidence
    sums = np.bincount(places, gaps, minlength=BINS)
    total, count = float(np.abs(sums).sum()), len(hits)
    without = total - np.abs(sums[places]) + np.abs(sums[places] - gaps)
    return total / count, without / max(1, count - 1)


def _counts(labels: Labels, predicted: Labels) -> tuple[NDArray[np.bool_], Labels, Labels, Labels]:
    """Whether each sample is a hit, and by class: hits, samples, predictions."""
    classes = 1 + max(int(labels.max()), int(predicted.max()))
    hit = labels == predicted
    every = (np.bincount(each, minlength=classes).astype(np.int64) for each in (labels[hit], labels, predicted))
    return hit, *every


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> Values:
    """Their quotient, 0 where there is nothing."""
    found: Values = np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)
    return found
