"""The loss that a surface predicts, and how it changes with the coefficients."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mixopt.surface.fitting import Surface

Floats = NDArray[np.float64]


def loss_and_slopes(surface: Surface, coefficients: Floats, shares: Floats) -> tuple[float, Floats]:
    """The cross-entropy of one mix on samples that count more or less, and its slopes.

    Args:
        surface: Predicts.
        coefficients: ``[groups, columns]``.
        shares: ``[samples]``, what each sample counts; their sum is 1 for a mean.

    Returns:
        The loss in nats, and ``[groups, columns]``, its derivatives.
    """
    kernel = surface.kernel
    move, known = surface.moves(coefficients), surface.moves(surface.coefficients)
    counts = torch.from_numpy(shares).to(surface.reference.device, torch.float32)
    rights = torch.from_numpy(surface.columns.own).to(surface.reference.device)[:, None]
    total, slopes = 0.0, np.zeros_like(coefficients)
    for part in surface.parts:
        products = np.einsum("g,gc,ngc->n", kernel.weights, move, known[part.mixes])
        value, slope = kernel.polynomial(products)
        given = surface.shares(value[None], part)[0]
        by_mix = np.zeros(len(surface))
        for begin, end, changes in surface.scored.pieces(part.first, part.stop):
            outputs = (given @ changes).view(end - begin, -1).add_(surface.reference[begin:end])
            own, count = rights[begin:end], counts[begin:end]
            logarithms = torch.log_softmax(outputs, dim=1)
            total -= float(logarithms.gather(1, own)[:, 0].double() @ count.double())
            by_output = logarithms.exp_()
            by_output.scatter_add_(1, own, torch.full_like(own, -1, dtype=by_output.dtype))
            by_output *= count[:, None]
            by_mix += (changes @ by_output.view(-1)).double().cpu().numpy()
        by_product = (part.inverse @ by_mix[part.mixes]) * slope
        slopes += kernel.weights[:, None] * np.tensordot(by_product, known[part.mixes], axes=1) / surface.unit
    return total, slopes
