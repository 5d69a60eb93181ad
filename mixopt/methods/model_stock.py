"""Model Stock. Jang et al., "Model Stock: all we need is just a few fine-tuned models", ECCV 2024, arXiv 2403.19522.

Per tensor, with deltas from the base ``delta_i = theta_i - theta_0`` and their mean cosine over all pairs:
``t = k cos / (1 + (k - 1) cos)``, and the fused tensor is ``t mean(theta_i) + (1 - t) theta_0``. `choose` does this
to finished checkpoints, `merge` to the state dicts of runs that go on training.

The filter-wise form, with a ratio for each output row of a tensor, is left out: a mix has one row of coefficients
per tensor at the finest, so what that form fuses is not a mix, and no recipe could rebuild it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt.errors import PoolError, listing, names
from mixopt.methods import Chosen, base_mix
from mixopt.scoring.objective import Objective
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix
from mixopt.weights.builder import tensor_rows

CHUNK = 2**18  # numbers held in float64 at a time, 2 MiB: more falls out of the caches
# Deltas nearer than this to one direction are one but for rounding: the base must not enter a model mixed with itself.
PARALLEL = 1e-12


class Ratio(NamedTuple):
    """The share of the ingredients' mean in one fused tensor; the rest is the base.

    Attributes:
        t: The share, 0 to 1.
        clamped: Whether the formula gave a negative share (the mean cosine is negative), which became 0.
        cosine: The mean cosine over all pairs of deltas; None where a delta is zero and has no direction.
    """

    t: float
    clamped: bool
    cosine: float | None


def choose(objective: Objective, columns: Mapping[str, Mix], *, seed: int) -> Chosen:
    """Per tensor, pull the mean of the columns towards the base, as far as the angle between their deltas tells.

    No evaluations. A tensor that some column leaves as in the base is the mean of the columns (t = 1), and so is
    one that is the same in all columns; a negative mean cosine gives the base (t = 0) and is counted in the notes.

    Args:
        objective: Not asked; holds the pool.
        columns: What to merge, two or more; may be any mixes. No column's weights are made.
        seed: Not used; nothing is random.

    Raises:
        PoolError: Fewer than two columns, or a pool without a base.
    """
    if len(columns) < 2:
        raise PoolError(
            "model_stock needs two ingredients or more, to see the angle between them; "
            f"found {len(columns)} ({names(columns) or 'none'})"
        )
    pool = objective.pool
    pull = tensor_rows(base_mix(objective, columns), pool)
    rows = np.stack([tensor_rows(mix, pool) for mix in columns.values()])  # [k, n_mixed, n_columns]
    # The base's own delta is zero, so that its coefficients drop out of every product.
    used = np.flatnonzero(np.any(rows != 0, axis=(0, 1)) & (pull[0] == 0))
    anchor = pool.stack[int(np.argmax(pull[0]))]
    ratios = {}
    for number, place in enumerate(pool.mixed):
        part = slice(place.start, place.stop)
        own = rows[:, number, used]
        ratios[place.name] = ratio(own @ products([pool.stack[column, part] for column in used], anchor[part]) @ own.T)
    t = np.array([each.t for each in ratios.values()])[:, None]
    mix = Mix(make_groups("tensor", pool.sizes), pool.columns, t * rows.mean(axis=0) + (1 - t) * pull)
    curve = [{"name": name, "value": each.t, "cosine": each.cosine} for name, each in ratios.items()]
    return Chosen(mix, curves={"ratio": curve}, notes=_notes(ratios, pool.sizes))


def merge(states: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Model Stock of state dicts, for runs that go on from the merged weights (the paper's periodic merging).

    Train two runs for a period, merge, load the merged weights into both, repeat::

        base = copy.deepcopy(runs[0].state_dict())  # the pretrained weights, before any training
        for _ in range(periods):
            for run in runs:
                train(run, one_period)
            merged = merge([run.state_dict() for run in runs], base)
            for run in runs:
                run.load_state_dict(merged)

    Floating-point tensors are merged one by one as in `choose`, BatchNorm statistics included, in float32 or wider,
    and rounded once to the first state's dtype; one that is equal in all states is kept bit for bit. Integer and
    boolean buffers are the first state's. The result shares no memory with the states and lies on the first one's
    device; states and base may lie on others.

    Args:
        states: The runs' state dicts now, two or more.
        base: That of the pretrained model, on the same names and shapes.

    Raises:
        PoolError: Fewer than two states, other names or shapes, complex tensors, or values that are not finite.
    """
    if len(states) < 2:
        raise PoolError(f"merge needs the state dicts of two runs or more, found {len(states)}")
    named = {f"state {number}": state for number, state in enumerate(states)} | {"the base": base}
    if problems := _misfits(named):
        raise PoolError(listing("the state dicts cannot be merged", problems))
    return {name: _merged(name, [state[name] for state in states], base[name]) for name in states[0]}


def ratio(gram: NDArray[np.float64]) -> Ratio:
    """The ratio of one tensor, from the inner products of its deltas.

    Args:
        gram: ``[k, k]``, ``<delta_i, delta_j>`` of the k >= 2 models that are merged.
    """
    k = len(gram)
    norms = np.sqrt(np.maximum(np.diagonal(gram), 0))
    if not np.all(norms > 0):
        return Ratio(1.0, False, None)
    pairs = np.triu_indices(k, 1)
    cosine = float(np.clip(gram[pairs] / np.outer(norms, norms)[pairs], -1, 1).mean())
    if cosine < 0:  # near -1 / (k - 1) the formula has a pole
        return Ratio(0.0, True, cosine)
    if 1 - cosine < PARALLEL:
        return Ratio(1.0, False, cosine)
    return Ratio(k * cosine / (1 + (k - 1) * cosine), False, cosine)


def products(vectors: Sequence[Tensor], base: Tensor) -> NDArray[np.float64]:
    """Inner products of ``vectors[i] - base``, ``[k, k]``, in float64 with bounded memory.

    Args:
        vectors: k flat tensors ``[n]``.
        base: ``[n]``, on the same device.
    """
    length = max(1, CHUNK // (len(vectors) + 1))
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=base.device)
    for start in range(0, len(base), length):
        origin = base[start : start + length]
        deltas = torch.empty(len(vectors), len(origin), dtype=torch.float64, device=base.device)
        for delta, vector in zip(deltas, vectors, strict=True):
            delta.copy_(vector[start : start + length]).sub_(origin)
        total += deltas @ deltas.T
    gram: NDArray[np.float64] = total.cpu().numpy()
    return gram


def _notes(ratios: Mapping[str, Ratio], sizes: Mapping[str, int]) -> dict[str, Any]:
    clamped = [name for name, each in ratios.items() if each.clamped]
    return {
        "tensors": len(ratios),
        "mean_ratio": float(np.average([each.t for each in ratios.values()], weights=list(sizes.values()))),
        "clamped": len(clamped),
        "clamped_tensors": clamped[:5],
        "zero_deltas": sum(each.cosine is None for each in ratios.values()),
    }


def _merged(name: str, tensors: Sequence[Tensor], base: Tensor) -> Tensor:
    first = tensors[0].detach()
    if not first.is_floating_point():
        return first.clone()
    wide = reduce(torch.promote_types, [each.dtype for each in (*tensors, base)], torch.float32)
    flat = [each.detach().to(first.device, wide).reshape(-1) for each in tensors]
    if all(torch.equal(flat[0], other) for other in flat[1:]):
        return first.clone()
    anchor = base.detach().to(first.device, wide).reshape(-1)
    gram = products(flat, anchor)
    if not np.all(np.isfinite(gram)):
        raise PoolError(f"{name}: holds values that are not finite, so that a run has diverged; it cannot be merged")
    mean = sum(flat[1:], flat[0]) / len(flat)
    return torch.lerp(anchor, mean, ratio(gram).t).to(first.dtype).view(first.shape)


def _misfits(named: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Names, shapes and kinds that differ from the first state's."""
    first = next(iter(named.values()))
    problems = [f"{name} is complex; only real tensors can be merged" for name in first if first[name].is_complex()]
    for where, state in named.items():
        if missing := [name for name in first if name not in state]:
            problems.append(f"{where} lacks {len(missing)} tensors of state 0: {names(missing)}")
        if extra := [name for name in state if name not in first]:
            problems.append(f"{where} has {len(extra)} tensors that state 0 lacks: {names(extra)}")
        for name in (each for each in first if each in state):
            found, expected = state[name], first[name]
            if found.shape != expected.shape:
                problems.append(f"{where}: {name} has shape {list(found.shape)}, expected {list(expected.shape)}")
            elif found.is_floating_point() != expected.is_floating_point():
                problems.append(f"{where}: {name} is {found.dtype}, expected {expected.dtype}")
    return problems
