from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mixopt.surface import kernel as module
from mixopt.surface.kernel import Kernel, choose_kernel, inverted, left_out

Floats = NDArray[np.float64]

KERNEL = Kernel(np.array([0.3, 1.0, 0.2, 0.05]), np.array([1.0, 0.5, 2.0]), 0.01, 0.002)


def made(count: int, groups: int = 3, columns: int = 4, seed: int = 0) -> Floats:
    """Moves of a mean square length of 1, the first of them none."""
    moves = np.random.default_rng(seed).normal(size=(count, groups, columns))
    moves[0] = 0
    return np.asarray(moves / np.sqrt(np.mean(np.sum(moves[1:] ** 2, axis=(1, 2)))))


def chosen(moves: Floats, changes: Floats) -> tuple[Kernel, Floats]:
    """The kernel of outputs ``[n, m]``, and the inverse of its matrix."""
    kernel = choose_kernel(moves, changes @ changes.T, changes.shape[1])
    return kernel, inverted(kernel(moves, moves) + np.diag(kernel.noise_of(moves)))


@given(st.integers(0, 10**6))
def test_its_values_are_of_a_polynomial_of_weighted_products(seed: int) -> None:
    first, second = made(5, seed=seed), made(6, seed=seed + 1)
    found = KERNEL(first, second)
    for x, row in zip(first, found, strict=True):
        for y, value in zip(second, row, strict=True):
            product = sum(KERNEL.weights[group] * x[group] @ y[group] for group in range(3))
            assert value == pytest.approx(sum(KERNEL.scales[power] * product**power for power in range(4)))
    squares = np.einsum("g,ngc->n", KERNEL.weights, first**2)
    assert KERNEL.noise_of(first) == pytest.approx(0.01 + 0.002 * squares**4)
    assert KERNEL.own(first) == pytest.approx(np.diag(KERNEL(first, first)))
    assert np.linalg.eigvalsh(KERNEL(first, first)).min() > -1e-9


def test_the_derivative_of_the_polynomial() -> None:
    products = np.linspace(-2, 2, 9)
    high, low = (KERNEL.polynomial(products + step)[0] for step in (1e-6, -1e-6))
    assert KERNEL.polynomial(products)[1] == pytest.approx((high - low) / 2e-6)


@given(st.integers(0, 10**6))
def test_the_slopes_of_the_likelihood(seed: int) -> None:
    random = np.random.default_rng(seed)
    moves = made(9, seed=seed)
    changes = random.normal(size=(9, 40))
    by_group = np.einsum("ngc,mgc->gnm", moves, moves)
    numbers = np.r_[random.uniform(-4, 1, 6), random.uniform(-1, 1, 3)]
    _, slopes = module._cost(numbers, by_group, changes @ changes.T, 40)
    for place in range(len(numbers)):
        step = np.zeros_like(numbers)
        step[place] = 1e-5
        high, low = (module._cost(numbers + way * step, by_group, changes @ changes.T, 40)[0] for way in (1, -1))
        assert slopes[place] == pytest.approx((high - low) / 2e-5, rel=1e-4, abs=1e-5)


def test_the_cost_is_the_likelihood_of_what_is_left_out() -> None:
    moves, changes = made(9), np.random.default_rng(0).normal(size=(9, 40))
    inverse = inverted(KERNEL(moves, moves) + np.diag(KERNEL.noise_of(moves)))
    numbers = np.log(np.r_[KERNEL.scales, KERNEL.noise, KERNEL.beyond, KERNEL.weights])
    cost, _ = module._cost(numbers, np.einsum("ngc,mgc->gnm", moves, moves), changes @ changes.T, 40)
    strays = numbers - np.r_[module.BEGINNINGS[0], 0, 0, 0]
    prior = 0.5 * module.PRECISION * float(np.sum(strays**2))
    assert left_out(inverse, changes @ changes.T, 40).likelihood == pytest.approx((cost - prior) / 9)


def test_what_is_left_out_is_what_a_fit_without_it_says() -> None:
    moves, changes = made(12), np.random.default_rng(0).normal(size=(12, 30))
    matrix = KERNEL(moves, moves) + np.diag(KERNEL.noise_of(moves))
    found = left_out(inverted(matrix), changes @ changes.T, 30)
    errors, variances = [], []
    for number in range(12):
        others = np.delete(np.arange(12), number)
        weights = matrix[number, others] @ np.linalg.inv(matrix[np.ix_(others, others)])
        errors.append(np.sqrt(np.mean((changes[number] - weights @ changes[others]) ** 2)))
        variances.append(matrix[number, number] - weights @ matrix[others, number])
    assert found.errors == pytest.approx(np.array(errors))
    assert found.scale**2 == pytest.approx(np.mean(np.square(errors) / variances))
    assert found.expected == pytest.approx(found.scale * np.sqrt(variances))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_polynomial_is_found_from_enough_mixes(degree: int) -> None:
    """Of degree 1, 2 and 3 in 6 numbers: 7, 28 and 84 terms."""
    count = {1: 12, 2: 40, 3: 110}[degree]
    random = np.random.default_rng(0)
    moves = made(count + 20, groups=2, columns=3)
    flat = moves.reshape(len(moves), -1)
    directions, factors = random.normal(size=(60, 6)), random.normal(size=(degree, 60, 50))
    changes = sum((flat @ directions.T) ** (power + 1) @ factors[power] for power in range(degree))
    kernel, inverse = chosen(moves[:count], changes[:count])
    predicted = kernel(moves[count:], moves[:count]) @ inverse @ changes[:count]
    assert np.sqrt(np.mean((predicted - changes[count:]) ** 2)) < 5e-3 * np.std(changes)


def test_noise_is_found() -> None:
    random = np.random.default_rng(0)
    moves = made(60, groups=2, columns=3)
    smooth = moves.reshape(60, -1) @ random.normal(size=(6, 4000))
    changes = smooth + 0.2 * random.normal(size=smooth.shape)
    kernel, inverse = chosen(moves, changes)
    scale = left_out(inverse, changes @ changes.T, 4000).scale
    assert scale * np.sqrt(kernel.noise) == pytest.approx(0.2, rel=0.1)


def test_a_group_that_does_nothing_weighs_little() -> None:
    random = np.random.default_rng(0)
    moves = made(40, groups=3, columns=3)
    changes = moves[:, 0] @ random.normal(size=(3, 500)) + 0.3 * moves[:, 1] @ random.normal(size=(3, 500))
    weights = chosen(moves, changes)[0].weights
    assert 10 * weights[2] < weights[1] < weights[0]


def test_what_is_far_away_and_like_nothing_is_noise() -> None:
    random = np.random.default_rng(0)
    moves = made(60, groups=2, columns=3)
    moves /= np.maximum(1e-9, np.linalg.norm(moves, axis=(1, 2), keepdims=True))
    moves[50:] *= 6
    smooth = moves.reshape(60, -1) @ random.normal(size=(6, 500))
    smooth[50:] = 20 * random.normal(size=(10, 500))
    moves /= np.sqrt(np.mean(np.sum(moves[1:] ** 2, axis=(1, 2))))
    kernel, inverse = chosen(moves[:-5], smooth[:-5])
    noise = left_out(inverse, smooth[:-5] @ smooth[:-5].T, 500).scale * np.sqrt(kernel.noise_of(moves))
    assert noise[:50].max() < 0.1
    assert noise[55:].mean() > 3


@pytest.mark.parametrize("columns", [1, 4])
def test_the_same_mixes_give_the_same_bits(columns: int) -> None:
    moves, changes = made(20, columns=columns), np.random.default_rng(0).normal(size=(20, 100))
    first, second = (chosen(moves.copy(), changes.copy())[0] for _ in range(2))
    assert np.array_equal(first.scales, second.scales)
    assert np.array_equal(first.weights, second.weights)
    assert (first.noise, first.beyond) == (second.noise, second.beyond)


def test_mixes_that_all_do_the_same_are_no_error() -> None:
    kernel, inverse = chosen(made(5), np.zeros((5, 7)))
    found = left_out(inverse, np.zeros((5, 5)), 7)
    assert np.array_equal(found.errors, np.zeros(5))
    assert np.array_equal(found.expected, np.zeros(5))
    assert np.isfinite(kernel.noise)
