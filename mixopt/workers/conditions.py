"""Conditions: what a worker on another machine must have, so that it finds the last bits that the run would."""

from __future__ import annotations

import platform
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mixopt.memory import gigabytes

# Distributions that compute, by the module that says whether a process uses them.
_COMPUTE = {
    "mixopt": "mixopt",
    "torch": "torch",
    "numpy": "numpy",
    "open_clip": "open_clip_torch",
    "timm": "timm",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "peft": "peft",
}
# Bytes that Python, torch and a family's libraries take in a process.
LIBRARIES = 700_000_000
MIXED = "--mixed-devices"


@dataclass(frozen=True)
class Facts:
    """What scores depend on beside the run's own content.

    Attributes:
        versions: Of what computes and has been imported, by distribution, and Python's own.
        kind: What kind of device runs the models: two of one kind give the same bits.
    """

    versions: Mapping[str, str]
    kind: str


def facts_of(device: torch.device) -> Facts:
    """Those of this process."""
    versions = {"python": platform.python_version().rpartition(".")[0]}
    for module, distribution in _COMPUTE.items():
        if module in sys.modules:
            try:
                versions[distribution] = version(distribution)
            except PackageNotFoundError:  # used from its sources
                versions[distribution] = "not installed"
    return Facts(versions, _kind_of(device))


def unlike(there: Facts, here: Facts, kinds: Collection[str] | None) -> str | None:
    """Why a worker would find other bits; None where it would not.

    Args:
        there: The worker's.
        here: The run's own.
        kinds: The kinds of device that may compute; None for any.
    """
    # What only one of them has imported is not needed to open the pool, which both have done.
    for name, wanted in here.versions.items():
        if (found := there.versions.get(name, wanted)) != wanted:
            return f"it has {name} {found}, where the run has {wanted}: start it in the same environment"
    if kinds is not None and there.kind not in kinds:
        return (
            f"it computes on {there.kind}, where the run has {', '.join(sorted(kinds))}: scores differ in their last "
            f"bits; take workers of one kind, or allow it with {MIXED}"
        )
    return None


def unfit(threads: int, limit: int, needed: int) -> str | None:
    """Why a worker cannot do the work, by what its scheduler knows; None where it can.

    Args:
        threads: How many jobs it does at once.
        limit: Bytes that it may use; 0 for any number.
        needed: Bytes that it will.
    """
    if threads != 1:
        return f"it has {threads} threads, each of which would be given a part: start it with --nthreads 1"
    if 0 < limit < needed:
        return (
            f"it may use {gigabytes(limit)}, and needs about {gigabytes(needed)}, mapped files among them: start it "
            "with a higher --memory-limit, or with 0 for none"
        )
    return None


def _kind_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})"


def _processor() -> str:
    """The processor's name, which Linux tells in a file, and others do by Python."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
