"""Stack: where a pool's columns lie while mixes are fused, and how they come to the device.

In float32 on the device (`Resident`); there as bf16 deltas of a float32 centre, in half the memory (`Deltas`); or in
float32 on the host, streamed for every mix (`Streamed`). All give float32 columns, piece by piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from mixopt.errors import PoolError
from mixopt.weights.memory import free_memory
from mixopt.weights.pool import Pool

AUTO = "auto"
FP32 = "fp32"
BF16 = "bf16"
# Of the device's free memory, what the columns may take; the rest is for the model, images and activations.
ROOM = 0.6
# Values converted or moved at a time: 32 MiB of float32, much beside a kernel launch and little beside a pool.
CHUNK = 2**23


class Stack(Protocol):
    """The columns of a pool, ``[n_columns, n_params]``.

    Attributes:
        mode: ``fp32`` or ``bf16``; fused weights depend on it, and on nothing else here beyond float32 rounding.
        place: ``device`` or ``host``.
    """

    mode: str
    place: str

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """All columns in float32 on the device, in order: ``(start, columns [n_columns, stop - start])``.

        A chunk holds until the next one is asked for.
        """

    def column(self, number: int, start: int, stop: int) -> Tensor:
        """A stretch of one column, its exact float32 values, on the device or on the host."""


class Resident:
    """In float32 on the device; on the CPU, the pool's own stack."""

    mode = FP32
    place = "device"

    def __init__(self, pool: Pool, device: torch.device) -> None:
        self._stack = pool.stack.to(device)

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """See `Stack`; one chunk."""
        yield 0, self._stack

    def column(self, number: int, start: int, stop: int) -> Tensor:
        """See `Stack`."""
        return self._stack[number, start:stop]


class Deltas:
    """On the device: a float32 centre and every column's bf16 difference from it.

    The centre is the base where there is one: ingredients were tuned from it and lie near it, and it is kept exactly.
    Else it is the columns' mean, which no other point beats in squared distance. A column is off by at most 1/256 of
    its own difference from the centre, whatever the centre's size, beside float32's rounding.

    Args:
        pool: The columns; its host stack gives the exact ones.
        device: Where centre and deltas lie.
        chunk: Values turned into float32 at a time.
    """

    mode = BF16
    place = "device"

    def __init__(self, pool: Pool, device: torch.device, chunk: int = CHUNK) -> None:
        self._exact = pool.stack
        base = None if pool.base is None else pool.columns.index(pool.base)
        centre = pool.stack.mean(dim=0) if base is None else pool.stack[base]
        self._centre = centre.to(device)
        self._deltas = torch.empty(pool.stack.shape, dtype=torch.bfloat16, device=device)
        for delta, column in zip(self._deltas, pool.stack, strict=True):
            delta.copy_(column.to(device) - self._centre)
        self._step = _step(pool, chunk)
        self._buffer = torch.empty(len(pool.columns) * self._step, device=device)

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """See `Stack`."""
        for start in range(0, len(self._centre), self._step):
            deltas = self._deltas[:, start : start + self._step]
            columns = _as(self._buffer, deltas)
            yield start, torch.add(self._centre[start : start + self._step], deltas, out=columns)

    def column(self, number: int, start: int, stop: int) -> Tensor:
        """See `Stack`; from the host."""
        return self._exact[number, start:stop]


class Streamed:
    """In float32 on the host; each chunk comes through one of two buffers while the other one is used.

    Args:
        pool: The columns.
        device: Where chunks are used.
        chunk: Values moved at a time.
    """

    mode = FP32
    place = "host"

    def __init__(self, pool: Pool, device: torch.device, chunk: int = CHUNK) -> None:
        self._stack = pool.stack
        self._step = _step(pool, chunk)
        self._slots = [_Slot(len(pool.columns) * self._step, device) for _ in range(2)]

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """See `Stack`."""
        parts = [self._stack[:, at : at + self._step] for at in range(0, self._stack.shape[1], self._step)]
        self._slots[0].load(parts[0])
        for number, part in enumerate(parts):
            # The work on the chunk before this one, whose slot is loaded now, has been queued: this one was asked for.
            if number + 1 < len(parts):
                self._slots[(number + 1) % 2].load(parts[number + 1])
            yield number * self._step, self._slots[number % 2].columns(part)

    def column(self, number: int, start: int, stop: int) -> Tensor:
        """See `Stack`."""
        return self._stack[number, start:stop]


class _Slot:
    """A buffer on the device; on a GPU, with a pinned one on the host that is copied from on a stream of its own."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._buffer = torch.empty(size, device=device)
        self._device = device
        if device.type == "cuda":
            self._pinned = torch.empty(size, pin_memory=True)
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def load(self, part: Tensor) -> None:
        """Start to copy columns ``[n_columns, k]`` in, once the work that is queued now is done."""
        if self._device.type == "cpu":
            _as(self._buffer, part).copy_(part)
            return
        self._copied.synchronize()  # what was copied before has left the pinned buffer
        pinned = _as(self._pinned, part).copy_(part)
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            _as(self._buffer, part).copy_(pinned, non_blocking=True)
            self._copied.record(self._side)

    def columns(self, part: Tensor) -> Tensor:
        """What was loaded last, for work queued from now on."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).wait_event(self._copied)
        return _as(self._buffer, part)


def open_stack(pool: Pool, device: torch.device, mode: str = AUTO) -> Resident | Deltas | Streamed:
    """The columns as ``--stack`` asks.

    ``auto`` takes fp32 where that fits, else bf16 where that does, else fp32 streamed from the host; ``fp32`` streams
    where it does not fit. On a CPU everything fits, as the pool's own stack serves.

    Raises:
        PoolError: bf16 is asked for and does not fit.
    """
    room = room_on(device)
    halved = pool.stack.nbytes // 2 + pool.stack[0].nbytes
    if mode != BF16 and pool.stack.nbytes <= room:
        return Resident(pool, device)
    if mode != FP32 and halved <= room:
        return Deltas(pool, device)
    if mode == BF16:
        raise PoolError(
            f"--stack bf16: needs {halved / 1e9:.1f} GB on {device}, expected at most {room / 1e9:.1f} GB "
            f"({ROOM:.0%} of its free memory); use --stack fp32, which streams from the host, or fewer --ingredients"
        )
    return Streamed(pool, device)


def describe(stack: Stack, asked: str, device: torch.device) -> str:
    """How the columns lie, in words; nothing where that is the pool's own float32 stack."""
    kept = f"stack: {asked}, checkpoints in {stack.mode} on the {stack.place}"
    if stack.mode == BF16:
        return f"{kept}: candidates are fused from bf16 differences"
    if stack.place == "host":
        return f"{kept}, streamed to {device} for every candidate"
    return "" if device.type == "cpu" else kept


def room_on(device: torch.device) -> float:
    """Bytes that the columns may take on a GPU; without bound on a CPU, which holds the pool already."""
    return ROOM * free_memory(device) if device.type == "cuda" else math.inf


def _step(pool: Pool, chunk: int) -> int:
    """How many parameters of every column make a chunk of so many values."""
    return min(max(1, chunk // len(pool.columns)), pool.stack.shape[1])


def _as(buffer: Tensor, part: Tensor) -> Tensor:
    """The beginning of a flat buffer in the shape of a part."""
    return buffer[: part.numel()].view(part.shape)
