"""Time to open a pool against a plain read of its files, the old two passes and a peer's way, in one run.

    python benchmarks/opening.py [--ingredients 16] [--megabytes 100] [--frozen 0.25] [--dtype fp32] [--cold]

Makes a base and random fine-tuned checkpoints in a temporary folder (no accuracy is claimed from those). The floor is
a sequential ``read`` of every file, one after the other, from the page cache unless ``--cold`` drops the files from it
before each measurement. The peer loads every file into a dictionary and stacks name by name; it checks and hashes
nothing. The old way checks and hashes file by file, then reads all again for the stack, on one thread. A row is the
median of its repeats, which take turns. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import joblib
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixopt.weights import checkpoints
from mixopt.weights.memory import peak_memory
from mixopt.weights.pool import open_pool

BLOCK = 2**23


def write_pool(folder: Path, ingredients: int, megabytes: int, frozen: float, dtype: torch.dtype) -> list[Path]:
    """A base and its ingredients, with a transformer's spread of sizes; the first tensors are the same in all."""
    generator = torch.Generator().manual_seed(0)
    wanted = megabytes * 10**6 // dtype.itemsize
    width = 768
    base: dict[str, Tensor] = {}
    block = 0
    while (left := wanted - sum(tensor.numel() for tensor in base.values())) > 0:
        for name, shape in {"in": (3 * width, width), "out": (width, width), "up": (4 * width, width)}.items():
            base[f"blocks.{block}.{name}.weight"] = torch.randn(shape, generator=generator).to(dtype)
            base[f"blocks.{block}.{name}.bias"] = torch.randn(shape[0], generator=generator).to(dtype)
        block += 1
        if left < 4 * width * width:
            break
    last_frozen = round(frozen * len(base))
    paths = [folder / "base.safetensors"]
    save_file(base, paths[0])
    for number in range(ingredients):
        tuned = {
            name: tensor if place < last_frozen else (tensor + 0.01 * torch.randn(tensor.shape, generator=generator))
            for place, (name, tensor) in enumerate(base.items())
        }
        paths.append(folder / f"model_{number}.safetensors")
        save_file({name: tensor.to(dtype) for name, tensor in tuned.items()}, paths[-1])
    return paths


def plain_read(paths: list[Path]) -> None:
    """Every byte into one reused buffer."""
    buffer = bytearray(BLOCK)
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def plain_hash(paths: list[Path]) -> None:
    """The same on one thread, with SHA-256 of what was read: the floor of one core."""
    buffer = bytearray(2**18)
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                digest.update(memoryview(buffer)[:count])


def peer(paths: list[Path]) -> Tensor:
    """Dictionaries in a list, stacked name by name and laid side by side; nothing checked."""
    states = [load_file(path) for path in paths]
    return torch.cat([torch.stack([state[name].float().reshape(-1) for state in states]) for name in states[0]], dim=1)


def two_passes(paths: list[Path]) -> Tensor:
    """What mixopt did before: check and hash file by file, then read again and stack."""
    hashes = []
    for path in paths:
        tensors = checkpoints.read(path).tensors
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{path}: {name} is not finite")
        hashes.append(checkpoints.hash_tensors(tensors))
        del tensors
    differing = [name for name in hashes[0] if len({each[name] for each in hashes}) > 1]
    sizes = {name: tensor.numel() for name, tensor in checkpoints.read(paths[0]).tensors.items()}
    stack = torch.empty(len(paths), sum(sizes[name] for name in differing), dtype=torch.float32)
    for row, path in enumerate(paths):
        tensors = checkpoints.read(path).tensors
        start = 0
        for name in differing:
            stack[row, start : start + sizes[name]].copy_(tensors[name].reshape(-1))
            start += sizes[name]
        del tensors
    return stack


def ours(paths: list[Path]) -> Tensor:
    """The pool's stack."""
    files = {path.stem: path for path in paths[1:]}
    return open_pool(files, (paths[0].stem, paths[0])).stack


def drop(paths: list[Path]) -> None:
    """Ask the system to forget the files' pages."""
    for path in paths:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(work: Callable[[list[Path]], object], paths: list[Path], cold: bool) -> tuple[float, int | None]:
    """Time and peak memory of one call; what it made is freed outside the clock."""
    if cold:
        drop(paths)
    with peak_memory(torch.device("cpu")) as peak:
        before = peak() or 0
        started = time.perf_counter()
        made = work(paths)
        took = time.perf_counter() - started
        most = peak()
    del made
    return took, None if most is None else most - before


WAYS: dict[str, Callable[[list[Path]], object]] = {
    "plain sequential read": plain_read,
    "read and SHA-256, one thread": plain_hash,
    "peer: load_file, torch.stack": peer,
    "two passes, one thread (old)": two_passes,
    "mixopt open_pool": ours,
}


def main(given: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ingredients", type=int, default=16)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--frozen", type=float, default=0.25, help="share of the tensors that are the same in all")
    parser.add_argument("--dtype", default="fp32", choices=sorted(checkpoints.DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument(
        "--cold", action="store_true", help="drop the files from the page cache before each measurement"
    )
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        paths = write_pool(
            Path(folder),
            arguments.ingredients,
            arguments.megabytes,
            arguments.frozen,
            checkpoints.dtype_of(arguments.dtype),
        )
        size = sum(path.stat().st_size for path in paths)
        os.sync()
        plain_read(paths)  # so that the first measurement is as warm as the last
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        peaks: dict[str, list[int]] = {way: [] for way in WAYS}
        for _ in range(arguments.repeats):
            for way, work in WAYS.items():
                took, peak = seconds(work, paths, arguments.cold)
                times[way].append(took)
                peaks[way] += [] if peak is None else [peak]
    cache = "cold: dropped before each" if arguments.cold else "warm"
    print(f"{len(paths)} files, {size / 1e9:.2f} GB, {joblib.cpu_count()} cores, page cache {cache}")
    floor = statistics.median(times["plain sequential read"])
    rows = []
    print(f"{'':<30} {'seconds':>8} {'GB/s':>6} {'of plain read':>13} {'peak, in checkpoints':>20}")
    for way, taken in times.items():
        took = statistics.median(taken)
        peak_files = max(peaks[way]) / (size / len(paths)) if peaks[way] else None
        rows.append(
            {
                "way": way,
                "seconds": took,
                "bytes_per_second": size / took,
                "of_plain_read": floor / took,
                "peak_in_checkpoints": peak_files,
            }
        )
        told = "" if peak_files is None else f"{peak_files:.1f}"
        print(f"{way:<30} {took:8.3f} {size / took / 1e9:6.2f} {floor / took:12.0%} {told:>20}")
    print(
        json.dumps(
            {
                "benchmark": "opening",
                "files": len(paths),
                "bytes": size,
                "cores": joblib.cpu_count(),
                "page_cache": "cold" if arguments.cold else "warm",
                "frozen": arguments.frozen,
                "dtype": arguments.dtype,
                "rows": rows,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
