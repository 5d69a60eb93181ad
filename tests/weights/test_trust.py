"""Checkpoints that are damaged, hostile or too large: one error that names the file, and nothing outside its folder."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mixopt.errors import CheckpointError, PoolError
from mixopt.weights import checkpoints, pool
from mixopt.weights.checkpoints import checks
from mixopt.weights.pool import open_pool
from tests.conftest import permissions_bind

STATE = {"a.weight": torch.arange(4096.0).reshape(64, 64), "b": torch.ones(3)}


def saved(path: Path, state: dict[Any, Any]) -> Path:
    torch.save(state, path)
    return path


# Damage


def test_every_record_of_an_archive_is_compared_with_its_checksum(tmp_path: Path) -> None:
    """torch does not do so: a flipped bit would be another weight."""
    path = saved(tmp_path / "m.pt", STATE)
    content = path.read_bytes()
    place = content.index(STATE["a.weight"].numpy().tobytes()[400:440])
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(CheckpointError, match=r"m\.pt: damaged .*checksum of .*data/0 does not fit.*copy it again"):
        checkpoints.read(path)
    path.write_bytes(content)
    assert torch.equal(checkpoints.read(path).tensors["a.weight"], STATE["a.weight"])


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "m.pt", STATE)
    finally:
        torch.serialization.set_crc32_options(before)
    assert checkpoints.read(path).tensors.keys() == STATE.keys()


def test_a_compressed_archive_is_not_mapped(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(saved(tmp_path / "m.pt", STATE)) as stored,
        zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in stored.infolist():
            packed.writestr(record.filename, stored.read(record))
    opened = checkpoints.read(tmp_path / "c.pt")
    assert not opened.mapped
    assert torch.equal(opened.tensors["a.weight"], STATE["a.weight"])


def test_two_records_of_one_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", STATE)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0], b"other")
    with pytest.raises(CheckpointError, match="two records of one name"):
        checkpoints.read(path)


# What cannot be worked with


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.empty(4, device="meta"), "is on the meta device and has no values"),
        (torch.zeros(1).expand(2**31, 2**31), r"of shape \[2147483648, 2147483648\] asks for 18,446,744,073\.7 GB"),
        (
            torch.zeros(1).expand(10**13),
            r"of shape \[10000000000000\] asks for 40,000\.0 GB of memory, and [\d.,]+ GB can be had",
        ),
    ],
    ids=["meta", "2**62", "40 TB in 4 bytes"],
)
def test_a_tensor_that_cannot_be_worked_with_is_named(tmp_path: Path, tensor: Tensor, says: str) -> None:
    with pytest.raises(CheckpointError, match=rf"m\.pt: tensor b {says}"):
        checkpoints.read(saved(tmp_path / "m.pt", {**STATE, "b": tensor}))


def test_a_small_repeated_view_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {**STATE, "mask": torch.zeros(1, 5).expand(7, 5)})
    assert checkpoints.read(path).tensors["mask"].shape == (7, 5)


def test_keys_that_are_no_names(tmp_path: Path) -> None:
    nested: Any = ()
    for _ in range(25):  # written out, it would have 2**25 parts
        nested = (nested, nested)
    path = saved(tmp_path / "m.pt", {**STATE, 7: torch.ones(1), nested[0][0][0][0][0][0][0]: torch.ones(1), "epoch": 3})
    opened = checkpoints.read(path)
    assert opened.tensors.keys() == {*STATE, "7"}
    assert len(opened.ignored) == 2
    assert all(len(name) < 250 for name in opened.ignored)


def test_an_error_names_a_long_tensor_in_short(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"x" * 10**5: torch.empty(1, device="meta")})
    with pytest.raises(CheckpointError) as caught:
        checkpoints.read(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("suffix", checkpoints.SUFFIXES)
def test_a_pipe_does_not_hang(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"m{suffix}")
    with pytest.raises(CheckpointError, match="a folder, pipe or device, where a file is expected"):
        checkpoints.read(tmp_path / f"m{suffix}")


@pytest.mark.skipif(not permissions_bind(), reason="permissions do not bind this user")
def test_a_permission_is_told_as_one(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\); check its permissions"):
        checkpoints.read(tmp_path / "m.safetensors")


# Outside its folder


def index_of(folder: Path, part: Any, name: str = "m9.safetensors.index.json") -> Path:
    (folder / name).write_text(json.dumps({"weight_map": dict.fromkeys(STATE, part)}))
    return folder / name


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("../m9-secret.safetensors", "expected the plain name of a file in its own folder"),
        ("/m9.safetensors", "expected the plain name"),
        ("sub/m9.safetensors", "expected the plain name"),
        ("..", "expected the plain name"),
        ("", "expected the plain name"),
        ("m9\0.safetensors", "expected the plain name"),
        ("m9" * 300 + ".safetensors", "expected the plain name"),
        (7, "expected the plain name"),
        ("m9.safetensors.index.json", r"expected a \.safetensors file"),
        ("m9.pt", r"expected a \.safetensors file"),
        ("m0.safetensors", "a checkpoint of its own; expected names such as m9-00001-of-00002"),
    ],
)
def test_a_part_is_a_file_of_its_own_in_the_folder_of_the_index(tmp_path: Path, part: Any, says: str) -> None:
    pool_folder = tmp_path / "pool"
    pool_folder.mkdir()
    for path in (tmp_path / "m9-secret.safetensors", pool_folder / "m0.safetensors"):
        save_file(STATE, path)
    index = index_of(pool_folder, part)
    for use in (lambda: checkpoints.read(index), lambda: checkpoints.find(pool_folder)):
        with pytest.raises(CheckpointError, match=rf"m9\.safetensors\.index\.json: lists .*{says}"):
            use()


def test_two_indexes_do_not_share_a_part(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m-00001-of-00001.safetensors")
    for name in ("a", "b"):
        index_of(tmp_path, "m-00001-of-00001.safetensors", f"{name}.safetensors.index.json")
    with pytest.raises(CheckpointError, match=r"b\.safetensors\.index\.json: lists m-00001.* as .*a\.safet"):
        checkpoints.find(tmp_path)


# Memory


def test_a_pool_that_does_not_fit_is_told_before_it_is_stacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {}
    for number in range(5):
        paths[f"m{number}"] = tmp_path / f"m{number}.safetensors"
        save_file({"a": torch.full((1000,), float(number))}, paths[f"m{number}"])
    monkeypatch.setattr(pool, "available_memory", lambda: 15_999)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("memory was asked for"))
    with pytest.raises(PoolError, match=r"5 checkpoints with 1,000 parameters .*; at most 3 of them fit: "):
        open_pool(paths)
    monkeypatch.setattr(pool, "available_memory", lambda: 7_999)
    with pytest.raises(PoolError, match="not even two fit, or use a machine with more"):
        open_pool(paths)


def test_a_file_that_is_read_whole_is_told_where_it_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(STATE, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    assert checkpoints.read(tmp_path / "m.pt").tensors.keys() == STATE.keys()
    monkeypatch.setattr("mixopt.weights.checkpoints.pickled.available_memory", lambda: 1000)
    with pytest.raises(CheckpointError, match=r"m\.pt: is of a format that is read whole, .* 0\.0 MB can be had"):
        checkpoints.read(tmp_path / "m.pt")


@pytest.mark.parametrize("free", [0, 10**6])
def test_where_nothing_tells_the_free_memory_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    monkeypatch.setattr(checks, "available_memory", lambda: free)
    path = saved(tmp_path / "m.pt", {"a": torch.zeros(1).expand(10**6)})
    read: Callable[[], Any] = lambda: checkpoints.read(path)  # noqa: E731
    if free:
        with pytest.raises(CheckpointError, match="a repeated view"):
            read()
    else:
        assert read().tensors["a"].numel() == 10**6
