"""Mixes over any grouping of a few tensors, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix
from tests.conftest import random_mix

SIZES = {"z.w": 3, "b.w": 4, "a.0.w": 5, "a.0.b": 1, "m.w": 2}
COLUMNS = ("model_0", "model_1", "base")
WHOLE = make_groups("whole", SIZES)
TENSOR = make_groups("tensor", SIZES)

groupings = st.sampled_from([WHOLE, TENSOR, make_groups(2, SIZES), make_groups(3, SIZES), make_groups("block", SIZES)])
seeds = st.integers(0, 10**6)


@st.composite
def mixes(draw: st.DrawFn) -> Mix:
    """Affine mixes over any grouping of the same tensors."""
    return random_mix(draw(groupings), COLUMNS, draw(seeds), draw(st.booleans()))
