"""The precision of forward passes, chosen by measurement: fp32, or a lower one that is faster and as good."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from mixopt.errors import DataError, ScoreError
from mixopt.files import write_json
from mixopt.listener import Listener
from mixopt.scoring.evaluator import FP32, Evaluator, Predict
from mixopt.untrusted import reason_of, refusing
from mixopt.untrusted.texts import check_checksum, read_json, with_checksum
from mixopt.untrusted.values import validated
from mixopt.values.samples import VALIDATION

AUTO = "auto"
FASTER = 1.2
DIFFERING = 0.002
IMAGES = 2000
# Where all images pass in less, there is nothing to gain, and the clock is too coarse to compare by.
WORTHWHILE = 0.1
ROUNDS = 3

_CPU_INFO = Path("/proc/cpuinfo")
# Processors that multiply in these dtypes, as Linux names the instructions on x86 and on ARM.
_CPU_FLAGS = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"}}


@dataclass(frozen=True)
class Measured:
    """What was measured, and what follows.

    Attributes:
        precision: The one to use.
        images_per_second: Precision to speed.
        differing: Precision to the share of predictions that are not those of fp32; only of those fast enough.
        failed: Precision to the reason why it cannot be used.
        images: How many images were compared.
    """

    precision: str
    images_per_second: dict[str, float]
    differing: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    images: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, for a report."""
        return {
            "mode": self.precision,
            "images_per_second": {name: round(speed, 1) for name, speed in self.images_per_second.items()},
            "differing": self.differing,
            **({"failed": self.failed} if self.failed else {}),
            "images": self.images,
        }

    def __str__(self) -> str:
        return "; ".join(
            [
                *(
                    f"{name} {speed:,.0f} images/s{self._compared(name)}"
                    for name, speed in self.images_per_second.items()
                ),
                *(f"{name} cannot be used ({why})" for name, why in self.failed.items()),
            ]
        )

    def _compared(self, name: str) -> str:
        if name not in self.differing:
            return "" if name == FP32 or name in self.failed else f" (less than {FASTER:g} times fp32)"
        return f" ({100 * self.differing[name]:.2f} % of {self.images:,} predictions differ from fp32)"


class _Kept(BaseModel):
    """What is kept of it, as `Measured.as_dict` has it."""

    model_config = ConfigDict(extra="forbid")

    key: str
    mode: Literal["fp32", "bf16", "fp16"]
    images_per_second: dict[str, float]
    differing: dict[str, float]
    failed: dict[str, str] = {}
    images: int
    checksum: str


@dataclass(frozen=True)
class Precision:
    """The precision of forward passes, as it was chosen.

    Attributes:
        mode: ``fp32``, ``bf16`` or ``fp16``.
        measured: What was measured, where the choice was left to mixopt and there was one.
    """

    mode: str
    measured: Measured | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, for a report."""
        return {"mode": self.mode} if self.measured is None else self.measured.as_dict()


def choose_precision(
    asked: str,
    evaluator: Evaluator,
    soup: Callable[[], Predict],
    model: Mapping[str, Any],
    cache: Path,
    listener: Listener,
) -> Precision:
    """The precision that is asked for, or with ``auto`` the one that measurement on the uniform soup chooses.

    Measured once for a model on a machine: another measurement might decide otherwise, and share no cached score.

    Args:
        asked: ``auto``, or a precision.
        evaluator: Of the validation split.
        soup: Fuses the uniform soup, and gives its predictor.
        model: What the model is, as plain JSON values.
        cache: Where measurements are kept.
        listener: Told what was chosen.
    """
    if asked != AUTO:
        if asked != FP32:
            listener.info(f"forward passes in {asked} (precision: {asked})")
        return Precision(asked)
    candidates = low_precisions(evaluator.device)
    if not candidates:
        listener.info(f"precision: auto, fp32 (on this {evaluator.device.type.upper()} nothing lower is fast)")
        return Precision(FP32)
    machine = [model, evaluator.batch_size, device_name(evaluator.device), torch.get_num_threads(), torch.__version__]
    kept = cache / "precision" / f"{hashlib.sha256(json.dumps(machine).encode()).hexdigest()}.json"
    found = read_measured(kept, listener) if kept.exists() else None
    if found is None:
        found = measure(soup(), evaluator, candidates, listener.progress)
        if found.images:
            write_json(kept, with_checksum({"key": kept.stem, **found.as_dict()}), cache=cache)
    listener.info(f"precision: auto, {found.precision}, by the uniform soup on {VALIDATION}: {found}")
    return Precision(found.precision, found)


def read_measured(path: Path, listener: Listener) -> Measured | None:
    """What was measured before; None where its file is damaged, which the listener is told."""
    try:
        values = read_json(path, ScoreError)
        with refusing(ScoreError, str(path), found="no measurement of speeds", cure="remove it"):
            check_checksum(values)
            kept = validated(_Kept, values)
            if kept.key != path.stem:
                raise ValueError("of another model or machine")
            return Measured(kept.mode, kept.images_per_second, kept.differing, kept.failed, kept.images)
    except ScoreError as error:
        listener.warn(f"{error}. Measured again")
        return None


def device_name(device: torch.device) -> str:
    """The processor's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_info("model name") or platform.processor()


def low_precisions(device: torch.device) -> tuple[str, ...]:
    """The precisions below fp32 that a device computes in by itself."""
    if device.type == "cuda":
        found = {"bf16": torch.cuda.get_device_capability(device) >= (8, 0)}
        found["fp16"] = torch.cuda.get_device_capability(device) >= (7, 0)
    else:
        flags = set((_cpu_info("flags") or _cpu_info("Features")).split())
        found = {name: bool(flags & wanted) for name, wanted in _CPU_FLAGS.items()}
    return tuple(name for name, is_fit in found.items() if is_fit)


def measure(
    predict: Predict,
    evaluator: Evaluator,
    candidates: tuple[str, ...],
    progress: Callable[[str, int, int], None],
) -> Measured:
    """Time one batch in fp32 and in every candidate; compare the predictions of those that are clearly faster.

    Taken is the fastest that is at least `FASTER` times as fast as fp32, and whose predictions on up to `IMAGES` of the
    first samples differ from those of fp32 for at most the share `DIFFERING`, with finite losses; fp32 where none is.

    Args:
        predict: Of a model with weights as they will be.
        evaluator: Of the validation split.
        candidates: From `low_precisions`.
        progress: ``(what, done, total)``.

    Raises:
        MixoptError: The model cannot be run in fp32.
    """
    images = min(IMAGES, len(evaluator.split))
    batch = min(evaluator.batch_size, len(evaluator.split))
    seconds = {FP32: min(_seconds(predict, evaluator, FP32, batch) for _ in range(2))}
    if seconds[FP32] * len(evaluator.split) / batch < WORTHWHILE:
        return Measured(FP32, {FP32: batch / seconds[FP32]})
    failed: dict[str, str] = {}
    for name in candidates:
        try:
            _seconds(predict, evaluator, name, batch)  # the first pass prepares more than it computes
        except (DataError, RuntimeError, TypeError) as error:  # the model does what this dtype cannot
            failed[name] = reason_of(error.__cause__ or error)
    # In turns, so that what else the machine does meets all alike.
    for _ in range(ROUNDS if len(failed) < len(candidates) else 0):
        for name in (FP32, *(name for name in candidates if name not in failed)):
            seconds[name] = min(_seconds(predict, evaluator, name, batch), seconds.get(name, math.inf))
    speeds = {name: batch / each for name, each in seconds.items()}
    fast = sorted(
        (name for name in candidates if speeds.get(name, 0.0) >= FASTER * speeds[FP32]), key=lambda name: -speeds[name]
    )
    differing: dict[str, float] = {}
    chosen = FP32
    if fast:
        done, total = 0, images * (1 + len(fast))

        def on_batch(count: int) -> None:
            nonlocal done
            done += count
            progress("comparing precisions", done, total)

        exact = evaluator.at(FP32).run(predict, 0, images, on_batch=on_batch)
        for name in fast:
            found = evaluator.at(name).run(predict, 0, images, on_batch=on_batch)
            differing[name] = float(np.mean(found.predicted != exact.predicted))
            if not np.all(np.isfinite(found.losses)):
                failed[name] = "losses that are not finite"
            elif differing[name] <= DIFFERING:
                chosen = name
                break
        progress("comparing precisions", total, total)
    return Measured(chosen, speeds, differing, failed, images if fast else 0)


def _seconds(predict: Predict, evaluator: Evaluator, precision: str, batch: int) -> float:
    # On a CPU this process's own work is timed: what else runs there would look like a slow precision.
    on_cpu = evaluator.device.type == "cpu"
    clock, threads = (time.process_time, torch.get_num_threads()) if on_cpu else (time.perf_counter, 1)
    started = clock()
    evaluator.at(precision).run(predict, 0, batch)  # its outcomes are on the CPU: nothing is still under way
    return (clock() - started) / threads


def _cpu_info(field: str) -> str:
    """What Linux says of the first core, or nothing."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
