"""Logits as they are kept, of a model that there is none of."""

from __future__ import annotations

import numpy as np

from mixopt.values.kept_logits import KeptLogits, kept_of


def make_kept(count: int = 12, class_count: int = 5, seed: int = 0) -> KeptLogits:
    """What is kept of random logits, rounded as it is of a model's."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, class_count)) * 4
    chances = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    few = kept_of(class_count)
    if few == class_count:
        return KeptLogits(rounded(chances), None, None, class_count)
    classes = np.sort(np.argsort(-chances, axis=1)[:, :few], axis=1)
    values = np.take_along_axis(chances, classes, axis=1)
    return KeptLogits(rounded(values), classes, rounded(np.log(1 - np.exp(values).sum(axis=1))), class_count)


def rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float32)


def same(first: KeptLogits, second: KeptLogits) -> bool:
    pairs = [(getattr(first, name), getattr(second, name)) for name in ("values", "classes", "rest")]
    are_equal = all(one is two is None or np.array_equal(one, two) for one, two in pairs)
    return are_equal and first.class_count == second.class_count
