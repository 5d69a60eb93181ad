"""The cache on disk: what was computed once, by content key. Entries are `.npz` files; reading one runs no code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from mixopt.files import atomic_write
from mixopt.listener import Listener
from mixopt.scoring.outcomes import Outcomes
from mixopt.untrusted import READER_ERRORS, is_environment, open_regular, reason_of
from mixopt.untrusted.arrays import packed, unpacked
from mixopt.values.kept_logits import KeptLogits

Arrays = Mapping[str, NDArray[Any]]
Found = TypeVar("Found")

# What an entry holds beside its arrays, whose names start otherwise.
_KEY, _SECONDS = "_key", "_seconds"
# What entries of every version hold.
_ALWAYS = ("predicted", "losses")
# What holds the logits; entries of before they were kept lack all of them.
_LOGITS, _CLASSES, _REST, _COUNT = "logits", "logits_classes", "logits_rest", "logits_class_count"
# Before the names of a user's own numbers.
_ALSO = "also."


@dataclass(frozen=True, eq=False)
class Gradient:
    """A mean loss and how it changes.

    Attributes:
        loss: Mean cross-entropy in nats.
        coefficients: ``[n_groups, n_columns]`` float64, its derivative with respect to each coefficient of the mix.
        scale: Its derivative with respect to the factor on the logits.
    """

    loss: float
    coefficients: NDArray[np.float64]
    scale: float


class OutcomeCache:
    """Outcomes and gradients on disk by content key; a damaged entry is reported and counts as missing.

    Losses and confidences are kept in float32, the precision that they were computed in, log-probabilities in float16:
    to ``2**-11`` of their size, see `mixopt.values.kept_logits`. Each was rounded before it got here, so that what was
    computed and what is read are the same bits.

    Args:
        folder: Where the entries lie.
        listener: Warned of damaged entries.
        needs: Fields of outcomes that entries of before they were kept do not have: those without count as missing.
    """

    def __init__(self, folder: Path, listener: Listener | None = None, needs: Sequence[str] = ()) -> None:
        self.folder = folder
        self._needs = needs
        self._listener = listener or Listener()

    def get(self, key: str, most: int, needs: Sequence[str] = ()) -> tuple[Outcomes, float] | None:
        """The stored outcomes of a split's first samples, and the seconds they took.

        Args:
            key: What they depend on.
            most: Samples of the split; the outcomes are of all or fewer.
            needs: As for the cache, for this entry.
        """

        def outcomes_of(arrays: Arrays) -> Outcomes:
            outcomes = outcomes_from(arrays)
            if not 0 < len(outcomes) <= most:
                raise ValueError("an entry of another split")
            return outcomes

        found = self._load(self._path("outcomes", key), key, outcomes_of)
        return None if found and _lacks(found[0], (*self._needs, *needs)) else found

    def holds(self, key: str) -> bool:
        """Whether outcomes are stored, whatever they are."""
        return self._path("outcomes", key).is_file()

    def put(self, key: str, outcomes: Outcomes, seconds: float) -> None:
        """Store outcomes.

        Raises:
            RunError: The cache cannot be written.
        """
        self._store(self._path("outcomes", key), key, arrays_of(outcomes), seconds)

    def get_gradient(self, key: str, shape: tuple[int, int]) -> tuple[Gradient, float] | None:
        """The stored gradient with coefficients of this shape and the seconds it took, or None."""

        def gradient_of(arrays: Arrays) -> Gradient:
            if arrays["coefficients"].shape != shape:
                raise ValueError("an entry of another mix")
            return Gradient(float(arrays["loss"]), arrays["coefficients"], float(arrays["scale"]))

        return self._load(self._path("gradients", key), key, gradient_of)

    def put_gradient(self, key: str, gradient: Gradient, seconds: float) -> None:
        """Store a gradient.

        Raises:
            RunError: The cache cannot be written.
        """
        scalars = {"loss": np.array(gradient.loss), "scale": np.array(gradient.scale)}
        arrays = {**scalars, "coefficients": gradient.coefficients}
        self._store(self._path("gradients", key), key, arrays, seconds)

    def _load(self, path: Path, key: str, read: Callable[[Arrays], Found]) -> tuple[Found, float] | None:
        try:
            with open_regular(path) as stream:
                arrays, seconds = _unpacked(stream, key)
            return read(arrays), seconds
        except (FileNotFoundError, NotADirectoryError):
            return None
        except READER_ERRORS as error:
            what = "unreadable cache entry" if is_environment(error) else "damaged cache entry"
            self._listener.warn(f"{what} {path} ({reason_of(error)}): scored again")
            return None

    def _store(self, path: Path, key: str, arrays: Arrays, seconds: float) -> None:
        with atomic_write(path, cache=self.folder) as stream:
            stream.write(packed({**arrays, _KEY: np.array(key), _SECONDS: np.array(float(seconds))}))

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / kind / key[:2] / f"{key}.npz"


def _lacks(outcomes: Outcomes, needs: Sequence[str]) -> bool:
    """Whether something was not kept that is when they are computed anew: never of own objectives, nor of overflows."""
    names = needs if outcomes.is_finite and not outcomes.is_own else [name for name in needs if name != _LOGITS]
    return any(getattr(outcomes, name) is None for name in names)


def arrays_of(outcomes: Outcomes) -> dict[str, NDArray[Any]]:
    """Outcomes as the cache stores them: losses come from float32 and lose nothing as such."""
    # A user's own scores are float64 from the beginning.
    arrays: dict[str, NDArray[Any]] = {
        "predicted": outcomes.predicted.astype(np.int32),
        "losses": outcomes.losses.astype(np.float64 if outcomes.is_own else np.float32),
    }
    if outcomes.above is not None and outcomes.confidence is not None:
        # Few classes come before the right one: a byte does for most, two for nearly all.
        above = outcomes.above.astype(np.min_scalar_type(int(outcomes.above.max(initial=0))))
        arrays |= {"above": above, "confidence": outcomes.confidence.astype(np.float32)}
    if outcomes.logits is not None:
        arrays |= _logits_arrays(outcomes.logits)
    return arrays | {f"{_ALSO}{name}": np.array(value) for name, value in outcomes.also.items()}


def outcomes_from(arrays: Arrays) -> Outcomes:
    """Outcomes from what the cache stored.

    Raises:
        ValueError: The arrays are of different lengths, or the logits are none.
    """
    also = {name.removeprefix(_ALSO): float(array) for name, array in arrays.items() if name.startswith(_ALSO)}
    dtypes = {"predicted": np.int64, "losses": np.float64, "above": np.int64, "confidence": np.float64}
    # Entries of before they were kept lack the last two.
    names = [name for name in dtypes if name in arrays or name in _ALWAYS]
    every: dict[str, Any] = {name: arrays[name].astype(dtypes[name]) for name in names}
    if {array.shape for array in every.values()} != {(len(every["predicted"]),)}:
        raise ValueError("an entry whose arrays are of different lengths")
    outcomes = Outcomes(**every, also=also, logits=_logits_from(arrays))
    if outcomes.logits is not None and len(outcomes.logits) != len(outcomes):
        raise ValueError("an entry whose logits are of other samples")
    return outcomes


def _logits_arrays(logits: KeptLogits) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        _LOGITS: logits.values.astype(np.float16),
        _COUNT: np.array(logits.class_count, dtype=np.uint32),
    }
    if logits.classes is not None and logits.rest is not None:
        arrays[_CLASSES] = logits.classes.astype(np.min_scalar_type(logits.class_count - 1))
        arrays[_REST] = logits.rest.astype(np.float16)
    return arrays


def _logits_from(arrays: Arrays) -> KeptLogits | None:
    """Logits from what the cache stored, if it did.

    Raises:
        ValueError: They are of other types, shapes or classes, or no log-probabilities.
    """
    kinds = {_LOGITS: "f", _REST: "f", _CLASSES: "u", _COUNT: "u"}
    if not kinds.keys() & arrays.keys():
        return None
    if any(arrays[name].dtype.kind != kind for name, kind in kinds.items() if name in arrays):
        raise ValueError("an entry whose logits are of other types")
    if arrays[_COUNT].shape != ():
        raise ValueError("an entry whose logits are of no number of classes")
    logits = KeptLogits(
        arrays[_LOGITS].astype(np.float32),
        arrays[_CLASSES].astype(np.int64) if _CLASSES in arrays else None,
        arrays[_REST].astype(np.float32) if _REST in arrays else None,
        int(arrays[_COUNT]),
    )
    logits.check()
    return logits


def _unpacked(stream: BinaryIO, key: str) -> tuple[dict[str, NDArray[Any]], float]:
    """The arrays and the seconds in an entry's file.

    Raises:
        Exception: One of `mixopt.untrusted.READER_ERRORS`: damaged bytes, or the entry of another key.
    """
    entry = unpacked(stream)
    if str(entry.pop(_KEY)) != key:
        raise ValueError("an entry of another mix or split")
    return entry, float(entry.pop(_SECONDS))
