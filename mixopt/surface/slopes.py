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
    moves = (coefficients - surface.centre) / surface.unit
    total, slopes = 0.0, np.zeros_like(coefficients)
    for part in surface.parts:
        known = surface.moves[part.mixes]
        products = np.einsum("g,gc,ngc->n", kernel.weights, moves, known)
        # The polynomial and its derivative, by Horner's rule.
        value, slope = np.full_like(products, kernel.scales[-1]), np.zeros_like(products)
        for scale in kernel.scales[-2::-1]:
            slope = slope * products + value
            value = value * products + scale
        given = torch.from_numpy((part.inverse @ value).astype(np.float32)).to(part.changes.device)
        samples = slice(part.first, part.stop)
        outputs = (given @ part.changes).view(part.stop - part.first, -1) + surface.reference[samples]
        own = torch.from_numpy(surface.columns.own[samples]).to(outputs.device)[:, None]
        count = torch.from_numpy(shares[samples]).to(outputs.device, torch.float32)
        logarithms = torch.log_softmax(outputs, dim=1)
        total -= float((logarithms.gather(1, own)[:, 0].double() * count).sum())
        by_output = logarithms.exp_()
        by_output.scatter_add_(1, own, torch.full_like(own, -1, dtype=by_output.dtype))
        by_output *= count[:, None]
        by_mix = (part.changes @ by_output.view(-1)).double().cpu().numpy()
        by_product = (part.inverse @ by_mix) * slope
        slopes += kernel.weights[:, None] * np.tensordot(by_product, known, axes=1) / surface.unit
    return total, slopes
