"""Where models run, and on how many threads."""

from __future__ import annotations

import joblib
import torch

from mixopt.errors import SpecError


def resolve_device(name: str) -> torch.device:
    """The torch device; ``auto`` takes a CUDA GPU where there is one.

    Raises:
        SpecError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SpecError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise SpecError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SpecError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def limit_threads(device: torch.device) -> None:
    """On a CPU, lower torch's threads to the cores that this process may use: its affinity and its container's quota.

    Threads beyond those wait for each other. The number is never raised, so that ``OMP_NUM_THREADS``,
    ``torch.set_num_threads`` and joblib's share of the cores per worker hold. It is one number per process, and stays.
    """
    if device.type == "cpu" and torch.get_num_threads() > joblib.cpu_count():
        torch.set_num_threads(joblib.cpu_count())
