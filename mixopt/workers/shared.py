"""What a run shares with its workers: a folder that they map into memory, so that each page is there once.

It holds the pool's stack and fixed tensors as they lie in memory (``pool.bin``), what describes them (``pool.json``),
the options (``spec.json``), and of every split where its arrays lie (``split-*.npz``). It is the run's own, is there
while the run is, and holds no code. What is sealed has digests beside it, which whoever opens it compares: another
machine may see something else under the same path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt.errors import RunError
from mixopt.files import write_json
from mixopt.scoring.evaluator import Evaluator
from mixopt.scoring.own_objective import OwnEvaluator
from mixopt.scoring.work import AnyEvaluator
from mixopt.spec import StudySpec
from mixopt.untrusted.arrays import packed, unpacked
from mixopt.values.samples import Samples
from mixopt.weights.pool import MixedTensor, Pool

POOL, POOL_DATA, SPEC = "pool.json", "pool.bin", "spec.json"
# Tensors begin at multiples of it: what every type can be read from.
_ALIGNED = 64


@dataclass(frozen=True, eq=False)
class SharedSplit:
    """A split as a worker finds it.

    Attributes:
        samples: The split.
        batch_size: Samples per forward pass as asked for.
        cut: As for `Evaluator`; None for none.
        function: Import path of the user's own function that scores it, and the number that drives; or None.
    """

    samples: Samples
    batch_size: int
    cut: int | None
    function: tuple[str, str | None] | None


def share_pool(folder: Path, pool: Pool, *, sealed: bool = False) -> Pool:
    """Write a pool into the folder; gives the same pool, mapped from there, so that its memory is given back.

    Args:
        folder: Shared.
        pool: The checkpoints.
        sealed: Whether its digest is kept with it.

    Raises:
        OSError: It does not fit.
    """
    places: dict[str, tuple[str, list[int], int]] = {}
    end = pool.stack.nbytes
    for name, tensor in pool.fixed.items():
        end += -end % _ALIGNED
        places[name] = (_named(tensor.dtype), list(tensor.shape), end)
        end += tensor.nbytes
    with (folder / POOL_DATA).open("wb") as stream:  # a write says that a disk is full; a map would kill the process
        for column in pool.stack:
            stream.write(column.contiguous().view(torch.uint8).numpy().data)
        for name, (_, _, start) in places.items():
            stream.write(bytes(start - stream.tell()))
            stream.write(pool.fixed[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
        stream.write(bytes(_ALIGNED))  # never empty
    mixed = [[each.name, list(each.shape), _named(each.dtype), each.start, each.stop] for each in pool.mixed]
    told = {
        "columns": pool.columns,
        "base": pool.base,
        "mixed": mixed,
        "fixed": places,
        "tied": pool.tied,
        "seal": _digest_of(np.memmap(folder / POOL_DATA, mode="r")) if sealed else None,
    }
    write_json(folder / POOL, told)
    shared = open_pool(folder)
    return replace(pool, stack=shared.stack, fixed=shared.fixed)


def open_pool(folder: Path) -> Pool:
    """The pool in a folder: all that fusing needs of it, mapped into memory.

    Raises:
        OSError: The folder cannot be seen from here.
        RunError: Its seal is broken.
    """
    told = json.loads((folder / POOL).read_text(encoding="utf-8"))
    mixed = tuple(
        MixedTensor(name, tuple(shape), _dtype_of(dtype), start, stop)
        for name, shape, dtype, start, stop in told["mixed"]
    )
    path = folder / POOL_DATA
    _check_seal(path, told["seal"], np.memmap(path, mode="r"))
    data = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    columns, length = len(told["columns"]), mixed[-1].stop
    stack = data[: 4 * columns * length].view(torch.float32).view(columns, length)

    def tensor_at(dtype: str, shape: list[int], start: int) -> Tensor:
        kind = _dtype_of(dtype)
        size = torch.Size(shape).numel() * kind.itemsize
        return data[start : start + size].view(kind).view(shape)

    return Pool(
        columns=tuple(told["columns"]),
        base=told["base"],
        paths={},
        mixed=mixed,
        stack=stack,
        fixed={name: tensor_at(*place) for name, place in told["fixed"].items()},
        tied=told["tied"],
        hashes={},
        buffers_from=None,
        notices=(),
    )


def share_spec(folder: Path, spec: StudySpec, resolved: Mapping[str, str]) -> None:
    """Write the options as the run has resolved them, its folders under names that are the same for every process."""
    here = {"models": spec.models.absolute(), "cache": spec.cache.absolute(), **resolved}
    write_json(folder / SPEC, spec.model_copy(update=here).model_dump(mode="json", by_alias=True))


def open_spec(folder: Path) -> StudySpec:
    """The options in a folder."""
    return StudySpec.model_validate(json.loads((folder / SPEC).read_text(encoding="utf-8")))


def share_split(folder: Path, token: str, evaluator: AnyEvaluator, *, sealed: bool = False) -> None:
    """Tell where a split's arrays lie; those that are not mapped from a file are written into the folder.

    Args:
        folder: Shared.
        token: What jobs call the split.
        evaluator: The split's.
        sealed: Whether digests of its arrays are kept with it.
    """
    split = evaluator.split
    arrays: dict[str, Any] = {}
    for number, (name, array) in enumerate(split.arrays.items()):
        arrays[name] = _mapped(array) or _written(folder / f"{_file_of(token)}-{number}.npy", array)
    plain = {
        "name": split.name,
        "source": split.source,
        "arrays": arrays,
        "seals": {name: _digest_of(array) if sealed else None for name, array in split.arrays.items()},
        "classes": split.classes,
        "steers": split.steers,
        "among": split.among,
        "batch_size": evaluator.batch_size,
        "cut": evaluator.cut if isinstance(evaluator, Evaluator) else None,
        "function": (evaluator.path, evaluator.metric) if isinstance(evaluator, OwnEvaluator) else None,
    }
    content = packed({"labels": split.labels, "digests": split.digests, "told": np.array(json.dumps(plain))})
    # Renamed when it is complete: a worker may look at any moment.
    half = folder / f"{_file_of(token)}.half"
    half.write_bytes(content)
    half.replace(folder / f"{_file_of(token)}.npz")


def open_split(folder: Path, token: str) -> SharedSplit:
    """A split in a folder.

    Raises:
        OSError: Its arrays cannot be seen from here.
        RunError: A seal is broken.
    """
    found = unpacked(folder / f"{_file_of(token)}.npz")
    told = json.loads(str(found["told"]))
    arrays = {name: _opened(*place) for name, place in told["arrays"].items()}
    for name, array in arrays.items():
        _check_seal(told["arrays"][name][0], told["seals"][name], array)
    samples = Samples(
        name=told["name"],
        source=told["source"],
        arrays=arrays,
        labels=found["labels"],
        digests=found["digests"],
        classes=None if told["classes"] is None else tuple(told["classes"]),
        steers=told["steers"],
        among=None if told["among"] is None else tuple(told["among"]),
    )
    function = None if told["function"] is None else tuple(told["function"])
    return SharedSplit(samples, told["batch_size"], told["cut"], function)


def _file_of(token: str) -> str:
    """A file name for a split, whatever it is called."""
    return f"split-{hashlib.blake2b(token.encode(), digest_size=8).hexdigest()}"


def _mapped(array: NDArray[Any]) -> tuple[str, int, str, list[int]] | None:
    """File, offset, dtype and shape of an array that is mapped as it lies in a file."""
    root: Any = array
    while isinstance(root, np.ndarray) and isinstance(root.base, np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or root.filename is None or not array.flags.c_contiguous:
        return None
    offset = root.offset + array.ctypes.data - root.ctypes.data
    return str(Path(root.filename).absolute()), offset, array.dtype.str, list(array.shape)


def _written(path: Path, array: NDArray[Any]) -> tuple[str, int, str, list[int]]:
    np.save(path, array, allow_pickle=False)
    mapped = _mapped(np.load(path, mmap_mode="r", allow_pickle=False))
    if mapped is None:  # nothing in it
        raise RunError(f"{path}: an array of shape {list(array.shape)} cannot be shared with workers")
    return mapped


def _opened(path: str, offset: int, dtype: str, shape: list[int]) -> NDArray[Any]:
    return np.memmap(path, dtype=np.dtype(dtype), mode="r", offset=offset, shape=tuple(shape))


def _digest_of(array: NDArray[Any]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, digest_size=16).hexdigest()


def _check_seal(path: str | Path, seal: str | None, array: NDArray[Any]) -> None:
    if seal is not None and (found := _digest_of(array)) != seal:
        raise RunError(
            f"{path}: its content is {found} here, and {seal} where the run is; every worker must see the same files "
            "under the same paths, as on a shared file system"
        )


def _dtype_of(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"no dtype: {name}")
    return found


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
