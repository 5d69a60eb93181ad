"""How a pool's checkpoints were read, kept in a recipe: so they are read again, and saved, without the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixopt.errors import MixoptError
from mixopt.untrusted import refusing
from mixopt.values.recipe import Recipe
from mixopt.weights import checkpoints
from mixopt.weights.alignment import AlignedReader, Signature
from mixopt.weights.checkpoints import Weights
from mixopt.weights.checkpoints.naming import without
from mixopt.weights.pool import Pool
from mixopt.weights.reading import Reader


def as_in_files(
    tensors: Mapping[str, Tensor], tied: Mapping[str, str], recipe: Recipe
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and ties under the names that the checkpoints have for them, where a library has others in memory."""
    own: dict[str, str] = {}
    for old, new in (recipe.reading or {}).get("renamed", {}).items():
        # What the last part alone tells apart (gamma, beta) is the name of an old release, which new ones do not use.
        if (new in tensors or new in tied) and old.rpartition(".")[0] != new.rpartition(".")[0]:
            own.setdefault(new, old)
    if own.keys() & own.values() or set(own.values()) & (tensors.keys() | tied.keys()):
        return dict(tensors), dict(tied)
    named = {own.get(name, name): tensor for name, tensor in tensors.items()}
    return named, {own.get(alias, alias): own.get(name, name) for alias, name in tied.items()}


def reading_of(pool: Pool, weights: Weights) -> dict[str, Any]:
    """How a pool's checkpoints were read, as a recipe keeps it: see `mixopt.Recipe`."""
    constants = {name: pool.fixed[name] for name in sorted(pool.added & pool.fixed.keys())}
    return {
        "weights": weights,
        "fixed": sorted(pool.fixed),
        "tied": dict(sorted(pool.tied.items())),
        "renamed": dict(sorted(pool.renamed.items())),
        **({"left_out": sorted(pool.left_out)} if pool.left_out else {}),
        "constants": {
            name: {
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "values": [int(value) for value in tensor.reshape(-1).tolist()],
            }
            for name, tensor in constants.items()
        },
    }


def reader_for(recipe: Recipe) -> Reader:
    """Opens a recipe's checkpoints as they were read when it was made; needs no model.

    Raises:
        MixoptError: Its constants are not of the shape that it says.
    """
    found = recipe.reading
    if found is None:
        return checkpoints.read
    with refusing(MixoptError, "recipe", found="constants that are none", cure="restore it from a copy"):
        constants = {
            name: torch.tensor(each["values"]).reshape(each["shape"]).to(getattr(torch, each["dtype"]))
            for name, each in found["constants"].items()
        }
    tensors = [tensor for _, group in recipe.mix.groups.items for tensor in group]
    names = frozenset((*tensors, *found["fixed"], *found["tied"]))
    renamed: dict[str, str] = found["renamed"]
    signature = Signature(names, found["tied"], constants, lambda name: renamed.get(name, name))
    aligned = AlignedReader(signature, found["weights"])
    gone: list[str] = found.get("left_out", [])
    return (lambda path: without(aligned(path), gone)) if gone else aligned
