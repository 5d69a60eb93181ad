"""Hashes of tensors, and what else one pass over their bytes finds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements handled at a time by a scan: they stay in a core's cache, and torch starts threads of its own from 2**15 on.
_CHUNK = 2**15 - 2**6
_SAMPLE = 512


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


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes, as hex."""
    digest = _started_hash(tensor)
    digest.update(bytes_of(tensor))
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name to hash for every tensor of a state dict."""
    return {name: tensor_hash(tensor) for name, tensor in tensors.items()}


def content_hash(hashes: Mapping[str, str]) -> str:
    """One SHA-256 for a whole state dict from its tensors' hashes; independent of order and file format."""
    digest = hashlib.sha256()
    for name in sorted(hashes):
        digest.update(f"{name}={hashes[name]}\n".encode())
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
        digest.update(bytes_of(part))
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


def value_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's shape and values, as hex: the same where values are, whatever the dtypes.

    Of floating-point tensors and of integers; the two kinds have different hashes.
    """
    wide = _wide(tensor)
    digest = hashlib.sha256(f"{wide}{list(tensor.shape)}".encode())
    for part in _chunks(tensor.detach().reshape(-1)):
        digest.update(bytes_of(part.to(wide)))
    return digest.hexdigest()


def sample(tensor: Tensor) -> bytes:
    """A few values from a tensor's middle, as bytes: where they differ, the tensors do, whatever their dtypes."""
    flat = tensor.detach().reshape(-1)
    middle = flat.numel() // 2
    return bytes(bytes_of(flat[middle : middle + _SAMPLE].to(_wide(tensor))))


def _wide(tensor: Tensor) -> torch.dtype:
    """A dtype that holds every value of a tensor's kind."""
    if tensor.is_complex():
        return torch.complex128
    return torch.float64 if tensor.is_floating_point() else torch.int64


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor, in row-major order."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]  # an array is a buffer; numpy's stubs say so from 3.12 on


def _chunks(flat: Tensor) -> Sequence[Tensor]:
    return torch.split(flat, _CHUNK)


def _started_hash(tensor: Tensor) -> hashlib._Hash:
    return hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
