from __future__ import annotations

import errno
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from mixopt.errors import CheckpointError, RunError
from mixopt.weights import checkpoints
from mixopt.weights.checkpoints import (
    Checkpoint,
    content_hash,
    find,
    names_of,
    pickled,
    read,
    tensor_hash,
    wrappers,
    write,
)

State = dict[str, Tensor]
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
]  # fmt: skip


def state_of(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "stem.weight": torch.randn(3, 4, generator=generator),
        "stem.bias": torch.randn(4, generator=generator).to(torch.float16),
        "scale": torch.tensor(1.5),
        "steps": torch.tensor(7),
    }


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert tensor_hash(found[name]) == tensor_hash(tensor), name


def touch(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")


def write_sharded(folder: Path, states: list[State], extra: tuple[str, ...] = ()) -> Path:
    """A sharded checkpoint as Hugging Face writes it; ``extra`` names tensors that the index lists in vain."""
    weight_map: dict[str, str] = {}
    for number, state in enumerate(states, start=1):
        name = f"big-{number:05d}-of-{len(states):05d}.safetensors"
        save_file(state, folder / name)
        weight_map |= dict.fromkeys(state, name)
    weight_map |= dict.fromkeys(extra, name)
    index = folder / "big.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


# ---------------------------------------------------------------------------------------------------------- find


def test_find_gives_checkpoints_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "m_10.pt", "m_2.safetensors", "m_1.bin", "m_3.pth", "notes.txt", ".hidden.pt", "sub/m_4.pt")
    (tmp_path / "folder.pt").mkdir()
    assert [path.name for path in find(tmp_path)] == ["m_1.bin", "m_2.safetensors", "m_3.pth", "m_10.pt"]


def test_find_obeys_patterns_and_lists_a_file_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/m_10.pt", "a/m_9.pt", "b/m_1.pt", "b/log.json", "m_2.pt")
    found = find(tmp_path, ("*/m_*.pt", "a/*"))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/m_9.pt", "a/m_10.pt", "b/m_1.pt"]


def test_find_treats_no_name_as_special(tmp_path: Path) -> None:
    touch(tmp_path, "base.safetensors", "model_0.safetensors")
    assert [path.name for path in find(tmp_path)] == ["base.safetensors", "model_0.safetensors"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), ["big-other.safetensors", "big.safetensors.index.json"]),
        (("big*",), ["big-other.safetensors", "big.safetensors.index.json"]),
        (("big-0*.safetensors",), ["big.safetensors.index.json"]),
        (("*.json",), ["big.safetensors.index.json"]),
    ],
)
def test_an_index_claims_its_parts(tmp_path: Path, patterns: tuple[str, ...], expected: list[str]) -> None:
    write_sharded(tmp_path, [{"a": torch.ones(1)}, {"b": torch.ones(1)}])
    save_file({"a": torch.ones(1)}, tmp_path / "big-other.safetensors")
    assert [path.name for path in find(tmp_path, patterns)] == expected


def test_find_in_a_missing_folder_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such directory; --models"):
        find(tmp_path / "nowhere")


@pytest.mark.parametrize("pattern", ["/abs/*.pt", ""])
def test_patterns_that_are_not_relative_are_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(CheckpointError, match="patterns relative to this folder"):
        find(tmp_path, (pattern,))


def test_names_are_stems_where_these_differ(tmp_path: Path) -> None:
    files = ["m_1.pt", "big.safetensors.index.json", "v1.2.safetensors", "sub/x.bin"]
    assert names_of([tmp_path / file for file in files], tmp_path) == ["m_1", "big", "v1.2", "x"]


def test_names_are_paths_where_stems_are_alike(tmp_path: Path) -> None:
    files = [tmp_path / "a" / "m.pt", tmp_path / "b" / "m.pt", tmp_path / "n.pt"]
    assert names_of(files, tmp_path) == ["a/m.pt", "b/m.pt", "n.pt"]
    assert names_of([*files[:1], Path("/elsewhere/m.pt")], tmp_path) == ["a/m.pt", "/elsewhere/m.pt"]


# ---------------------------------------------------------------------------------------------------------- read


def test_safetensors_are_read_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(state_of(), path, {"format": "pt", "note": "text"})
    found = read(path)
    assert_same(found.tensors, state_of())
    assert found.metadata == {"format": "pt", "note": "text"}
    assert (found.path, found.tied, found.ignored) == (path, {}, ())
    assert checkpoints.metadata_of(path) == found.metadata


def test_a_sharded_checkpoint_is_one(tmp_path: Path) -> None:
    parts: list[State] = [{"a": torch.randn(3)}, {"b": torch.randn(2, 2), "c": torch.tensor(1)}]
    found = read(write_sharded(tmp_path, parts))
    assert_same(found.tensors, parts[0] | parts[1])


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    index = write_sharded(tmp_path, [{"a": torch.ones(1)}, {"b": torch.ones(1)}])
    (tmp_path / "big-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: its part big-00002-of-00002\.safetensors is missing"):
        read(index)


def test_tensors_that_an_index_lists_in_vain_are_counted(tmp_path: Path) -> None:
    index = write_sharded(tmp_path, [{"a": torch.ones(1)}], extra=("lost.2", "lost.1"))
    with pytest.raises(CheckpointError, match=r"lack 2 of the tensors it lists, such as lost\.1"):
        read(index)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "\xff"])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    with pytest.raises(
        CheckpointError, match=r"m\.safetensors\.index\.json: (not an index|the file is empty|lists '?1'?)"
    ):
        read(index)


@pytest.mark.parametrize("suffix", pickled.SUFFIXES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickles_of_tensors_are_read(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"m{suffix}"
    torch.save(OrderedDict(state_of()), path, _use_new_zipfile_serialization=zipped)
    found = read(path)
    assert_same(found.tensors, state_of())
    assert (found.tied, found.metadata, found.ignored) == ({}, {}, ())


def prefixed(prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state_of().items()}


@pytest.mark.parametrize(
    "wrapped",
    [
        {"state_dict": state_of(), "epoch": 3},
        {"model_state_dict": state_of(), "loss": 0.5},
        {"model": state_of(), "optimizer": {"state": {}}},
        {"module": state_of()},
        {"net": state_of()},
        {"model": {"state_dict": state_of()}},
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
        {"state_dict": prefixed("module.")},
    ],
    ids=lambda value: "+".join(list(value)[:2]),
)
def test_common_wrappers_and_prefixes_are_taken_off(tmp_path: Path, wrapped: dict[str, Any]) -> None:
    torch.save(wrapped, tmp_path / "m.pt")
    assert_same(read(tmp_path / "m.pt").tensors, state_of())


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "m.pt")
    assert_same(read(tmp_path / "m.pt").tensors, state)


def test_entries_that_are_not_tensors_are_told(tmp_path: Path) -> None:
    torch.save({**state_of(), "note": "text", "list": [1]}, tmp_path / "m.pt")
    found = read(tmp_path / "m.pt")
    assert_same(found.tensors, state_of())
    assert found.ignored == ("note", "list")


def open_clip_training(score: Any) -> dict[str, Any]:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {
        "epoch": 3,
        "name": "run",
        "state_dict": OrderedDict(prefixed("module.")),
        "optimizer": optimizer.state_dict(),
        "best": score,
    }


@pytest.mark.parametrize("score", [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True), 0.5], ids=repr)
def test_a_training_checkpoint_of_open_clip_opens(tmp_path: Path, score: Any) -> None:
    torch.save(open_clip_training(score), tmp_path / "epoch_3.pt")
    assert_same(read(tmp_path / "epoch_3.pt").tensors, state_of())


def test_a_number_pickled_by_numpy_1_opens(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save(open_clip_training(np.float64(0.5)), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"numpy._core.multiarray\nscalar") == 1
    path.write_bytes(content.replace(b"numpy._core.multiarray\nscalar", b"numpy.core.multiarray\nscalar"))
    assert_same(read(path).tensors, state_of())


class Trap:
    """A pickle that creates a file when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path: Path, form: str) -> None:
    path, target = tmp_path / "evil.pt", tmp_path / "ran"
    value = {"a": torch.ones(2), "b": Trap(target)}
    if form == "plain":
        path.write_bytes(pickle.dumps({"b": Trap(target)}, protocol=2))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"evil\.pt: (this pickle holds more than tensors|damaged)"):
        read(path)
    assert not target.exists()
    if form != "plain":  # the trap works: opened without care, it runs
        torch.load(path, weights_only=False)
        assert target.exists()


def test_a_pickle_with_code_says_how_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    text = str(caught.value)
    assert "torch.nn.modules.linear.Linear" in text
    assert "torch.load('module.pt', weights_only=False)" in text
    assert "torch.save(m.state_dict(), 'converted.pt')" in text
    assert "add_safe_globals" not in text  # torch's own advice, which does not help here
    m = torch.load(path, weights_only=False)
    torch.save(m.state_dict(), tmp_path / "converted.pt")
    assert_same(read(tmp_path / "converted.pt").tensors, dict(m.state_dict()))


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m.bin"])
@pytest.mark.parametrize("text", ['{"error":"Repository not found"}', "Access denied\n", "\ufeffNot Found: é"])
def test_a_message_in_a_checkpoints_place_is_shown(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="a text, not a checkpoint") as caught:
        read(tmp_path / name)
    assert text.strip("\ufeff\n") in str(caught.value)


@pytest.mark.parametrize("value", [[torch.ones(1)], torch.ones(2), 3], ids=["list", "tensor", "number"])
def test_a_pickle_that_is_no_state_dict_is_refused(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=f"expected a state dict .*found a {type(value).__name__}"):
        read(tmp_path / "m.pt")


def test_a_pickle_without_tensors_names_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "name": "x"}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="no tensors found in it; its entries are epoch, name"):
        read(tmp_path / "m.pt")


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    codes = torch.zeros(2, 2, dtype=torch.int64)
    sparse = torch.sparse_coo_tensor(codes, torch.ones(2), (3, 3), check_invariants=True)
    with pytest.raises(CheckpointError, match="w is sparse or quantized"):
        wrappers.unwrap(tmp_path / "m.pt", {"w": sparse, "b": torch.ones(1)})


@pytest.mark.parametrize("suffix", checkpoints.SUFFIXES)
def test_an_empty_file_is_named_so(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, f"m{suffix}")
    (tmp_path / f"m{suffix}").write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"m\{suffix}: the file is empty \(0 bytes\)"):
        read(tmp_path / f"m{suffix}")


def test_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"m\.pt: no such file"):
        read(tmp_path / "m.pt")
    touch(tmp_path, "m.txt")
    with pytest.raises(CheckpointError, match=r"m\.txt: expected a checkpoint \(\.safetensors, \.pt"):
        read(tmp_path / "m.txt")
    (tmp_path / "n.pt").symlink_to("nowhere.pt")
    with pytest.raises(CheckpointError, match=r"n\.pt: a link to nothing"):
        read(tmp_path / "n.pt")


def save_as(path: Path, form: str) -> bytes:
    if form == "safetensors":
        save_file(state_of(), path)
    else:
        torch.save(state_of(), path, _use_new_zipfile_serialization=form == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0])
def test_truncated_files_are_refused(tmp_path: Path, form: str, part: float) -> None:
    path = tmp_path / ("m.safetensors" if form == "safetensors" else "m.pt")
    whole = save_as(path, form)
    path.write_bytes(whole[: max(1, min(len(whole) - 1, int(part * len(whole))))])
    # The format before zip files can break off inside a name, which then is that of no known function.
    allowed = "damaged or truncated .*; copy it again" + ("|holds more than tensors" if form == "legacy" else "")
    with pytest.raises(CheckpointError, match=allowed):
        read(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@given(content=st.binary(min_size=1, max_size=60) | st.binary(max_size=40).map(lambda rest: b"PK\x03\x04" + rest))
def test_no_bytes_do_more_than_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"random{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="random"):
        read(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".ckpt"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
            "a git-lfs pointer.*git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html><body>Access denied</body></html>", "a web page, not a checkpoint"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"\x1f\x8b\x08\0", "compressed with gzip"),
    ],
)
def test_what_is_no_checkpoint_is_told_for_what_it_is(tmp_path: Path, suffix: str, content: bytes, says: str) -> None:
    (tmp_path / f"m{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        read(tmp_path / f"m{suffix}")
    assert "damaged" not in str(caught.value)


def test_a_program_with_weights_inside_says_how_to_take_them_out(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2))  # type: ignore[no-untyped-call]
        traced.save(str(tmp_path / "m.pt"))
    with pytest.raises(CheckpointError, match=r"a TorchScript archive.*torch\.jit\.load\('m\.pt'"):
        read(tmp_path / "m.pt")


# ---------------------------------------------------------------------------------------------------------- tied


class Tied(nn.Module):
    """Two names, one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.embedding.weight
        self.bias = nn.Parameter(torch.zeros(5))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tied_tensors_stay_tied_through_every_format(tmp_path: Path, zipped: bool) -> None:
    model = Tied()
    torch.save(model.state_dict(), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "m.pt")
    assert found.tied == {"decoder.weight": "embedding.weight"}
    assert list(found.tensors) == ["bias", "embedding.weight"]

    path = tmp_path / "m.safetensors"
    write(path, found.tensors, tied=found.tied, metadata={"note": "x"})
    again = read(path)
    assert again.tied == found.tied
    assert again.metadata == {"format": "pt", "note": "x"}
    assert_same(again.tensors, found.tensors)
    other = Tied()
    with torch.no_grad():
        other.embedding.weight.zero_()
    load_model(other, path)
    assert torch.equal(other.decoder.weight, model.embedding.weight)
    assert other.decoder.weight.data_ptr() == other.embedding.weight.data_ptr()


def test_tied_tensors_that_safetensors_saved_are_known(tmp_path: Path) -> None:
    save_model(Tied(), str(tmp_path / "m.safetensors"))
    found = read(tmp_path / "m.safetensors")
    assert len(found.tied) == 1
    assert {*found.tied, *found.tied.values()} == {"decoder.weight", "embedding.weight"}
    assert len(found.tensors) == 2


def test_views_of_one_memory_that_differ_are_not_tied(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    wide = whole.view(2, 3)
    square = whole[:4].view(2, 2)
    state = {"whole": whole, "head": whole[:3], "tail": whole[3:], "wide": wide, "turned": wide.t()}
    state |= {"square": square, "square turned": square.t()}
    torch.save(state, tmp_path / "m.pt")
    found = read(tmp_path / "m.pt")
    assert found.tied == {}
    assert_same(found.tensors, state)


def test_empty_tensors_are_never_tied(tmp_path: Path) -> None:
    torch.save({"a": torch.empty(0), "b": torch.empty(0), "c": torch.ones(1)}, tmp_path / "m.pt")
    found = read(tmp_path / "m.pt")
    assert list(found.tensors) == ["a", "b", "c"]
    assert found.tied == {}


# ---------------------------------------------------------------------------------------------------------- write


def every_kind() -> State:
    state: State = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        values = torch.tensor([[0, 1], [1, 0], [1, 1]]).to(dtype)
        state |= {name: values, f"{name}.scalar": values[0, 1].clone(), f"{name}.empty": values[:0].clone()}
    return state


def test_every_dtype_and_shape_is_written_as_safetensors_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write(path, every_kind(), tied={}, metadata={})
    assert_same(load_file(path), every_kind())
    assert_same(read(path).tensors, every_kind())


def test_tensors_in_any_memory_layout_are_written(tmp_path: Path) -> None:
    grid = torch.arange(24.0).reshape(2, 3, 2, 2)
    state = {
        "turned": grid[0, 0].t(),
        "channels_last": grid.to(memory_format=torch.channels_last),
        "strided": torch.arange(10)[::3],
        "spread": torch.ones(1).expand(4),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    write(tmp_path / "m.safetensors", state, tied={}, metadata={})
    assert_same(load_file(tmp_path / "m.safetensors"), {name: tensor.contiguous() for name, tensor in state.items()})


def test_special_values_keep_their_bits(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, -0x80000000, 1, 0x7F800000], dtype=torch.int32)
    write(tmp_path / "m.safetensors", {"w": bits.view(torch.float32)}, tied={}, metadata={})
    assert torch.equal(load_file(tmp_path / "m.safetensors")["w"].view(torch.int32), bits)


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    metadata = {f"key {number}": "ü" * number for number in range(10)}
    write(tmp_path / "one.safetensors", every_kind(), tied={}, metadata=metadata)
    turned = dict(reversed(every_kind().items()))
    write(tmp_path / "two.safetensors", turned, tied={}, metadata=dict(reversed(metadata.items())))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert checkpoints.metadata_of(tmp_path / "one.safetensors") == {"format": "pt", **metadata}


def test_the_data_starts_and_lies_aligned(tmp_path: Path) -> None:
    for length in range(9):
        path = tmp_path / f"{length}.safetensors"
        write(path, every_kind(), tied={}, metadata={"pad": "x" * length})
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        assert size % 8 == 0
        header = json.loads(content[8 : 8 + size])
        end = 0
        spans = [(*entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__"]
        for start, stop, name in sorted(spans):
            assert start == end
            assert start % every_kind()[name].element_size() == 0
            end = stop
        assert end == len(content) - 8 - size


def test_a_dtype_that_the_format_lacks_is_refused_before_writing(tmp_path: Path) -> None:
    state = {"w": torch.ones(2, dtype=torch.complex128)}
    with pytest.raises(CheckpointError, match=r"tensor w has dtype torch\.complex128, which cannot be saved"):
        write(tmp_path / "m.safetensors", state, tied={}, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    write(path, state_of(1), tied={}, metadata={})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"could not write .*No space left on device; free space"):
        write(path, state_of(2), tied={}, metadata={})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from mixopt.weights.checkpoints import write
from mixopt.errors import RunError

path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write(path, {"w": torch.ones(1_000_000)}, tied={}, metadata={})
except RunError as error:
    print(error)
"""


def test_a_system_that_stops_a_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    """No mock: the system itself refuses to let the file grow, as it does on a full disk."""
    path = tmp_path / "m.safetensors"
    write(path, state_of(), tied={}, metadata={})
    before = path.read_bytes()
    ran = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    assert f"could not write {path}: File too large" in ran.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


# ---------------------------------------------------------------------------------------------------------- hashes


tensors = st.builds(
    lambda values, dtype, shape: torch.tensor(values).reshape(shape).to(dtype),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
    st.sampled_from(DTYPES),
    st.sampled_from([(6,), (2, 3), (3, 2), (1, 6), (6, 1)]),
)


@given(tensors, tensors)
def test_hashes_are_equal_where_dtype_shape_and_bytes_are(one: Tensor, other: Tensor) -> None:
    same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    assert (tensor_hash(one) == tensor_hash(other)) == same


@given(tensors)
def test_a_hash_sees_no_memory_layout(tensor: Tensor) -> None:
    spread = torch.stack([tensor, tensor], dim=-1)[..., 0]
    assert not spread.is_contiguous()
    assert tensor_hash(spread) == tensor_hash(tensor)
    assert tensor_hash(nn.Parameter(tensor, requires_grad=False)) == tensor_hash(tensor)


def test_a_hash_tells_zeros_apart() -> None:
    assert tensor_hash(torch.tensor(0.0)) != tensor_hash(torch.tensor(-0.0))
    assert tensor_hash(torch.tensor(0.0)) != tensor_hash(torch.zeros(1))
    assert tensor_hash(torch.empty(0, 2)) != tensor_hash(torch.empty(2, 0))


def test_a_hash_stays_what_it_was() -> None:
    """Recipes hold hashes; a change of this value orphans every one that users have."""
    import hashlib

    expected = hashlib.sha256(b"torch.float32[2]" + struct.pack("<2f", 1.0, -2.5)).hexdigest()
    assert tensor_hash(torch.tensor([1.0, -2.5])) == expected
    assert content_hash({"b": "2", "a": "1"}) == hashlib.sha256(b"a=1\nb=2\n").hexdigest()


@given(st.dictionaries(st.text("abc.", max_size=4), st.sampled_from(["00", "11", "22"]), max_size=5), st.data())
def test_a_content_hash_sees_names_and_hashes_and_no_order(hashes: dict[str, str], data: st.DataObject) -> None:
    turned = dict(data.draw(st.permutations(list(hashes.items()))))
    assert content_hash(turned) == content_hash(hashes)
    assert content_hash({**hashes, "new": "33"}) != content_hash(hashes)
    for name in hashes:
        assert content_hash({**hashes, name: "44"}) != content_hash(hashes)
        assert content_hash({other: text for other, text in hashes.items() if other != name}) != content_hash(hashes)


def test_a_content_hash_sees_no_file_format(tmp_path: Path) -> None:
    save_file(state_of(), tmp_path / "m.safetensors")
    torch.save({"state_dict": prefixed("module.")}, tmp_path / "m.pt")
    write(tmp_path / "own.safetensors", state_of(), tied={}, metadata={"more": "text"})
    found: list[Checkpoint] = [read(tmp_path / name) for name in ("m.safetensors", "m.pt", "own.safetensors")]
    assert len({content_hash(checkpoints.hash_tensors(one.tensors)) for one in found}) == 1


def test_dtypes_have_names() -> None:
    assert checkpoints.dtype_of("bf16") is torch.bfloat16
    with pytest.raises(CheckpointError, match="unknown dtype 'fp8'; did you mean"):
        checkpoints.dtype_of("fp8")


def test_metadata_of_other_kinds_is_empty_and_of_a_damaged_file_an_error(tmp_path: Path) -> None:
    assert checkpoints.metadata_of(tmp_path / "missing.safetensors") == {}
    torch.save(state_of(), tmp_path / "m.pt")
    assert checkpoints.metadata_of(tmp_path / "m.pt") == {}
    touch(tmp_path, "m.safetensors")
    with pytest.raises(CheckpointError, match="damaged or truncated safetensors file"):
        checkpoints.metadata_of(tmp_path / "m.safetensors")


def test_prefixes_go_from_safetensors_too(tmp_path: Path) -> None:
    save_file({"module.a": torch.ones(2), "module.b": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert set(checkpoints.read(tmp_path / "x.safetensors").tensors) == {"a", "b"}


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(2)}, path)
    for error, told in (
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (MemoryError(), "not enough memory"),
    ):

        def fails(*_: Any, error: BaseException = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(torch, "load", fails)
        with pytest.raises(CheckpointError, match=rf"cannot be read \({told}\); check"):
            checkpoints.read(path)
