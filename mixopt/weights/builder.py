"""The fast builder: a mix to the weights of a resident module, for trials. `mixopt.weights.exact` makes files.

Both obey one contract: `Mix` in, fused weights out, coefficients applied as they stand.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixopt.errors import PoolError, listing, names
from mixopt.values.mix import Mix
from mixopt.weights.pool import Pool
from mixopt.weights.stack import Resident, Stack


class FastBuilder:
    """Fuses into a module whose parameters are views of one resident buffer and never move.

    Neighbouring tensors with equal rows become one matrix-vector product over the pool's stack, accumulated in
    float32 and rounded once to the dtype that will be saved. A one-hot row copies its ingredient bit for bit, whatever
    the stack.

    Args:
        pool: What to mix.
        module: The model; its parameters are replaced by views (same names and shapes as the pool's tensors).
        device: Where buffer and module live.
        dtype: The dtype that will be saved, or None for that of the ingredients.
        stack: Where the pool's columns lie; without, in float32 on the device.
        cuts: Numbers of mixed tensors that no product spans with the one before, so that what stands before them is
            fused to the same bits whatever rows come after (a product's last bits depend on its length).

    Raises:
        PoolError: The module's names or shapes are not the pool's.
    """

    def __init__(
        self,
        pool: Pool,
        module: nn.Module,
        device: torch.device,
        dtype: torch.dtype | None = None,
        stack: Stack | None = None,
        cuts: frozenset[int] = frozenset(),
    ) -> None:
        self.pool = pool
        self.module = module.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        self.dtype = dtype
        self.cuts = cuts
        self._stack = stack or Resident(pool, device)
        self._flat = torch.empty(pool.stack.shape[1], dtype=torch.float32, device=device)
        self._bind()
        self._rounded = _rounding(pool, dtype)

    def apply(self, mix: Mix) -> None:
        """Write the fused weights of a mix into the module.

        Raises:
            PoolError: The mix has other columns than the pool, or leaves a mixed tensor without a row.
        """
        self._fuse(tensor_rows(mix, self.pool))
        self._round()

    def gradient(self, loss: Callable[[], Tensor], *more: Tensor) -> tuple[float, NDArray[np.float64], list[float]]:
        """A loss of the module as it is fused now, and its gradient with respect to the coefficients: stack @ grad.

        The rounding to the saved dtype counts as the identity. Beyond the pool this takes one model's activations
        and twice its gradient, however many columns there are. BatchNorm statistics have no gradient.

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
        flat = torch.zeros_like(self._flat)
        for name, grad in zip(leaves, grads, strict=False):
            if grad is not None:
                place = self.pool.mixed[owner[name]]
                flat[place.start : place.stop] += grad.reshape(-1)
        rows = torch.zeros(len(self.pool.mixed), len(self.pool.columns), dtype=torch.float64, device=flat.device)
        for number, columns, slope in self._pieces([place.stop for place in self.pool.mixed], flat):
            rows[number] += torch.mv(columns, slope)
        more_grads = [0.0 if each is None else float(each) for each in grads[len(leaves) :]]
        return float(value.detach()), rows.cpu().numpy(), more_grads

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

    def _fuse(self, rows: NDArray[np.float64]) -> None:
        """Rows ``[n_mixed, n_columns]`` to the buffer, run by run of equal rows."""
        changes = np.flatnonzero(np.any(rows[1:] != rows[:-1], axis=1)) + 1
        first = sorted(self.cuts.union(changes.tolist()) | {0})
        starts = [self.pool.mixed[number].start for number in first]
        stops = [*starts[1:], self.pool.mixed[-1].stop]
        rows = rows[first]
        used = np.count_nonzero(rows, axis=1)
        alone = (used == 1) & (rows.max(axis=1) == 1)
        if not alone.all():
            few = (used <= max(1, rows.shape[1] // 4)).tolist()
            weights = torch.as_tensor(rows, dtype=torch.float32).to(self._flat.device).unbind()
            for run, columns, part in self._pieces(stops, self._flat):
                if few[run]:
                    _add_up(rows[run], columns, part)
                else:
                    torch.mv(columns.t(), weights[run], out=part)
        for run in np.flatnonzero(alone).tolist():
            column = self._stack.column(int(rows[run].argmax()), starts[run], stops[run])
            self._flat[starts[run] : stops[run]].copy_(column)

    def _pieces(self, stops: Sequence[int], beside: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The stack ``[n_columns, k]``, and what lies beside it ``[k]``, with the number of the stretch it is of.

        Cut where stretches end and where the stack's chunks do, many at once: a slice each would take longer than the
        product of a small tensor.
        """
        for start, chunk in self._stack.chunks():
            end = start + chunk.shape[1]
            cuts = [start, *stops[bisect_right(stops, start) : bisect_left(stops, end)], end]
            sizes = [after - before for before, after in pairwise(cuts)]
            columns = chunk.split_with_sizes(sizes, dim=1)
            others = beside[start:end].split_with_sizes(sizes)
            yield from zip(count(bisect_right(stops, start)), columns, others, strict=False)

    def _round(self) -> None:
        for start, stop, dtype in self._rounded:
            part = self._flat[start:stop]
            part.copy_(part.to(dtype))


def _add_up(row: NDArray[np.float64], columns: Tensor, out: Tensor) -> None:
    """Only the columns that a row uses, one after the other."""
    first, *others = np.flatnonzero(row).tolist()
    torch.mul(columns[first], float(row[first]), out=out)
    for column in others:
        out.add_(columns[column], alpha=float(row[column]))


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
