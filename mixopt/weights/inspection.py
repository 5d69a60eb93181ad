"""What is in a pool: sizes, layer groups, what is identical, distances and angles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mixopt.values.groups import make_groups
from mixopt.weights import checkpoints
from mixopt.weights.pool import Pool

CHUNK = 1 << 22


def describe_pool(pool: Pool, scheme: str) -> dict[str, Any]:
    """A pool as plain JSON values.

    Distances are Euclidean norms over all mixed parameters; cosines are between deltas from the base (or, without
    one, from the ingredients' mean).
    """
    groups = make_groups(scheme, pool.sizes)
    sizes = pool.sizes
    gram = _gram(pool)
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    outer = np.outer(norms, norms)
    cosines = np.divide(gram, outer, out=np.zeros_like(gram), where=outer > 0)
    squared = np.add.outer(np.diag(gram), np.diag(gram)) - 2 * gram
    fingerprints = pool.fingerprints
    towards_base = _cosines_to_base(pool)
    return {
        "base": pool.base,
        "centre": pool.base or "mean of the ingredients",
        "ingredients": [
            {
                "name": name,
                "file": str(pool.paths[name]),
                "bytes": checkpoints.size_of(pool.paths[name]),
                "hash": fingerprints[name][:12],
                "distance": float(norms[place]),
                "base_cosine": None if towards_base is None else float(towards_base[place]),
                "mean_cosine": float((cosines[place].sum() - cosines[place, place]) / max(1, len(norms) - 1)),
            }
            for place, name in enumerate(pool.ingredients)
        ],
        "scheme": scheme,
        "groups": [
            {"name": name, "tensors": len(tensors), "parameters": sum(sizes[tensor] for tensor in tensors)}
            for name, tensors in groups.items
        ],
        "mixed": {"tensors": len(pool.mixed), "parameters": pool.stack.shape[1]},
        "identical": {
            "tensors": len(pool.fixed),
            "parameters": sum(tensor.numel() for tensor in pool.fixed.values()),
            "names": sorted(pool.fixed),
        },
        "tied": pool.tied,
        "distances": np.sqrt(np.maximum(squared, 0.0)).tolist(),
        "cosines": cosines.tolist(),
        "notices": list(pool.notices),
    }


def _cosines_to_base(pool: Pool) -> NDArray[np.float64] | None:
    """Cosine ``[n]`` between each ingredient's mixed weights and the base's, or None without a base."""
    if pool.base is None:
        return None
    count = len(pool.ingredients)
    products = torch.zeros(count + 1, dtype=torch.float64)
    squares = torch.zeros(count + 1, dtype=torch.float64)
    for start in range(0, pool.stack.shape[1], CHUNK):
        part = pool.stack[:, start : start + CHUNK].to(torch.float64)
        products += part @ part[count]
        squares += (part * part).sum(dim=1)
    norms = (squares * squares[count]).sqrt()
    cosines: NDArray[np.float64] = torch.where(norms > 0, products / norms, 0.0)[:count].numpy()
    return cosines


def _gram(pool: Pool) -> NDArray[np.float64]:
    """Inner products ``[n, n]`` of the ingredients' deltas, summed in float64 chunk by chunk."""
    count = len(pool.ingredients)
    gram = torch.zeros(count, count, dtype=torch.float64)
    for start in range(0, pool.stack.shape[1], CHUNK):
        part = pool.stack[:, start : start + CHUNK].to(torch.float64)
        centre = part[:count].mean(dim=0) if pool.base is None else part[count]
        deltas = part[:count] - centre
        gram += deltas @ deltas.T
    return gram.numpy()
