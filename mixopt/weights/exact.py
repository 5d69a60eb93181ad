"""The exact builder: from the files, in float64, to the same bits on any machine. It makes every file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt.errors import PoolError, names
from mixopt.values.mix import Mix
from mixopt.weights import checkpoints
from mixopt.weights.reading import Reader


def build_exact(
    mix: Mix,
    paths: Mapping[str, Path],
    *,
    hashes: Mapping[str, str],
    dtypes: Mapping[str, torch.dtype],
    reader: Reader = checkpoints.read,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Fuse from the files: float64, ingredient by ingredient in column order, one cast; the same bits anywhere.

    Tensors outside the mix's groups come from the first file. Peak memory: the fused model in float64 and one
    checkpoint.

    Args:
        mix: The coefficients; its groups name the tensors that are mixed.
        paths: Column name to checkpoint file, in column order, for the columns that the mix uses at least.
        hashes: Column name to the content hash that the file must have.
        dtypes: Tensor name to the dtype it is saved in; ``*`` for all that are not named.
        reader: Opens a checkpoint.
        progress: Told ``(what, done, total)`` after each file.

    Returns:
        Name to fused CPU tensor, and alias to tied name.

    Raises:
        PoolError: A file is not the one that the mix was found with, or a column that the mix uses has none.
    """
    if absent := [column for column in mix.support() if column not in paths]:
        raise PoolError(f"the mix uses {names(absent)}, but no checkpoint is given for it")
    group_of = mix.groups.index()
    sums: dict[str, NDArray[np.float64]] = {}
    fused: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for number, (column, path) in enumerate(paths.items(), start=1):
        opened = reader(path)
        _check_hash(column, path, opened.tensors, hashes[column])
        if lacking := [name for name in group_of if name not in opened.tensors]:
            raise PoolError(f"the mix has coefficients for {names(lacking)}, but {path} has no such tensors")
        if number == 1:
            tied = dict(opened.tied)
            fused = {name: tensor.clone() for name, tensor in opened.tensors.items() if name not in group_of}
        weights = mix.coefficients[:, mix.columns.index(column)]
        for name, group in group_of.items():
            if weights[group] != 0:
                term = _float64(opened.tensors[name]) * weights[group]
                sums[name] = term if name not in sums else sums[name] + term
        if progress:
            progress("building the exact model", number, len(paths))

    def saved(name: str) -> torch.dtype:
        return dtypes[name] if name in dtypes else dtypes["*"]

    result = {name: tensor.to(saved(name)) if tensor.is_floating_point() else tensor for name, tensor in fused.items()}
    return result | {name: round_once(total, saved(name)) for name, total in sums.items()}, tied


def _check_hash(column: str, path: Path, tensors: Mapping[str, Tensor], expected: str) -> None:
    found = checkpoints.content_hash(checkpoints.hash_tensors(tensors))
    if found != expected:
        raise PoolError(
            f"{path}: not the checkpoint that the mix was found with (column {column}: expected content hash "
            f"{expected[:12]}, found {found[:12]}); restore the original file"
        )


def _float64(tensor: Tensor) -> NDArray[np.float64]:
    exact: NDArray[np.float64] = tensor.detach().to(torch.float64).numpy()
    return exact


def round_once(values: NDArray[np.float64], dtype: torch.dtype) -> Tensor:
    """Float64 values in another dtype, rounded once. Torch's own to 16 bits goes through float32 and rounds twice.

    So float32 is rounded to odd there, which leaves the second rounding to decide alone (Boldo and Melquiond 2008,
    "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd").
    """
    exact = np.asarray(values)
    if dtype.itemsize >= 4:
        return torch.from_numpy(exact).to(dtype)
    with np.errstate(over="ignore", under="ignore"):
        near = exact.astype(np.float32)
        inside = np.where(np.abs(near) > np.abs(exact), np.nextafter(near, np.float32(0)), near)
    inexact = (inside != exact) & np.isfinite(exact)
    odd = np.where(inexact, inside.view(np.uint32) | np.uint32(1), inside.view(np.uint32)).view(np.float32)
    return torch.from_numpy(np.asarray(odd)).to(dtype)
