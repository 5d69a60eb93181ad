from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.surface import scored
from mixopt.surface.fitting import Surface, fit
from mixopt.surface.kernel import inverted
from mixopt.surface.outputs import outputs_of
from mixopt.values.metrics import METRICS
from tests.surface.worlds import Floats, World, exact, kept_of, make_world


def fitted(world: World, count: int | None = None) -> Surface:
    """A surface of the first mixes of a world."""
    return fit(world.coefficients[:count], world.kept[:count], world.labels)


def off(surface: Surface, world: World, coefficients: Floats) -> Floats:
    """What predicted outputs are off by ``[m, samples, columns]``."""
    real = [outputs_of(kept_of(each, world.labels), surface.columns) for each in world.logits_at(coefficients)]
    return surface.outputs(coefficients).numpy() - np.stack(real)


def size(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.parametrize(("degree", "count", "most"), [(1, 15, 0.01), (2, 40, 0.02), (3, 100, 0.05)])
def test_a_polynomial_is_predicted(degree: int, count: int, most: float) -> None:
    world = make_world(count, degree=degree)
    surface = fitted(world)
    assert size(off(surface, world, world.more(30, 1))) < most * surface.spread()
    assert surface.explained() > 1 - most


@pytest.mark.parametrize("count", [5, 12, 29, 80])
def test_with_fewer_mixes_than_terms_and_with_more_it_knows_how_sure_it_is(count: int) -> None:
    """7 terms of degree 1, 28 of degree 2."""
    world = make_world(count, samples=200)
    surface, others = fitted(world), world.more(60, 1)
    found = off(surface, world, others)
    assert size(found) < surface.spread() * (1.2 if count < 12 else 0.9)
    # Five mixes tell little of how much there is to know.
    assert 0.6 < size(surface.expected(others)) / size(found) < (2 if count == 5 else 1.4)
    noise = surface.kernel.noise_of(surface.moves(others))
    assert surface.uncertainty(others) == pytest.approx(
        np.sqrt(np.maximum(0, surface.expected(others) ** 2 - surface.left_out.scale**2 * noise))
    )


def test_farther_away_it_is_less_sure() -> None:
    world = make_world(25, samples=200)
    surface = fitted(world)
    sizes = [0.1, 0.3, 0.6, 1.2]
    unsure = [size(surface.uncertainty(world.more(40, 1, each))) for each in sizes]
    wrong = [size(off(surface, world, world.more(40, 1, each))) for each in sizes]
    assert unsure == sorted(unsure)
    assert wrong == sorted(wrong)
    assert unsure == pytest.approx(wrong, rel=0.7)


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_a_mix_that_was_scored_is_predicted_as_it_was(classes: int) -> None:
    world = make_world(40, classes=classes)
    surface = fitted(world)
    for coefficients, real in zip(surface.outcomes(world.coefficients), world.outcomes, strict=True):
        # Logits were rounded to float16, and of many classes some were not kept.
        most = 0.02 if classes < 40 else 0.2
        assert METRICS["nll"].of(world.labels, coefficients) == pytest.approx(float(real.losses.mean()), abs=most / 2)
        assert np.mean(coefficients.predicted == real.predicted) > 1 - most
        assert np.sqrt(np.mean((coefficients.losses - real.losses) ** 2)) < most


def test_outcomes_are_those_of_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is worked on at a time."""
    world = make_world(20)
    surface, others = fitted(world), world.more(7, 1)
    outputs = surface.outputs(others)
    monkeypatch.setattr(scored, "ON_CPU", 35)
    monkeypatch.setattr("mixopt.surface.fitting.AT_ONCE", 3)
    assert surface.outputs(others).numpy() == pytest.approx(outputs.numpy(), abs=1e-5)
    labels = torch.from_numpy(world.labels)
    for each, logits in zip(surface.outcomes(others), outputs, strict=True):
        assert np.array_equal(each.predicted, logits.argmax(dim=1).numpy())
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        assert each.losses == pytest.approx(losses.numpy(), abs=1e-5)
    assert next(surface.outcomes(others, needs=())).above is None


def test_it_is_what_the_equations_say() -> None:
    """Rasmussen and Williams, equations 2.23 and 2.24, in float64."""
    world = make_world(12)
    surface, others = fitted(world), world.more(5, 1)
    moves, known = surface.moves(others), surface.moves(world.coefficients)
    assert np.mean(np.sum(known[1:] ** 2, axis=(1, 2))) == pytest.approx(1)
    matrix = surface.kernel(known, known) + np.diag(surface.kernel.noise_of(known))
    across = surface.kernel(moves, known)
    changes = surface.scored.changes(0, 300).double().numpy()
    mean = across @ np.linalg.solve(matrix, changes) + surface.reference.numpy().ravel()
    assert surface.outputs(others).numpy().reshape(5, -1) == pytest.approx(mean, abs=1e-4)
    covariance = surface.kernel(moves, moves) - across @ np.linalg.solve(matrix, across.T)
    assert surface.uncertainty(others) == pytest.approx(surface.left_out.scale * np.sqrt(np.diag(covariance)), rel=1e-5)


def test_mixes_that_were_seen_in_part_tell_of_that_part() -> None:
    world = make_world(30)
    lengths = [60, 20, 60, 40, *[60] * 26]
    kept = [each.first(length) for each, length in zip(world.kept, lengths, strict=True)]
    surface, others = fit(world.coefficients, kept, world.labels), world.more(5, 1)
    parts = [(part.first, part.stop, len(part.mixes)) for part in surface.parts]
    assert parts == [(0, 20, 30), (20, 40, 29), (40, 60, 28)]
    # The same kernel, with the mixes of each part alone.
    found = surface.outputs(others).numpy()
    for part, mixes in zip(surface.parts, ([*range(30)], [0, *range(2, 30)], [0, 2, *range(4, 30)]), strict=True):
        moves = surface.moves(world.coefficients[mixes])
        inverse = inverted(surface.kernel(moves, moves) + np.diag(surface.kernel.noise_of(moves)))
        real = np.stack([outputs_of(world.kept[mix], surface.columns)[part.first : part.stop] for mix in mixes])
        weights = surface.kernel(surface.moves(others), moves) @ inverse
        mean = real[0] + np.tensordot(weights, real - real[0], axes=1)
        assert found[:, part.first : part.stop] == pytest.approx(mean, abs=0.02)
    assert all(len(each.predicted) == 60 for each in surface.outcomes(others))


@settings(max_examples=15)
@given(st.data())
def test_mixes_that_come_later_give_the_same_bits(data: st.DataObject) -> None:
    classes = data.draw(st.sampled_from([4, 40]))
    world = make_world(24, samples=30, classes=classes)
    lengths = [30, *data.draw(st.lists(st.sampled_from([30, 30, 30, 12]), min_size=23, max_size=23))]
    kept = [each.first(length) for each, length in zip(world.kept, lengths, strict=True)]
    surface: Surface | None = None
    stops = sorted(data.draw(st.sets(st.integers(2, 23), max_size=4)) | {24})
    for first, stop in zip([0, *stops], stops, strict=False):
        surface = fit(world.coefficients[:stop], iter(kept[first:stop]), world.labels, before=surface)
    assert surface is not None
    fresh = fit(world.coefficients, kept, world.labels)
    others = world.more(5, 1)
    assert torch.equal(surface.outputs(others), fresh.outputs(others))
    assert np.array_equal(surface.uncertainty(others), fresh.uncertainty(others))
    assert np.array_equal(surface.left_out.errors, fresh.left_out.errors)


def test_what_is_no_going_on_is_refused() -> None:
    world = make_world(6)
    before = fitted(world, 4)
    with pytest.raises(ValueError, match="other mixes"):
        fit(world.coefficients[::-1], world.kept[4:], world.labels, before=before)
    with pytest.raises(ValueError, match="shorter"):
        fit(world.coefficients, world.kept[4:5], world.labels, before=before)
    with pytest.raises(ValueError, match="two at least"):
        fitted(world, 1)
    with pytest.raises(ValueError, match="all of 60 samples"):
        fit(world.coefficients, [each.first(3) for each in world.kept], world.labels)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sets(st.integers(0, 29), max_size=4))
def test_the_least_sure_are_those_that_a_loop_finds(seed: int, count: int, taken: set[int]) -> None:
    """Fitting anew with what was chosen, whatever comes out there, and looking again."""
    world = make_world(15, seed=seed)
    surface, others = fitted(world), world.more(30, seed + 1)
    moves = surface.moves(np.concatenate([world.coefficients, others]))
    matrix = surface.kernel(moves, moves)
    noise = surface.kernel.noise_of(moves)

    def variances(known: list[int]) -> Floats:
        part = matrix[np.ix_(known, known)] + np.diag(noise[known])
        across = matrix[15:, known]
        return np.asarray(np.diag(matrix[15:, 15:]) - np.einsum("mn,mn->m", across, np.linalg.solve(part, across.T).T))

    found = surface.least_sure(others, count, sorted(taken))
    assert len(found) == len(set(found)) == count
    assert not taken & set(found)
    known = [*range(15), *(15 + number for number in sorted(taken))]
    for number in found:
        left = variances(known)
        left[[place - 15 for place in known if place >= 15]] = -np.inf
        assert left[number] >= left.max() - 1e-6 * abs(left.max()) - 1e-9
        known.append(15 + number)


def test_no_more_are_chosen_than_there_are() -> None:
    world = make_world(15)
    assert sorted(fitted(world).least_sure(world.more(4, 1), 9, [2])) == [0, 1, 3]


def test_the_same_mix_twice_and_the_reference_again() -> None:
    world = make_world(20)
    order = [*range(20), 7, 7, 0, 0]
    surface = fit(world.coefficients[order], [world.kept[number] for number in order], world.labels)
    others = world.more(10, 1)
    found = surface.outputs(others).numpy() - fitted(world).outputs(others).numpy()
    assert size(found) < 0.15 * surface.spread()
    assert np.all(np.isfinite(surface.uncertainty(others)))


@pytest.mark.parametrize("classes", [4, 40])
def test_mixes_that_are_all_the_same_tell_of_themselves(classes: int) -> None:
    world = make_world(5, classes=classes)
    surface = fit(world.coefficients[[0] * 5], world.kept[:1] * 5, world.labels)
    others = world.more(3, 1)
    for each in surface.outcomes(others):
        assert each.losses == pytest.approx(world.outcomes[0].losses, abs=0.02)
    assert surface.spread() == 0
    assert np.all(np.isfinite(surface.uncertainty(others)))
    assert len(surface.least_sure(others, 2)) == 2


def test_two_mixes_are_enough() -> None:
    world = make_world(2, degree=1)
    surface = fitted(world)
    assert np.all(np.isfinite(surface.outputs(world.more(3, 1)).numpy()))
    assert size(off(surface, world, world.coefficients)) < surface.spread()


def test_wild_mixes_far_away_do_not_destroy_what_is_near() -> None:
    """What they do is nothing that a polynomial of the moves says."""
    world = make_world(40, samples=200)
    near = world.more(30, 1)
    without = size(off(fitted(world), world, near))
    random = np.random.default_rng(0)
    coefficients = np.concatenate([world.coefficients, world.more(4, 5, size=3)])
    wild = [exact(8 * random.normal(size=(200, 5))) for _ in range(4)]
    surface = fit(coefficients, [*world.kept, *wild], world.labels)
    spread = fitted(world).spread()
    assert without < 0.02 * spread
    assert size(off(surface, world, near)) < 0.1 * spread


def test_explained_is_of_what_is_left_out() -> None:
    world = make_world(60, samples=100)
    surface = fitted(world)
    assert 0.999 < surface.explained() <= 1
    noise = np.random.default_rng(0).normal(size=(60, 100, 5))
    nothing = fit(world.coefficients, [exact(each) for each in noise], world.labels)
    assert nothing.explained() < 0.6
    # Of the last ones alone; the first, the reference, is not predicted.
    errors = np.zeros(60)
    errors[-20:] = surface.spread()
    half = replace(surface, left_out=replace(surface.left_out, errors=errors))
    assert half.explained(20) < 0.3
    assert half.explained(40) == pytest.approx(0.5, abs=0.1)
    assert half.explained(60) == half.explained(59) == half.explained()
    none = replace(surface, left_out=replace(surface.left_out, errors=10 * np.ones(60)))
    assert none.explained() == 0


def test_the_same_mixes_give_the_same_bits() -> None:
    world = make_world(20)
    first, second = (fitted(world).outputs(world.more(5, 1)) for _ in range(2))
    assert torch.equal(first, second)
