"""What memory can be had: the least that the machine, a control group or the process's own limit leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mixopt import memory

GIGABYTE = 10**9


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with 8 GB available, and this process in group /outer/inner of control groups of version 2."""
    (tmp_path / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable:   7812500 kB\n")
    (tmp_path / "own").write_text("0::/outer/inner\n")
    (tmp_path / "groups" / "outer" / "inner").mkdir(parents=True)
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    return tmp_path


def limit(folder: Path, most: int | str, used: int, files: int) -> None:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\nactive_file 3\n")


def test_the_machine_alone(told: Path) -> None:
    assert memory.available_memory() == 8 * GIGABYTE


def test_the_groups_around_the_own_one_count_too(told: Path) -> None:
    limit(told / "groups" / "outer" / "inner", "max", 2 * GIGABYTE, 0)
    limit(told / "groups" / "outer", 4 * GIGABYTE, 2 * GIGABYTE, 0)
    assert memory.available_memory() == 2 * GIGABYTE


def test_content_of_files_makes_room(told: Path) -> None:
    limit(told / "groups" / "outer" / "inner", 4 * GIGABYTE, 3 * GIGABYTE, GIGABYTE)
    assert memory.available_memory() == 2 * GIGABYTE


def test_groups_of_version_1(told: Path) -> None:
    (told / "own").write_text("5:cpu:/elsewhere\n4:memory:/docker/abc\n")
    folder = told / "groups" / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(str(3 * GIGABYTE))
    (folder / "memory.usage_in_bytes").write_text(str(2 * GIGABYTE))
    (folder / "memory.stat").write_text("total_inactive_file 500000000\n")
    assert memory.available_memory() == 1_500_000_000


def test_nothing_tells(told: Path) -> None:
    (told / "meminfo").unlink()
    (told / "own").unlink()
    assert memory.available_memory() == 0


def test_the_limit_of_the_process() -> None:
    resource = pytest.importorskip("resource")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); "
        "from mixopt.memory import available_memory; print(available_memory())"
    )
    assert resource.RLIMIT_AS
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(found.stdout) < 2**30


@pytest.mark.parametrize(("count", "shown"), [(5_000_000, "5.0 MB"), (2_340_000_000, "2.3 GB")])
def test_bytes_for_people(count: int, shown: str) -> None:
    assert memory.gigabytes(count) == shown
