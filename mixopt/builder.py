"""Builder: a mix to weights. The fast one for trials, the exact one for files.

Both obey one contract: `Mix` in, fused weights out, coefficients applied as they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixopt import checkpoints
from mixopt.errors import PoolError, listing, names
from mixopt.mix import Mix
from mixopt.pool import Pool, Reader


class FastBuilder:
    """Fuses into a module whose parameters are views of one resident buffer and never move.

    Neighbouring tensors with equal rows become one matrix-vector product over the pool's stack, accumulated in
    float32 and rounded once to the dtype that will be saved. A one-hot row copies its ingredient bit for bit.

    Args:
        pool: What to mix.
        module: The model; its parameters are replaced by views (same names and shapes as the pool's tensors).
        device: Where stack, buffer and module live.
        dtype: The dtype that will be saved, or None for that of the ingredients.

    Attributes:
        cuts: Numbers of mixed tensors that no product spans with the one before, so that what stands before them is
            fused to the same bits whatever rows come after (a product's last bits depend on its length).

    Raises:
        PoolError: The module's names or shapes are not the pool's.
    """

    def __init__(self, pool: Pool, module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.pool = pool
        self.module = module.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        self.dtype = dtype
        self.cuts: frozenset[int] = frozenset()
        self._stack = pool.stack.to(device)
        self._flat = torch.empty(pool.stack.shape[1], dtype=torch.float32, device=device)
        self._bind()
        self._rounded = _rounding(pool, dtype)

    def apply(self, mix: Mix) -> None:
        """Write the fused weights of a mix into the module.

        Raises:
            PoolError: The mix has other columns than the pool, or leaves a mixed tensor without a row.
        """
        rows = tensor_rows(mix, self.pool)
        for start, stop, row in self._runs(rows):
            self._fuse(start, stop, row)
        for start, stop, dtype in self._rounded:
            part = self._flat[start:stop]
            part.copy_(part.to(dtype))

    def gradient(self, loss: Callable[[], Tensor], *more: Tensor) -> tuple[float, NDArray[np.float64], list[float]]:
        """A loss of the module as it is fused now, and its gradient with respect to the coefficients: stack @ grad.

        The rounding to the saved dtype counts as the identity. Beyond the pool this takes one model's activations
        and one model's gradient, however many columns there are. BatchNorm statistics have no gradient.

        Args:
            loss: Runs the module and gives a scalar.
            more: Scalar leaf tensors that the loss depends on as well.

        Returns:
            The loss; its derivatives ``[n_mixed, n_columns]``, a row per mixed tensor in the pool's order; those with
            respect to ``more``.
        """
        state = self.module.state_dict(keep_vars=True)
        aliases = {alias: name for alias, name in self.pool.tied.items() if state[alias] is not state[name]}
        owner = {place.name: number for number, place in enumerate(self.pool.mixed)}
        owner |= {alias: owner[name] for alias, name in aliases.items() if name in owner}
        leaves = {name: state[name] for name in owner if isinstance(state[name], nn.Parameter)}
        for leaf in leaves.values():
            leaf.requires_grad_(True)
        try:
            with torch.enable_grad():
                value = loss()
                grads = torch.autograd.grad(value, [*leaves.values(), *more], allow_unused=True)
        finally:
            for leaf in leaves.values():
                leaf.requires_grad_(False)
        rows = np.zeros((len(self.pool.mixed), len(self.pool.columns)))
        for name, grad in zip(leaves, grads, strict=False):
            if grad is not None:
                place = self.pool.mixed[owner[name]]
                rows[owner[name]] += torch.mv(self._stack[:, place.start : place.stop], grad.reshape(-1)).cpu().numpy()
        return float(value.detach()), rows, [0.0 if each is None else float(each) for each in grads[len(leaves) :]]

    def nonfinite_tensor(self) -> str | None:
        """The first mixed tensor whose fused weights hold NaN or an infinity, or None."""
        for place in self.pool.mixed:
            if not bool(torch.isfinite(self._flat[place.start : place.stop]).all()):
                return place.name
        return None

    def _bind(self) -> None:
        state = self.module.state_dict(keep_vars=True)
        _check_names(self.pool, state)
        views = {}
        for place in self.pool.mixed:
            views[place.name] = self._flat[place.start : place.stop].view(place.shape)
        for name, fixed in self.pool.fixed.items():
            saved = fixed.to(self.dtype) if self.dtype is not None and fixed.is_floating_point() else fixed
            state[name].data.copy_(saved)
            views[name] = state[name].data
        for name, view in views.items():
            state[name].data = view
        for alias, name in self.pool.tied.items():
            state[alias].data = views[name]

    def _runs(self, rows: NDArray[np.float64]) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
        """Stretches of the buffer with one row: ``(start, stop, row [n_columns])``."""
        changes = np.flatnonzero(np.any(rows[1:] != rows[:-1], axis=1)) + 1
        edges = [0, *sorted(self.cuts.union(changes.tolist())), len(rows)]
        for first, last in pairwise(edges):
            yield self.pool.mixed[first].start, self.pool.mixed[last - 1].stop, rows[first]

    def _fuse(self, start: int, stop: int, row: NDArray[np.float64]) -> None:
        out = self._flat[start:stop]
        used = np.flatnonzero(row)
        # Few columns: one pass each. Many: one product that reads the whole stretch of the stack.
        if len(used) <= max(1, len(row) // 4):
            torch.mul(self._stack[used[0], start:stop], float(row[used[0]]), out=out)
            for column in used[1:]:
                out.add_(self._stack[column, start:stop], alpha=float(row[column]))
            return
        weights = torch.as_tensor(row, dtype=torch.float32).to(out.device)
        torch.mv(self._stack[:, start:stop].t(), weights, out=out)


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
    return result | {name: _cast(total, saved(name)) for name, total in sums.items()}, tied


def tensor_rows(mix: Mix, pool: Pool) -> NDArray[np.float64]:
    """The row of every mixed tensor, ``[n_mixed, n_columns]``, in the pool's order.

    Raises:
        PoolError: The mix has other columns than the pool, or leaves a mixed tensor without a row.
    """
    if mix.columns != pool.columns:
        raise PoolError(f"the mix is over {names(mix.columns)}, the pool holds {names(pool.columns)}")
    group_of = mix.groups.index()
    if missing := [tensor.name for tensor in pool.mixed if tensor.name not in group_of]:
        raise PoolError(f"the mix has no row for {len(missing)} mixed tensors: {names(missing)}")
    return mix.coefficients[[group_of[tensor.name] for tensor in pool.mixed]]


def _rounding(pool: Pool, dtype: torch.dtype | None) -> list[tuple[int, int, torch.dtype]]:
    """Stretches of the buffer to round, each to the dtype it is saved in; float32 needs none."""
    stretches: list[tuple[int, int, torch.dtype]] = []
    for place in pool.mixed:
        saved = dtype or place.dtype
        if stretches and stretches[-1][2] == saved:
            stretches[-1] = (stretches[-1][0], place.stop, saved)
        else:
            stretches.append((place.start, place.stop, saved))
    return [stretch for stretch in stretches if stretch[2] not in (torch.float32, torch.float64)]


def _check_names(pool: Pool, state: Mapping[str, Tensor]) -> None:
    shapes = {place.name: place.shape for place in pool.mixed}
    shapes |= {name: tuple(tensor.shape) for name, tensor in pool.fixed.items()}
    shapes |= {alias: shapes[name] for alias, name in pool.tied.items()}
    problems = []
    if missing := [name for name in state if name not in shapes]:
        problems.append(f"the checkpoints lack {len(missing)} of the model's tensors: {names(missing)}")
    if extra := [name for name in shapes if name not in state]:
        problems.append(f"the model has no place for {len(extra)} of the checkpoints' tensors: {names(extra)}")
    for name, shape in shapes.items():
        if name in state and tuple(state[name].shape) != shape:
            problems.append(f"{name}: the model expects {list(state[name].shape)}, the checkpoints hold {list(shape)}")
    if problems:
        raise PoolError(listing("the checkpoints do not fit the model that --family and --model describe", problems))


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


def _cast(values: NDArray[np.float64], dtype: torch.dtype) -> Tensor:
    """One rounding from float64. Torch's own to 16 bits goes through float32 and rounds twice.

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
