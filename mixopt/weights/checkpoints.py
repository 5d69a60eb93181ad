"""Checkpoint files to state dicts and back; the only module that reads or writes weights.

Nothing here runs code from a file: safetensors holds none, and pickles are opened with
``torch.load(weights_only=True)`` and torch's own allow-list, or refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixopt.errors import CheckpointError, unknown
from mixopt.files import atomic_write, natural_key

INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
PREFIXES = ("module.", "_orig_mod.")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}

# Elements handled at a time by a scan: they stay in a core's cache, and torch starts threads of its own from 2**15 on.
_CHUNK = 2**15 - 2**6
_SAMPLE = 512

# Names of the safetensors format, https://github.com/huggingface/safetensors#format
_FORMAT_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Checkpoint:
    """One opened checkpoint.

    Attributes:
        path: Where it came from.
        tensors: Name to tensor, on the CPU, without aliases. May be backed by the file: do not write to them.
        tied: Alias to the name in ``tensors`` that it shares its memory with.
        metadata: Text stored beside the tensors.
        ignored: Entries of the state dict that are not tensors.
        mapped: Whether the tensors lie in the file and are read when used, so that opening it cost next to nothing.
    """

    path: Path
    tensors: dict[str, Tensor]
    tied: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    mapped: bool = False


@dataclass(frozen=True)
class Scan:
    """What one pass over a tensor's bytes found.

    Attributes:
        hash: SHA-256 of its dtype, shape and bytes, as hex.
        holds_nan: Whether a value is NaN.
        holds_infinity: Whether a value is infinite and none is NaN.
    """

    hash: str
    holds_nan: bool
    holds_infinity: bool


def find(directory: Path, patterns: Sequence[str] = ()) -> list[Path]:
    """Checkpoint files of a directory in natural name order.

    Args:
        directory: The folder to look in.
        patterns: Globs relative to it; without any, every checkpoint file at its top. The parts of a sharded
            checkpoint count once, through their index.

    Raises:
        CheckpointError: The directory is missing, or a pattern is not one.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; --models takes the folder with the checkpoints")
    if wrong := [pattern for pattern in patterns if not pattern or Path(pattern).is_absolute()]:
        raise CheckpointError(f"{directory}: expected patterns relative to this folder, got {wrong[0]!r}")
    found = {path for pattern in patterns or ("*",) for path in directory.glob(pattern) if _is_checkpoint(path)}
    shards = {path.parent / name for path in found if is_index(path) for name in _shard_names(path)}
    # An index that a pattern missed still claims its parts.
    for index in directory.rglob(f"*{INDEX_SUFFIX}"):
        parts = {index.parent / name for name in _shard_names(index)}
        if parts & found:
            found.add(index)
            shards |= parts
    return sorted(found - shards, key=lambda path: natural_key(path.relative_to(directory).as_posix()))


def names_of(paths: Sequence[Path], directory: Path) -> list[str]:
    """A name for each checkpoint: its file name without suffix, or its path where two would be alike."""
    stems = [_stem(path.name) for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [(path.relative_to(directory) if path.is_relative_to(directory) else path).as_posix() for path in paths]


def is_index(path: Path) -> bool:
    """Whether a file is the index of a sharded safetensors checkpoint."""
    return path.name.endswith(INDEX_SUFFIX)


def read(path: Path) -> Checkpoint:
    """Open one checkpoint.

    Args:
        path: ``.safetensors``, its ``.safetensors.index.json``, or a ``.pt``, ``.pth`` or ``.bin`` pickle of
            tensors. Common wrappers (``state_dict``, ``model``, ...) and prefixes (``module.``) are removed.

    Raises:
        CheckpointError: Missing, empty, truncated, of an unknown kind, or a pickle that would need to run code.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty (0 bytes); copy it again from where it was trained")
    if is_index(path):
        return _without_prefixes(_read_sharded(path))
    if path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        tied = {alias: name for alias, name in metadata.items() if name in tensors and alias not in tensors}
        metadata = {key: text for key, text in metadata.items() if key not in tied}
        return _without_prefixes(Checkpoint(path, tensors, tied, metadata, mapped=True))
    if path.suffix in PICKLE_SUFFIXES:
        return _without_prefixes(_read_pickle(path))
    raise CheckpointError(f"{path}: expected a checkpoint ({', '.join(SUFFIXES)} or *{INDEX_SUFFIX})")


def metadata_of(path: Path) -> dict[str, str]:
    """The text stored in a safetensors file, without reading its tensors; empty for other kinds."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({error}); copy it again") from error


def write(path: Path, tensors: Mapping[str, Tensor], *, tied: Mapping[str, str], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with a canonical header: the same tensors give the same bytes, anywhere.

    safetensors' own writer keeps its metadata in a hash map, whose order differs from run to run; so the header
    is written here, by the format's description, and the data streams after it.

    Args:
        path: The target; appears whole or not at all.
        tensors: Name to CPU tensor, each stored once.
        tied: Alias to stored name, kept as safetensors' ``save_model`` does, in the metadata.
        metadata: More text for the header.

    Raises:
        CheckpointError: A dtype that the format does not know.
        RunError: The file cannot be written.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata, **tied}}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _FORMAT_NAMES:
            raise CheckpointError(f"{path}: tensor {name} has dtype {tensor.dtype}, which cannot be saved")
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _FORMAT_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    header = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    header += b" " * (-len(header) % 8)
    with atomic_write(path) as stream:
        stream.write(struct.pack("<Q", len(header)))
        stream.write(header)
        for name in order:
            stream.write(_bytes_of(tensors[name]))


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes, as hex."""
    digest = _started_hash(tensor)
    digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def scan(tensor: Tensor, into: Tensor | None = None) -> Scan:
    """Hash a tensor, look for NaN and infinities, and copy it, while its bytes pass through the cache once.

    Releases Python's lock for nearly all of its time and starts no threads, so several run side by side.

    Args:
        tensor: On the CPU.
        into: One-dimensional float32 of as many elements, filled with the tensor's values; None copies nothing.
    """
    digest = _started_hash(tensor)
    flat = tensor.detach().contiguous().reshape(-1)
    quick = tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    summed = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    suspect = tensor.is_floating_point() and not quick
    parts = _chunks(flat)
    for part, place in zip(parts, [None] * len(parts) if into is None else _chunks(into), strict=True):
        digest.update(_bytes_of(part))
        if place is not None:
            place.copy_(part)
        if quick and not suspect:
            # A sum is finite only where every term is; one that overflows is settled below.
            values = part if place is None or summed == torch.float64 else place
            suspect = not math.isfinite(values.sum(dtype=summed).item())
    suspect = suspect and not bool(torch.isfinite(flat).all())
    broken = suspect and bool(torch.isnan(flat).any())
    return Scan(digest.hexdigest(), broken, suspect and not broken)


def copy(tensor: Tensor, into: Tensor) -> None:
    """Copy a tensor's values into one dimension, without threads of torch's own."""
    flat = tensor.detach().reshape(-1)
    for part, place in zip(_chunks(flat), _chunks(into), strict=True):
        place.copy_(part)


def sample(tensor: Tensor) -> bytes:
    """A few bytes from a tensor's middle: where they differ, the tensors do."""
    flat = tensor.detach().reshape(-1)
    middle = flat.numel() // 2
    return bytes(_bytes_of(flat[middle : middle + _SAMPLE]))


def content_hash(hashes: Mapping[str, str]) -> str:
    """One SHA-256 for a whole state dict from its tensors' hashes; independent of order and file format."""
    digest = hashlib.sha256()
    for name in sorted(hashes):
        digest.update(f"{name}={hashes[name]}\n".encode())
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name to hash for every tensor of a state dict."""
    return {name: tensor_hash(tensor) for name, tensor in tensors.items()}


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype of a name such as ``fp16``.

    Raises:
        CheckpointError: No such dtype.
    """
    if name not in DTYPES:
        raise CheckpointError(unknown("dtype", name, DTYPES))
    return DTYPES[name]


def _is_checkpoint(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and (path.suffix in SUFFIXES or is_index(path))


def _stem(name: str) -> str:
    return name.removesuffix(INDEX_SUFFIX) if name.endswith(INDEX_SUFFIX) else name.rpartition(".")[0]


def _chunks(flat: Tensor) -> Sequence[Tensor]:
    return torch.split(flat, _CHUNK)


def _started_hash(tensor: Tensor) -> hashlib._Hash:
    return hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]  # an array is a buffer; numpy's stubs say so from 3.12 on


def _shard_names(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        return sorted(set(weight_map.values()), key=natural_key)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of a sharded checkpoint: no 'weight_map' ({error})") from error


def _read_sharded(index: Path) -> Checkpoint:
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name in _shard_names(index):
        part = index.parent / name
        if not part.is_file():
            raise CheckpointError(f"{index}: its part {name} is missing")
        some, texts = _read_safetensors(part)
        tensors |= some
        metadata |= texts
    promised = set(json.loads(index.read_text())["weight_map"])
    if absent := sorted(promised - set(tensors)):
        raise CheckpointError(f"{index}: its parts lack {len(absent)} of the tensors it lists, such as {absent[0]}")
    return Checkpoint(index, tensors, {}, metadata, mapped=True)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: damaged or truncated safetensors file ({error}); copy it again from where it was trained"
        ) from error


def _read_pickle(path: Path) -> Checkpoint:
    loaded, mapped = _load_pickle(path)
    state, ignored = _unwrap(path, loaded)
    names_by_memory: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        memory = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
        )
        first = names_by_memory.setdefault(memory, name)
        if first != name and tensor.numel() > 0:
            tied[name] = first
        else:
            tensors[name] = tensor.detach()
    return Checkpoint(path, tensors, tied, {}, ignored, mapped)


def _load_pickle(path: Path) -> tuple[Any, bool]:
    """What a pickle holds, and whether its tensors are mapped rather than read."""
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch explains protocols of pickles; the error below says what matters
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True), True
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                # The format before zip files cannot be mapped.
                return torch.load(path, map_location="cpu", weights_only=True), False
    except (OSError, MemoryError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({_reason(error)}); check its permissions, the disk and the free memory"
        ) from error
    except Exception as error:  # damaged bytes can make the reader fail in any way; told here, never passed over
        if not isinstance(error, pickle.UnpicklingError) or "Unsupported operand" in str(error):
            raise CheckpointError(
                f"{path}: damaged or truncated checkpoint ({_reason(error)}); copy it again from where it was trained"
            ) from error
        raise CheckpointError(
            f"{path}: this pickle holds more than tensors ({_reason(error)}); opening it could run code, so it was "
            "not opened. If you trust where it came from, convert it there: "
            f"m = torch.load({path.name!r}, weights_only=False); torch.save(m.state_dict(), 'converted.pt') where it "
            "is a module, or torch.save(m['state_dict'], 'converted.pt') where it is a dictionary with one inside"
        ) from error


def _numpy_scalars() -> list[Any]:
    """What torch must allow for a NumPy number beside the weights (a best score), as NumPy 2 and 1 pickle it."""
    scalar: Any = np.float64(0).__reduce__()[0]

    def old(*arguments: Any) -> Any:
        return scalar(*arguments)

    old.__module__ = "numpy.core.multiarray"
    old.__name__ = old.__qualname__ = "scalar"
    return [scalar, old, np.dtype, *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "b1"))]


def _reason(error: Exception) -> str:
    """The telling line of torch's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if "GLOBAL" in line or "Unsupported" in line:
            return line[:160]
    return lines[0][:160] if lines else type(error).__name__


def _unwrap(path: Path, loaded: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    state = loaded
    for _ in range(3):
        inner = [state[key] for key in WRAPPERS if isinstance(state, Mapping) and isinstance(state.get(key), Mapping)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: expected a state dict (name to tensor), found a {type(state).__name__}")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    ignored = tuple(str(name) for name, value in state.items() if not isinstance(value, Tensor))
    if not tensors:
        found = ", ".join(map(str, list(state)[:5])) or "nothing"
        raise CheckpointError(f"{path}: no tensors found in it; its entries are {found}")
    if odd := [name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized]:
        raise CheckpointError(f"{path}: {odd[0]} is sparse or quantized; only dense tensors can be mixed")
    return tensors, ignored


def _without_prefixes(opened: Checkpoint) -> Checkpoint:
    """Names as the bare module has them, where every name starts with a wrapper's prefix."""
    tensors, tied = opened.tensors, opened.tied
    while prefix := next((one for one in PREFIXES if tensors and all(name.startswith(one) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        tied = {alias.removeprefix(prefix): name.removeprefix(prefix) for alias, name in tied.items()}
    return replace(opened, tensors=tensors, tied=tied)
