"""A space of every kind, around every start, for the tests of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixopt.spaces import Space
from mixopt.spaces.composed import Composed
from mixopt.spaces.linear import Affine, Depth, Layers, Residual, Shared
from mixopt.spaces.simplex import Simplex
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix, constant, one_hot
from tests.conftest import random_mix

SIZES = {"z.w": 2, "blocks.0.w": 3, "blocks.1.w": 4, "head.w": 5}
WHOLE = make_groups("whole", SIZES)
COLUMNS = ("model_0", "model_1", "model_10", "base")
STARTS: dict[str, Callable[[], Mix]] = {
    "uniform": lambda: constant(make_groups("whole", SIZES), COLUMNS, [0.25] * 4),
    "ingredient": lambda: one_hot(make_groups("tensor", SIZES), COLUMNS, "model_1"),
    "unlike rows": lambda: random_mix(make_groups(3, SIZES), COLUMNS, seed=1),
}


def composed(start: Mix, active: Sequence[str]) -> Composed:
    """Over mixes that are the checkpoints themselves, so that it gives what the simplex gives."""
    mixes = {f"the {name}": one_hot(make_groups("whole", SIZES), COLUMNS, name) for name in COLUMNS}
    inner = Mix(start.groups, tuple(mixes), start.coefficients)
    return Composed(Simplex(inner, [f"the {name}" for name in active], 0.3), mixes)


MAKERS: dict[str, Callable[[Mix, Sequence[str]], Space]] = {
    "simplex": lambda start, active: Simplex(start, active, 0.3),
    "composed": composed,
    "affine": lambda start, active: Affine(start, active, 0.3),
    "layers": lambda start, active: Layers(start, active, 0.3, start.groups.names[-2:]),
    "shared": lambda start, active: Shared(start, active, 0.3),
    "depth": lambda start, active: Depth(start, active, 0.3),
    "residual": lambda start, active: Residual(
        start, {f"mix {seed}": random_mix(WHOLE, COLUMNS, seed=seed) for seed in range(5, 5 + len(active) // 2)}, 0.5
    ),
}
