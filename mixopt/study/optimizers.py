"""The optimizers that Optuna's CMA-ES stores as pickles in its trials: read without running what they name.

A pickle may name classes and functions, and its reader calls them. Here it may name the few that an optimizer is made
of, and none of these is called: each stands for a record of what it would have been given. The optimizer is made of the
records, once they are what a fresh one of its size has.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import cmaes
import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from mixopt.errors import RunError
from mixopt.study.boundary import ANEW
from mixopt.untrusted import READER_ERRORS, reason_of

Optimizer: TypeAlias = Any  # one of the kinds below; cmaes declares no types

_KINDS: dict[str, type[Any]] = {"CMA": cmaes.CMA, "SepCMA": cmaes.SepCMA, "CMAwM": cmaes.CMAwM}
# Module and name to what it is; the modules of numpy 1 and 2.
_ALLOWED = {
    ("cmaes._cma", "CMA"): "CMA",
    ("cmaes._sepcma", "SepCMA"): "SepCMA",
    ("cmaes._cmawm", "CMAwM"): "CMAwM",
    ("numpy", "dtype"): "dtype",
    ("numpy", "ndarray"): "ndarray",
    **{
        (f"numpy.{core}.{module}", name): name
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    },
}
_NUMBERS = ("f8", "i8")
# Changes as an optimizer goes on; every other whole number of it follows from its size.
_GENERATION = "_g"
# Written over from its beginning, so that its end is whatever the memory held.
_HISTORY = "_funhist_values"


def restore(trial: FrozenTrial, prefix: str, dims: int | None, where: str) -> Optimizer | None:
    """The optimizer that a trial stores.

    Args:
        trial: The trial.
        prefix: What the keys of the optimizer's parts begin with.
        dims: The dimensions of the space, where known.
        where: The storage, for messages.

    Returns:
        None where the trial has none.

    Raises:
        RunError: It names what no optimizer is made of, or is damaged.
    """
    parts = {key: value for key, value in trial.system_attrs.items() if key.startswith(prefix)}
    if not parts:
        return None
    source = f"{where}: trial {trial.number}: the sampler state"
    try:
        content = bytes.fromhex("".join([parts[f"{prefix}:{number}"] for number in range(len(parts))]))
        found = _made_of(_Reader(io.BytesIO(content)).load())
        if dims is not None and found.dim != dims:
            raise ValueError(f"it has {found.dim} dimensions, where the space has {dims}")
    except _NotAllowedError as error:
        raise RunError(f"{source} names {error}, which is not allowed, so it was not read; {ANEW}") from None
    except READER_ERRORS as error:
        raise RunError(f"{source} is damaged ({reason_of(error)}); {ANEW}") from error
    return found


class _NotAllowedError(Exception):
    """A pickle names something else."""


class _Record:
    """What a pickle gives to something it names."""

    __slots__ = ("arguments", "state")
    named: ClassVar[str]
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> _Record:
        found = super().__new__(cls)
        found.arguments, found.state = arguments, None
        return found

    def __setstate__(self, state: Any) -> None:
        self.state = state


_RECORDS: dict[str, type[_Record]] = {
    name: type(name, (_Record,), {"__slots__": (), "named": name}) for name in set(_ALLOWED.values())
}


class _Reader(pickle._Unpickler):
    """Python's own reader, not the one in C, which makes room for as many objects as a pickle says."""

    def find_class(self, module: str, name: str) -> type[_Record]:
        if (module, name) not in _ALLOWED:
            raise _NotAllowedError(f"{module}.{name}")
        return _RECORDS[_ALLOWED[module, name]]


def _made_of(record: Any) -> Optimizer:
    """The optimizer of a record.

    Raises:
        Exception: One of `READER_ERRORS`: it is not what a fresh one of its size is.
    """
    if not isinstance(record, _Record) or record.named not in _KINDS or type(record.state) is not dict:
        raise ValueError("it is no optimizer")
    kind = _KINDS[record.named]
    state = {name: _value_of(value) for name, value in record.state.items()}
    _check(state, _state_of(_fresh(kind, state)))
    found = object.__new__(kind)
    if hasattr(kind, "__setstate__"):
        found.__setstate__(state)
    else:
        found.__dict__.update(state)
    return found


def _value_of(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float):
        return value
    if not isinstance(value, _Record):
        raise ValueError(f"it holds a {type(value).__name__}")
    if value.named in _KINDS:
        return _made_of(value)
    if value.named == "scalar":
        dtype, content = value.arguments
        return _array(content, dtype, (), "C")[()]
    if value.named == "_reconstruct":
        _, shape, dtype, fortran, content = value.state
        return _array(content, dtype, shape, "F" if fortran else "C")
    if value.named == "_frombuffer":
        content, dtype, shape, order, *_ = value.arguments
        return _array(content, dtype, shape, order)
    raise ValueError(f"it holds a {value.named}")


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    if not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise ValueError("it holds an array that is none")
    code, byteorder = dtype.arguments[0], dtype.state[1]
    if code not in _NUMBERS or byteorder not in ("<", ">"):
        raise ValueError(f"it holds numbers of type {code!r}")
    values = np.frombuffer(content, dtype=np.dtype(byteorder + code)).reshape(shape, order=order)
    return values.astype(code, order=order)


def _fresh(kind: type[Any], state: Mapping[str, Any]) -> Optimizer:
    """An optimizer of the same size that has seen nothing."""
    inner = state["_cma"] if kind is cmaes.CMAwM else None
    size, population = (inner.dim, inner.population_size) if inner else (len(state["_mean"]), state["_popsize"])
    # Before anything of that size is made.
    if kind is cmaes.CMA and len(state["_c_1d"]) != size * (size + 1) // 2:
        raise ValueError("its covariances are not those of its mean")
    weights = population if inner else len(state["_weights"])
    if type(population) is not int or not 2 <= population <= 2 * weights + 1:
        raise ValueError(f"it has a population of {population!r}")
    common: dict[str, Any] = {
        "mean": np.full(size, 0.5),
        "sigma": 1.0,
        "bounds": np.tile([0.0, 1.0], (size, 1)),
        "population_size": population,
        "n_max_resampling": 10 * size,
    }
    if kind is cmaes.CMAwM:
        common["steps"] = np.zeros(size)  # a space of mixes has none
    with np.errstate(all="ignore"):  # as populations of a few make it
        return kind(**common)


def _state_of(optimizer: Optimizer) -> dict[str, Any]:
    if isinstance(optimizer, cmaes.CMAwM):
        return dict(optimizer.__dict__)
    state: dict[str, Any] = optimizer.__getstate__()
    return state


def _check(state: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    """Refuse a state that has other members than a fresh one, or members of other kinds or shapes."""
    if state.keys() != fresh.keys():
        raise ValueError("its members are not those of an optimizer")
    for name, expected in fresh.items():
        value = state[name]
        if isinstance(expected, cmaes.CMA):
            fits = isinstance(value, cmaes.CMA)
        elif isinstance(expected, np.ndarray):
            fits = isinstance(value, np.ndarray) and value.shape == expected.shape and value.dtype == expected.dtype
            fits = fits and (name == _HISTORY or bool(np.all(np.isfinite(value))))
        elif expected is None or isinstance(expected, bool):
            fits = type(value) is type(expected)
        elif isinstance(expected, int):
            fits = type(value) is int and (0 <= value < 2**31 if name == _GENERATION else value == expected)
        else:
            fits = isinstance(value, float) and math.isfinite(value)
        if not fits:
            raise ValueError(f"its {name.strip('_')} does not fit")
