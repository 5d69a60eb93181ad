"""What trainers wrap a state dict in, and which of two sets of weights in one file is taken.

timm's loader prefers averaged weights, and so do the recipes of torchvision; Lightning's averaging callbacks keep the
average as ``state_dict`` and the raw weights as ``current_model_state``.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mixopt.errors import CheckpointError, names, short
from mixopt.weights.checkpoints.checks import check_tensors

# Which of the weights in a file: averaged where there are any, only averaged ones, or those as trained.
Weights = Literal["auto", "ema", "raw"]
AUTO: Weights = "auto"
CHOICES: tuple[Weights, ...] = ("auto", "ema", "raw")

_RAW = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params")
_EMA = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema_model",
    "ema",
    "params_ema",
    "averaged_model",
    "model_state_dict_ema",
    "ema_weights",
    "swa_state_dict",
    "swa_model",
    "swa",
    "averaged_state_dict",
    "shadow",
    "shadow_params",
)
# Where Lightning keeps what callbacks remember, such as one that averages.
_CALLBACKS = "callbacks"
# How entries are called that hold an average, of whatever form.
_AVERAGE = re.compile(r"(^|[._])(ema|swa|shadow|averag\w*)([._]|$)", re.IGNORECASE)
# Beside these, ``state_dict`` is the average.
_RAW_BESIDE_AVERAGE = ("current_model_state",)
_DEEPEST = 4
_SAVE = "; save the state dict of the model alone: torch.save(model.state_dict(), 'one.pt')"


def unwrap(
    path: Path, loaded: Any, weights: Weights = AUTO
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """The state dict in what a file held.

    Args:
        path: The file, for messages.
        loaded: What was in it.
        weights: Which of two sets of weights.

    Returns:
        Name to tensor; its entries that are not tensors; what was taken and left out where there was a choice.

    Raises:
        CheckpointError: There is none, or not the one asked for, or one of its tensors cannot be worked with.
    """
    state, notices = _with_callbacks(loaded), []
    lost: list[str] = []
    taken_from: list[str] = []
    for _ in range(_DEEPEST):
        if not isinstance(state, Mapping) or _is_state(state):
            break
        taken, notice = _choose(path, state, weights)
        if taken is None:
            break
        notices += [notice] if notice else []
        lost += _nameless(state)
        taken_from.append(taken)
        state = state[taken]
    if lost and not _is_averaged(taken_from, notices):
        if weights == "ema":
            raise CheckpointError(
                f"{path}: --weights ema asks for the weights averaged, but those in it ({names(lost)}) are kept "
                "without names, which fit no model by themselves; save the model again with its average put in"
            )
        if weights == AUTO:
            notices.append(
                f"weights as trained are taken; averaged ones ({names(lost)}) are left out, as they are kept without "
                "names, which fit no model by themselves"
            )
    if weights == "ema" and taken_from and not _is_averaged(taken_from, notices):
        raise CheckpointError(
            f"{path}: --weights ema asks for the weights averaged, but it holds those as trained alone "
            f"({names(taken_from)}); leave --weights out"
        )
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{path}: expected a state dict (name to tensor), found a {type(state).__name__}{_cure(state)}"
        )
    # Of anything, however deep: a key may hold itself a thousand times over.
    others = [
        name if isinstance(name, str) else short(reprlib.repr(name))
        for name, value in state.items()
        if not (isinstance(name, (str, int)) and isinstance(value, Tensor))
    ]
    tensors = _tensors_of(state)
    if not tensors:
        found = ", ".join(map(short, others[:5])) or "nothing"
        raise CheckpointError(f"{path}: no tensors found in it; its entries are {found}{_SAVE}")
    if notices and _is_averaged(taken_from, notices) and (lacking := _beside(path, loaded, tensors)):
        notices.append(f"{len(lacking)} tensors that the average lacks are those as trained ({names(lacking)})")
        tensors |= lacking
    check_tensors(path, tensors)
    return tensors, tuple(others), tuple(notices)


def _tensors_of(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        str(name): value for name, value in state.items() if isinstance(name, (str, int)) and isinstance(value, Tensor)
    }


def _beside(path: Path, loaded: Any, average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an average leaves to the weights as trained: averages of parameters alone go with the model's buffers."""
    try:
        trained, _, _ = unwrap(path, loaded, "raw")
    except CheckpointError:
        return {}
    if not average.keys() < trained.keys():
        return {}
    return {name: tensor for name, tensor in trained.items() if name not in average}


def _is_averaged(taken: list[str], notices: list[str]) -> bool:
    """Whether an entry on the way to the weights is an average: by its name, or by what stood beside it."""
    return any(_is_average(key) for key in taken) or any("(averaged)" in notice for notice in notices)


def _is_average(key: str) -> bool:
    return key in _EMA or key.startswith(f"{_CALLBACKS}.")


def _with_callbacks(loaded: Any) -> Any:
    """The averages that callbacks keep among what they remember, as entries beside the weights."""
    callbacks = loaded.get(_CALLBACKS) if isinstance(loaded, Mapping) else None
    if not isinstance(callbacks, Mapping):
        return loaded
    kept = {
        f"{_CALLBACKS}.{name}.{key}": callback[key]
        for name, callback in callbacks.items()
        if isinstance(callback, Mapping)
        for key in _EMA
        if _is_wrapped(callback.get(key))
    }
    return {**loaded, **kept}


def _nameless(state: Mapping[Any, Any]) -> list[str]:
    """Entries with an average that is a list of tensors, or holds one."""
    return [key for key, value in state.items() if isinstance(key, str) and _is_nameless(key, value)]


def _is_nameless(key: str, value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else ()
    return _AVERAGE.search(key) is not None and any(map(_is_list, (value, *inner)))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(each, Tensor) for each in value)


def _is_state(state: Mapping[Any, Any]) -> bool:
    """Whether a mapping is a state dict itself: of names of a network's tensors, most of them with a dot in it."""
    return any(isinstance(value, Tensor) and isinstance(name, str) and "." in name for name, value in state.items())


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values())


def _is_wrapped(value: Any) -> bool:
    """Whether a value is a state dict, or a mapping around one."""
    if not isinstance(value, Mapping):
        return False
    return _holds_tensors(value) or any(isinstance(value.get(key), Mapping) for key in (*_RAW, *_EMA))


def _choose(path: Path, state: Mapping[Any, Any], weights: Weights) -> tuple[str | None, str]:
    """The entry to go on with, and what to say of it.

    Raises:
        CheckpointError: Several entries may be meant, or the one asked for is not there.
    """
    raw = [key for key in _RAW if _is_wrapped(state.get(key))]
    averages = [key for key in _EMA if _is_wrapped(state.get(key)) and not _is_nameless(key, state[key])]
    averages += [key for key in state if isinstance(key, str) and key.startswith(f"{_CALLBACKS}.")]
    if raw and (beside := [key for key in _RAW_BESIDE_AVERAGE if _is_wrapped(state.get(key))]):
        raw, averages = beside, [*averages, *raw]
    if not raw and not averages:
        return _only_one(path, state)
    wanted = averages if weights != "raw" and averages else raw
    if not wanted:
        raise CheckpointError(
            f"{path}: --weights raw asks for the weights as trained, but it holds those averaged alone "
            f"({names(averages)}); leave --weights out"
        )
    left = [key for key in (*averages, *raw) if key != wanted[0]]
    if not left:
        return wanted[0], ""
    kind = "averaged" if wanted[0] in averages else "as trained"
    other = "" if weights != AUTO else f"; --weights {'raw' if wanted[0] in averages else 'ema'} takes the other"
    return (
        wanted[0],
        f"of several sets of weights {wanted[0]!r} ({kind}) is taken, and {names(left)} left out{other}",
    )


def _only_one(path: Path, state: Mapping[Any, Any]) -> tuple[str | None, str]:
    """An entry of any name that is the only state dict there is."""
    if _holds_tensors(state):
        return None, ""
    found = [key for key, value in state.items() if isinstance(key, str) and _looks_trained(value)]
    if len(found) > 1:
        raise CheckpointError(
            f"{path}: holds several state dicts ({names(found)}), and it is not clear which is meant; save that one "
            "alone: torch.save(torch.load(...)['NAME'], 'one.pt')"
        )
    return (found[0], f"the weights are taken from its entry {found[0]!r}") if found else (None, "")


def _looks_trained(value: Any) -> bool:
    """Whether a value is a state dict, or holds one under one of the usual names."""
    if not isinstance(value, Mapping):
        return False
    inner = (value.get(key) for key in (*_RAW, *_EMA))
    return _is_state(value) or any(isinstance(each, Mapping) and _is_state(each) for each in inner)


def _cure(state: Any) -> str:
    if isinstance(state, list) and state and all(isinstance(each, Tensor) for each in state):
        return "; tensors without names, as some averages are kept, fit no model by themselves: save a state dict"
    return _SAVE
