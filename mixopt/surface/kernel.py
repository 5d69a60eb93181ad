"""The kernel: how alike the logits of two mixes are, and its few numbers, chosen by leave-one-out likelihood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky
from scipy.optimize import minimize

Floats = NDArray[np.float64]

# Terms of a Taylor series around the start: the cubic ones tell where the quadratic ones no longer do.
DEGREES = 4
# The numbers before the layer groups' weights: the scales, the noise, and what lies beyond.
FIRST = DEGREES + 2
# Bounds of their logarithms, where moves have a mean square of 1.
LOWEST, HIGHEST = -14.0, 6.0
# Of a constant nothing is known beforehand: that changes are 0 at the reference is no evidence that it is well known.
CONSTANT = 4.0
# Of the logarithms of the layer groups' weights.
WIDEST = 5.0
# Where the search for the numbers begins: nearly smooth, and noisy. Their logarithms lie around the first of these, and
# the weights' around 0, with a deviation of 5: it decides where mixes are few.
BEGINNINGS = ((CONSTANT, 0.0, -2.0, -4.0, -8.0, -8.0), (CONSTANT, 0.0, -4.0, -8.0, -4.0, -8.0))
PRECISION = 1 / 25
STEPS = 60


@dataclass(frozen=True, eq=False)
class Kernel:
    """``k(x, y) = sum_p scales[p] * (sum_g weights[g] * x_g . y_g) ** p``, for p from 0 to 3, and noise.

    Attributes:
        scales: ``[4]``, the prior variance of the terms of each degree.
        weights: ``[groups]``, how much each layer group's moves change logits.
        noise: What outputs differ by from any such function, as a variance.
        beyond: The variance of what terms of the next degree add, at a weighted length of 1. They are taken as noise:
            what a mix far away does tells little of what is near.
    """

    scales: Floats
    weights: Floats
    noise: float
    beyond: float

    def __call__(self, first: Floats, second: Floats) -> Floats:
        """``[n, m]`` of moves ``[n, groups, columns]`` and ``[m, groups, columns]``."""
        root = np.sqrt(self.weights)[:, None]
        left, right = ((root * each).reshape(len(each), -1) for each in (first, second))
        return self.polynomial(left @ right.T)[0]

    def own(self, moves: Floats) -> Floats:
        """``[n]``, of every move with itself."""
        return self.polynomial(self._squares(moves))[0]

    def noise_of(self, moves: Floats) -> Floats:
        """``[n]``, of what each move does, all that is not smooth here."""
        return np.asarray(self.noise + self.beyond * self._squares(moves) ** DEGREES)

    def polynomial(self, products: Floats) -> tuple[Floats, Floats]:
        """The kernel as a function of weighted inner products, and its derivative, by Horner's rule."""
        value, slope = np.full_like(products, self.scales[-1]), np.zeros_like(products)
        for scale in self.scales[-2::-1]:
            slope = slope * products + value
            value = value * products + scale
        return value, slope

    def _squares(self, moves: Floats) -> Floats:
        return np.asarray(np.einsum("g,ngc->n", self.weights, moves**2))


@dataclass(frozen=True, eq=False)
class LeftOut:
    """What is predicted of each mix by the others.

    Attributes:
        errors: ``[n]``, root mean square of what its outputs are off by.
        expected: ``[n]``, what that was expected to be.
        scale: What a standard deviation of the kernel is in nats.
        likelihood: Minus the logarithm of the leave-one-out likelihood, per output and mix.
    """

    errors: Floats
    expected: Floats
    scale: float
    likelihood: float


def choose_kernel(moves: Floats, gram: Floats, outputs: int) -> Kernel:
    """The kernel with the largest leave-one-out likelihood (Rasmussen and Williams, section 5.4.2).

    The scale common to all is not among its numbers: it follows from the errors.

    Args:
        moves: ``[n, groups, columns]``, with a mean square length of about 1.
        gram: ``[n, n]``, inner products of the mixes' outputs.
        outputs: How many outputs a mix has.
    """
    by_group = np.einsum("ngc,mgc->gnm", moves, moves)
    groups = len(by_group)
    bounds = [(CONSTANT, CONSTANT)] + [(LOWEST, HIGHEST)] * (FIRST - 1) + [(-WIDEST, WIDEST)] * groups
    beginnings = [np.r_[each, np.zeros(groups)] for each in BEGINNINGS]
    found = [
        minimize(
            _cost, each, (by_group, gram, outputs), jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": STEPS},
        )
        for each in beginnings
    ]  # fmt: skip
    best = np.exp(min(found, key=lambda each: float(each.fun)).x)
    return Kernel(best[:DEGREES], best[FIRST:], *best[DEGREES:FIRST].tolist())


def left_out(inverse: Floats, gram: Floats, outputs: int) -> LeftOut:
    """What the inverse of the kernel matrix ``[n, n]`` tells of each mix when it is left out (equation 5.12)."""
    precision = np.diag(inverse)
    squares = np.einsum("ij,jk,ki->i", inverse, gram, inverse) / precision**2 / outputs
    variance = max(0.0, float(np.mean(squares * precision)))
    likelihood = 0.5 * float(np.mean(np.log(np.maximum(variance, np.finfo(float).tiny) / precision)))
    return LeftOut(np.sqrt(np.maximum(squares, 0)), np.sqrt(variance / precision), variance**0.5, likelihood)


def inverted(matrix: Floats) -> Floats:
    """The inverse of a positive definite matrix.

    Raises:
        LinAlgError: It is not.
    """
    return np.asarray(cho_solve((cholesky(matrix, lower=True, check_finite=False), True), np.eye(len(matrix))))


def _cost(logarithms: Floats, by_group: Floats, gram: Floats, outputs: int) -> tuple[float, Floats]:
    """Minus the logarithm of the likelihood per output, less a prior of the weights, and its slopes."""
    numbers = np.exp(logarithms)
    scales, (noise, beyond), weights = numbers[:DEGREES], numbers[DEGREES:FIRST].tolist(), numbers[FIRST:]
    products = np.tensordot(weights, by_group, axes=1)
    matrix = Kernel(scales, weights, noise, beyond).polynomial(products)[0]
    lengths = np.diag(products)
    matrix[np.diag_indices_from(matrix)] += noise + beyond * lengths**DEGREES
    try:
        inverse = inverted(matrix)
    except LinAlgError:
        return 1e12, np.zeros_like(logarithms)
    precision = np.diag(inverse)
    both = inverse @ gram @ inverse
    squares = np.diag(both)
    total = float(np.sum(squares / precision))
    if not total > 0:
        return 1e12, np.zeros_like(logarithms)
    count = len(gram)
    cost = 0.5 * (count * np.log(total / count / outputs) - np.sum(np.log(precision)))
    # The slope with respect to every entry of the matrix.
    first = 0.5 / precision + 0.5 * count / total * squares / precision**2
    second = count / total / precision
    slope = (inverse * first) @ inverse - (inverse * second) @ both
    by_product = np.zeros_like(products)
    slopes = np.zeros_like(logarithms)
    power = np.ones_like(products)
    for degree, scale in enumerate(scales):
        slopes[degree] = scale * np.sum(slope * power)
        if degree + 1 < DEGREES:
            by_product += (degree + 1) * scales[degree + 1] * power
            power = power * products
    own = np.diag(slope)
    slopes[DEGREES] = noise * np.sum(own)
    slopes[DEGREES + 1] = beyond * np.sum(own * lengths**DEGREES)
    by_product *= slope
    by_product[np.diag_indices_from(by_product)] += own * beyond * DEGREES * lengths ** (DEGREES - 1)
    slopes[FIRST:] = weights * np.einsum("nm,gnm->g", by_product, by_group)
    strays = logarithms.copy()
    strays[:FIRST] -= BEGINNINGS[0]
    return float(cost + 0.5 * PRECISION * np.sum(strays**2)), slopes + PRECISION * strays
