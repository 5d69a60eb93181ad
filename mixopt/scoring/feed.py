"""Images on their way to the device: resident where they fit, else streamed through two pinned buffers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt.weights.memory import free_memory

# Of a GPU's free memory, what the images of one split may take for good.
SHARE = 0.4


class Feed:
    """Decoded images by sample, on the device.

    On a CPU they are read from the memory-mapped copy. On a GPU they stay in its memory where they take no more than
    `SHARE` of what is free; else a batch is copied into one of two pinned buffers, and from there to the GPU beside
    the forward pass of the batch before it.

    Args:
        images: ``[n, height, width, 3]`` uint8, memory-mapped.
        device: Where they are wanted.
        streamed: Whether they go through the buffers; by default as said above.
    """

    def __init__(self, images: NDArray[np.uint8], device: torch.device, *, streamed: bool | None = None) -> None:
        self._images = images
        self._device = device
        on_gpu = device.type == "cuda"
        if streamed is None:
            streamed = on_gpu and images.nbytes > SHARE * free_memory(device)
        self.streamed = streamed
        self._resident = torch.from_numpy(np.array(images)).to(device) if on_gpu and not streamed else None
        self._side = torch.cuda.Stream(device) if on_gpu and streamed else None  # type: ignore[no-untyped-call]
        self._buffers: list[Tensor] = []
        # After the copy from each buffer; nothing before the first.
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0
        self._next: tuple[slice, Tensor] | None = None

    def take(self, samples: slice | NDArray[np.int64]) -> Tensor:
        """Images ``[b, height, width, 3]`` uint8 on the device."""
        if self._resident is not None:
            return self._resident[samples]
        if not self.streamed or not isinstance(samples, slice):
            return torch.from_numpy(np.array(self._images[samples])).to(self._device)
        announced, self._next = self._next, None
        images = announced[1] if announced is not None and announced[0] == samples else self._bring(samples)
        if self._side is not None:
            here = torch.cuda.current_stream(self._device)
            here.wait_stream(self._side)
            images.record_stream(here)
        return images

    def ahead(self, samples: slice) -> None:
        """Begin to bring the samples that `take` will be asked for next; nothing where they need not travel."""
        if self.streamed:
            self._next = (samples, self._bring(samples))

    def _bring(self, samples: slice) -> Tensor:
        source = self._images[samples]
        self._turn = 1 - self._turn
        host = self._buffer(len(source))
        host.numpy()[:] = source
        with self._beside():
            images = torch.empty(host.shape, dtype=torch.uint8, device=self._device)
            images.copy_(host, non_blocking=True)
        if self._side is not None:
            self._copied[self._turn] = self._side.record_event()
        return images

    def _buffer(self, count: int) -> Tensor:
        """The buffer whose turn it is, free to be written."""
        if not self._buffers or len(self._buffers[0]) < count:
            shape = (count, *self._images.shape[1:])
            if self._side is not None:
                self._side.synchronize()
            self._buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=self._side is not None) for _ in range(2)]
        if (copied := self._copied[self._turn]) is not None:
            copied.synchronize()
        return self._buffers[self._turn][:count]

    def _beside(self) -> AbstractContextManager[object]:
        return nullcontext() if self._side is None else torch.cuda.stream(self._side)
