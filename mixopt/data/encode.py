"""Records to named arrays, as a family encodes them, and whether these are arrays that can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import DataError, names
from mixopt.spec.checks import ROLES
from mixopt.values.samples import IMAGES, LENGTH, Encoding

Arrays = dict[str, NDArray[Any]]

# What both numpy and torch compute with.
DTYPES = frozenset(
    {"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"},
)


class _NoFieldError(KeyError):
    """A record has no such field."""


class _Fields(dict[str, Any]):
    """A record that tells a field that it lacks from any other key that is not found."""

    def __missing__(self, key: str) -> Any:
        raise _NoFieldError(key)


def encoded(encoding: Encoding, record: Any) -> Arrays:
    """The arrays of one record.

    Raises:
        DataError: The record lacks what ``encode`` looks for, or what comes out cannot be kept.
    """
    try:
        found = encoding.encode(_Fields(record) if isinstance(record, dict) else record)
    except _NoFieldError as error:
        fields = names(record) or "nothing"
        advice = f"; say which: --fields {error.args[0]}=NAME" if error.args[0] in ROLES and record else ""
        raise DataError(f"the family's encode looks for {error}, the record has {fields}{advice}") from error
    except IndexError as error:
        # What an array answers that is asked for a field by its name.
        if not isinstance(record, np.ndarray):
            raise
        raise DataError(f"the family's encode cannot take an image {list(record.shape)} ({error})") from error
    except OSError as error:
        raise DataError(f"the family's encode fails ({error})") from error
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"the family's encode gives a {type(found).__name__}, expected named arrays, such as a dict")
    return {name: _array(name, value) for name, value in found.items()}


def _array(name: Any, value: Any) -> NDArray[Any]:
    if not isinstance(name, str) or not name.isidentifier() or name.endswith(LENGTH):
        raise DataError(
            f"the family's encode gives an array called {name!r}; expected a name of letters, digits and underscores "
            f"that does not end with {LENGTH}"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"the family's encode gives {name} as no array ({error})") from error
    if array.dtype.name not in DTYPES:
        raise DataError(f"the family's encode gives {name} as {array.dtype}, expected {', '.join(sorted(DTYPES))}")
    return array.astype(np.dtype(array.dtype.name), copy=False)


@dataclass(frozen=True)
class Form:
    """What all samples of a split have in common.

    Attributes:
        dtypes: Array name to dtype.
        shapes: Array name to shape; None for one-dimensional arrays, which may be of any length.
    """

    dtypes: dict[str, np.dtype[Any]]
    shapes: dict[str, tuple[int, ...] | None]

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Compare a sample with the first one.

        Raises:
            DataError: It has other arrays, or of another dtype or shape.
        """
        if arrays.keys() != self.dtypes.keys():
            raise DataError(f"the family's encode gives {names(arrays)}, but {names(self.dtypes)} for the first sample")
        for name, array in arrays.items():
            if array.dtype != self.dtypes[name]:
                raise DataError(
                    f"the family's encode gives {name} as {array.dtype}, but {self.dtypes[name]} for the first sample; "
                    "say which with numpy.asarray(..., dtype=...)"
                )
            shape = self.shapes[name]
            if (array.shape if array.ndim != 1 else None) == shape:
                continue
            if shape is not None and name == IMAGES and len(arrays) == 1:
                sizes = f"{array.shape[:2]} and {shape[:2]}"
                raise DataError(f"images of different sizes, {sizes}; the family takes one")
            expected = "[any]" if shape is None else list(shape)
            raise DataError(
                f"the family's encode gives {name} as {list(array.shape)}, but {expected} "
                "for the first sample; only a one-dimensional array may be of any length"
            )


def form_of(arrays: Mapping[str, NDArray[Any]]) -> Form:
    """What the others must have in common with a sample."""
    return Form(
        {name: array.dtype for name, array in arrays.items()},
        {name: None if array.ndim == 1 else array.shape for name, array in arrays.items()},
    )
