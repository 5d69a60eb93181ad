"""How a pool's checkpoints are opened for a family: by its names, compared with its model, adapters merged."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import nn

from mixopt.errors import names
from mixopt.families import Compared, Family
from mixopt.families.peft_adapters import AdapterReader
from mixopt.listener import Listener
from mixopt.spec import StudySpec
from mixopt.values.groups import depth_order
from mixopt.weights import checkpoints
from mixopt.weights.alignment import AlignedReader, signature_of
from mixopt.weights.pool import Pool, open_pool
from mixopt.weights.reading import Reader


def reader_of(family: Family | None, module: nn.Module | None, spec: StudySpec) -> Reader:
    """Opens the pool's checkpoints: fitted to a model that was just built, and compared with it where that can be."""
    if family is None or module is None:
        return partial(checkpoints.read, weights=spec.weights)
    aligned = AlignedReader(signature_of(module, family.rename), spec.weights)
    if not isinstance(family, Compared):
        return aligned
    fitted = family.fitted
    return lambda path: fitted(aligned(path))


def opening_of(
    family: Family,
    module: nn.Module,
    spec: StudySpec,
    paths: Mapping[str, Path],
    base: tuple[str, Path] | None,
    listener: Listener,
) -> tuple[Reader, tuple[str, Path] | None]:
    """What opens the checkpoints, adapters merged into the base; and the base, where it can be a column itself."""
    reader = reader_of(family, module, spec)
    adapters = [path for path in paths.values() if checkpoints.is_adapter(path)]
    if not adapters or base is None:
        return reader, base
    merging = AdapterReader(module, base[1], reader, spec.cache, family.identity())
    listener.info(f"{len(adapters)} peft adapters are merged into {base[1]}, each by peft itself, and mixed as models")
    if lacking := merging.lacking():
        listener.info(
            f"{base[1]} has no {names(sorted(lacking))}, which each adapter brings: the base is no row itself"
        )
        return merging, None
    return merging, base


def open_pool_of(
    family: Family | None,
    listener: Listener,
    paths: dict[str, Path],
    base: tuple[str, Path] | None,
    reader: Reader,
) -> Pool:
    """Open the pool, with tensors in the family's order, or by their names alone where no family is known."""
    order = depth_order if family is None else family.depth
    pool = open_pool(paths, base, order=order, reader=reader, progress=listener.progress)
    for notice in pool.notices:
        listener.info(notice)
    return pool
