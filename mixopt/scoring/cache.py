"""The cache on disk: what was computed once, by content key."""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import joblib
import numpy as np
from numpy.typing import NDArray

from mixopt.files import atomic_write
from mixopt.listener import Listener
from mixopt.scoring.outcomes import Outcomes

Found = TypeVar("Found")

_DAMAGED = (
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, ImportError, MemoryError,
    pickle.UnpicklingError, zlib.error, struct.error,
)  # fmt: skip


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

    Args:
        folder: Where the entries lie.
        listener: Warned of damaged entries.
    """

    def __init__(self, folder: Path, listener: Listener | None = None) -> None:
        self.folder = folder
        self._listener = listener or Listener()

    def get(self, key: str, most: int) -> tuple[Outcomes, float] | None:
        """The stored outcomes of a split's first samples, all of its ``most`` or fewer, and the seconds they took."""

        def read(entry: Mapping[str, Any]) -> tuple[Outcomes, float]:
            outcomes = Outcomes(np.asarray(entry["predicted"], np.int64), np.asarray(entry["losses"], np.float64))
            if not 0 < len(outcomes) <= most or len(outcomes.losses) != len(outcomes):
                raise ValueError("an entry of another split")
            return outcomes, float(entry["seconds"])

        return self._load(self._path("outcomes", key), key, read)

    def put(self, key: str, outcomes: Outcomes, seconds: float) -> None:
        """Store outcomes.

        Raises:
            RunError: The cache cannot be written.
        """
        entry = {
            "predicted": outcomes.predicted.astype(np.int32),
            "losses": outcomes.losses.astype(np.float32),
            "seconds": seconds,
        }
        self._store(self._path("outcomes", key), key, entry)

    def get_gradient(self, key: str, shape: tuple[int, int]) -> tuple[Gradient, float] | None:
        """The stored gradient with coefficients of this shape and the seconds it took, or None."""

        def read(entry: Mapping[str, Any]) -> tuple[Gradient, float]:
            rows = np.asarray(entry["coefficients"], np.float64)
            if rows.shape != shape:
                raise ValueError("an entry of another mix")
            return Gradient(float(entry["loss"]), rows, float(entry["scale"])), float(entry["seconds"])

        return self._load(self._path("gradients", key), key, read)

    def put_gradient(self, key: str, gradient: Gradient, seconds: float) -> None:
        """Store a gradient.

        Raises:
            RunError: The cache cannot be written.
        """
        entry = {"loss": gradient.loss, "coefficients": gradient.coefficients, "scale": gradient.scale}
        self._store(self._path("gradients", key), key, {**entry, "seconds": seconds})

    def _load(self, path: Path, key: str, read: Callable[[Mapping[str, Any]], Found]) -> Found | None:
        if not path.exists():
            return None
        try:
            entry = joblib.load(path)
            if entry["key"] != key:
                raise ValueError("an entry of another mix or split")
            return read(entry)
        except _DAMAGED as error:
            self._listener.warn(f"damaged cache entry {path} ({error or type(error).__name__}): scored again")
            return None

    def _store(self, path: Path, key: str, entry: Mapping[str, Any]) -> None:
        buffer = BytesIO()
        joblib.dump({"key": key, **entry}, buffer)
        with atomic_write(path) as stream:
            stream.write(buffer.getvalue())

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / kind / key[:2] / f"{key}.joblib"
