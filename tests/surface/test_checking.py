from __future__ import annotations

import numpy as np
import pytest

from mixopt.surface import checking
from mixopt.surface.checking import left_out_outcomes
from mixopt.surface.fitting import fit
from mixopt.surface.kernel import inverted
from mixopt.surface.outputs import numbers_of, outputs_of
from tests.surface.worlds import make_world


@pytest.mark.parametrize("lengths", [[60] * 14, [60, 60, 20, 60, 35, *[60] * 9]], ids=["whole", "some in part"])
def test_what_is_left_out_is_what_a_refit_without_it_says(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same kernel: Rasmussen and Williams, equation 2.25, once for each mix and each part of the samples."""
    monkeypatch.setattr(checking, "AT_ONCE", 4)
    world = make_world(len(lengths))
    kept = [each.first(length) for each, length in zip(world.kept, lengths, strict=True)]
    surface = fit(world.coefficients, kept, world.labels)
    mixes = np.array([number for number, length in enumerate(lengths) if length == 60 and number])
    found = list(left_out_outcomes(surface, mixes))
    assert len(found) == len(mixes) > checking.AT_ONCE
    moves = surface.moves(world.coefficients)
    real = [outputs_of(each, surface.columns) for each in world.kept]
    for number, (said, did) in zip(mixes, found, strict=True):
        outputs = np.empty_like(real[0])
        for part in surface.parts:
            others = part.mixes[part.mixes != number]
            samples = slice(part.first, part.stop)
            known = moves[others]
            inverse = inverted(surface.kernel(known, known) + np.diag(surface.kernel.noise_of(known)))
            weights = (surface.kernel(moves[number][None], known) @ inverse)[0]
            changes = np.stack([real[each][samples] - real[0][samples] for each in others])
            outputs[samples] = real[0][samples] + np.tensordot(weights, changes, axes=1)
        for is_said, wanted in ((True, outputs), (False, real[number])):
            ours = said if is_said else did
            (losses,) = numbers_of(surface.reference.new_tensor(wanted)[None], surface.columns).losses
            assert ours.losses == pytest.approx(losses, abs=0.01)
            assert np.mean(ours.predicted == wanted.argmax(axis=1)) > 0.98
        # They differ: the check would see one taken for the other.
        assert np.max(np.abs(said.losses - did.losses)) > 0.05


def test_only_what_is_needed_is_worked_out() -> None:
    world = make_world(8)
    surface = fit(world.coefficients, world.kept, world.labels)
    ((said, did),) = left_out_outcomes(surface, np.array([3]), ())
    assert said.above is None
    assert did.confidence is None
    assert list(left_out_outcomes(surface, np.array([], dtype=np.int64))) == []
