"""Samples on their way to the device: resident where they fit, else streamed through two pinned buffers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt.values.samples import LENGTH
from mixopt.weights.memory import free_memory

# Of a GPU's free memory, what the samples of one split may take for good.
SHARE = 0.4

Arrays = Mapping[str, NDArray[Any]]
Batch = dict[str, Tensor]


class Feed:
    """The arrays of samples, on the device.

    On a CPU they are read from the memory-mapped copy. On a GPU they stay in its memory where they take no more than
    `SHARE` of what is free; else a batch is copied into one of two sets of pinned buffers, and from there to the GPU
    beside the forward pass of the batch before it.

    Args:
        arrays: Name to ``[n, ...]``, memory-mapped, as in `mixopt.Samples`.
        device: Where they are wanted.
        streamed: Whether they go through the buffers; by default as said above.
    """

    def __init__(self, arrays: Arrays, device: torch.device, *, streamed: bool | None = None) -> None:
        self._arrays = dict(arrays)
        self._device = device
        # Here, and not where the arrays may be: a length is needed before anything is computed.
        self._lengths = {name: np.array(arrays[name + LENGTH]) for name in arrays if name + LENGTH in arrays}
        on_gpu = device.type == "cuda"
        if streamed is None:
            size = sum(array.nbytes for array in arrays.values())
            streamed = on_gpu and size > SHARE * free_memory(device)
        self.streamed = streamed
        self._resident = self._copies(slice(None)) if on_gpu and not streamed else None
        self._side = torch.cuda.Stream(device) if on_gpu and streamed else None  # type: ignore[no-untyped-call]
        self._buffers: list[Batch] = []
        self._room = 0
        # After the copy from each buffer; nothing before the first.
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0
        self._next: tuple[slice | NDArray[np.int64], Batch] | None = None

    def take(self, samples: slice | NDArray[np.int64]) -> Batch:
        """Name to ``[b, ...]`` on the device, padded to the longest of these samples."""
        batch = self.whole(samples)
        for name, lengths in self._lengths.items():
            # Never to nothing, which few models can take.
            batch[name] = batch[name][:, : max(1, int(lengths[samples].max(initial=0)))]
        return batch

    def whole(self, samples: slice | NDArray[np.int64]) -> Batch:
        """As `take`, padded to the longest of all samples, so that every batch has one shape."""
        if self._resident is not None:
            return {name: tensor[samples] for name, tensor in self._resident.items()}
        if not self.streamed:
            return self._copies(samples)
        announced, self._next = self._next, None
        batch = announced[1] if announced is not None and _same(announced[0], samples) else self._bring(samples)
        if self._side is not None:
            here = torch.cuda.current_stream(self._device)
            here.wait_stream(self._side)
            for tensor in batch.values():
                tensor.record_stream(here)
        return batch

    def ahead(self, samples: slice | NDArray[np.int64]) -> None:
        """Begin to bring the samples that are wanted next; nothing where they need not travel."""
        if self.streamed:
            self._next = (samples, self._bring(samples))

    def _copies(self, samples: slice | NDArray[np.int64]) -> Batch:
        return {
            name: torch.from_numpy(np.array(array[samples])).to(self._device) for name, array in self._arrays.items()
        }

    def _bring(self, samples: slice | NDArray[np.int64]) -> Batch:
        self._turn = 1 - self._turn
        sources = {name: array[samples] for name, array in self._arrays.items()}
        batch = {}
        for name, host in self._free_buffers(max(map(len, sources.values()))).items():
            host.numpy()[:] = sources[name]
            with self._beside():
                batch[name] = torch.empty(host.shape, dtype=host.dtype, device=self._device)
                batch[name].copy_(host, non_blocking=True)
        if self._side is not None:
            self._copied[self._turn] = self._side.record_event()
        return batch

    def _free_buffers(self, count: int) -> Batch:
        """The buffers whose turn it is, free to be written."""
        if self._room < count:
            if self._side is not None:
                self._side.synchronize()
            self._buffers = [{name: self._buffer(array, count) for name, array in self._arrays.items()} for _ in "ab"]
            self._room = count
        if (copied := self._copied[self._turn]) is not None:
            copied.synchronize()
        return {name: buffer[:count] for name, buffer in self._buffers[self._turn].items()}

    def _buffer(self, array: NDArray[Any], count: int) -> Tensor:
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        return torch.empty((count, *array.shape[1:]), dtype=dtype, pin_memory=self._side is not None)

    def _beside(self) -> AbstractContextManager[object]:
        return nullcontext() if self._side is None else torch.cuda.stream(self._side)


def _same(first: slice | NDArray[np.int64], second: slice | NDArray[np.int64]) -> bool:
    """Whether both are the same samples in the same order."""
    if isinstance(first, slice) or isinstance(second, slice):
        return isinstance(first, slice) and isinstance(second, slice) and first == second
    return np.array_equal(first, second)
