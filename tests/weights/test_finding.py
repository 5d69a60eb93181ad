"""Which files and folders are checkpoints, and what is said of those left out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mixopt.errors import CheckpointError
from mixopt.weights import checkpoints
from mixopt.weights.checkpoints import find, find_noted, names_of, read

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(2)}


def touch(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")


def shown(folder: Path, patterns: tuple[str, ...] = (), besides: Path | None = None) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find(folder, patterns, besides)]


def trainer_step(folder: Path) -> None:
    """What transformers' Trainer leaves at a step."""
    touch(
        folder, "model.safetensors", "config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
        "training_args.bin", "trainer_state.json", "rng_state_0.pth", "scaler.pt",
    )  # fmt: skip


def test_a_trainers_output_is_its_checkpoint_folders(tmp_path: Path) -> None:
    for step in (500, 1500, 1000):
        trainer_step(tmp_path / f"checkpoint-{step}")
    found = find_noted(tmp_path)
    assert names_of(found.paths, tmp_path) == ["checkpoint-500", "checkpoint-1000", "checkpoint-1500"]
    (notice,) = found.notices
    assert "taken from the folders below: checkpoint-500, checkpoint-1000, checkpoint-1500" in notice


def test_a_final_model_beside_them_is_one_more(tmp_path: Path) -> None:
    trainer_step(tmp_path)
    trainer_step(tmp_path / "checkpoint-7")
    assert shown(tmp_path) == ["checkpoint-7", "model.safetensors"]


@pytest.mark.parametrize("place", ["m3.pt", "m3/model.safetensors"])
def test_a_link_to_nothing_in_a_checkpoints_place_is_no_matter_of_silence(tmp_path: Path, place: str) -> None:
    touch(tmp_path, "m1.pt", "m2.pt")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).symlink_to(tmp_path / "blobs" / "gone")
    with pytest.raises(CheckpointError, match=f"links to nothing in place of checkpoints: {place}; correct"):
        find(tmp_path)
    assert shown(tmp_path, ("m*.pt",) if "/" in place else ("m1.pt", "m2.pt")) == ["m1.pt", "m2.pt"]
    (tmp_path / "optimizer.pt").symlink_to("gone.pt")
    (tmp_path / place).unlink()
    assert shown(tmp_path) == ["m1.pt", "m2.pt"]


def test_models_of_other_kinds_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "m1.PT", "m2.pt", "m3.pkl", "m4.onnx", "val.npz", "README.md")
    found = find_noted(tmp_path)
    assert names_of(found.paths, tmp_path) == ["m1", "m2"]
    (notice,) = found.notices
    assert notice.endswith(
        "files with a suffix that is not read are left out: m3.pkl, m4.onnx "
        "(a .pkl that torch.save wrote is read once it is called .pt)"
    )
    torch.save(STATE, tmp_path / "m3.pkl")
    assert read((tmp_path / "m3.pkl").rename(tmp_path / "m3.pt")).tensors.keys() == STATE.keys()


def test_a_base_that_is_a_folder_is_not_told_to_be_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "m1.pt", "m2.pt", "hub/model.safetensors")
    assert find_noted(tmp_path, (), tmp_path / "hub").notices == ()
    assert "left out (hub)" in find_noted(tmp_path).notices[0]


def test_a_base_among_the_ingredients_is_told_and_stays_the_base(tmp_path: Path) -> None:
    touch(tmp_path, "m1.pt", "m2.pt", "base.pt")
    found = find_noted(tmp_path, ("m*.pt", "base.pt"), tmp_path / "base.pt")
    assert [path.name for path in found.paths] == ["m1.pt", "m2.pt"]
    assert found.notices == ("ingredients 'base.pt' is the base, and stays that alone",)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("m1", "did you mean 'm1.pt'"),
        ("m1.pt,m2.pt", "a comma is part of a name: give each with an --ingredients of its own"),
        ("m1.pt, m9.pt", "a comma is part of a name"),
    ],
)
def test_what_may_have_been_meant_is_said(tmp_path: Path, pattern: str, hint: str) -> None:
    touch(tmp_path, "m1.pt", "m2.pt")
    with pytest.raises(CheckpointError, match=f"matches nothing; {hint}"):
        find(tmp_path, (pattern,))


def test_runs_beside_each_other_are_one_each(tmp_path: Path) -> None:
    trainer_step(tmp_path / "run-1")
    trainer_step(tmp_path / "run-1" / "checkpoint-3")
    trainer_step(tmp_path / "run-2")
    found = find_noted(tmp_path)
    assert [path.name for path in found.paths] == ["run-1", "run-2"]


def test_checkpoints_far_below_are_found_where_none_are_above(tmp_path: Path) -> None:
    for version in (0, 1):
        touch(tmp_path, f"lightning_logs/version_{version}/checkpoints/last.ckpt")
        touch(tmp_path, f"lightning_logs/version_{version}/metrics.csv")
    found = find(tmp_path)
    assert names_of(found, tmp_path) == [f"lightning_logs/version_{n}/checkpoints/last.ckpt" for n in (0, 1)]


def test_the_base_does_not_hide_what_lies_below(tmp_path: Path) -> None:
    touch(tmp_path, "base.pt", "a/m.pt", "b/m.pt")
    assert shown(tmp_path) == ["base.pt"]
    assert shown(tmp_path, besides=tmp_path / "base.pt") == ["a/m.pt", "b/m.pt"]


def test_folders_below_files_are_left_out_and_told(tmp_path: Path) -> None:
    touch(tmp_path, "m_0.pt", "m_1.pt", "old/m_2.pt", "notes/readme.txt")
    trainer_step(tmp_path / "other")
    found = find_noted(tmp_path)
    assert [path.name for path in found.paths] == ["m_0.pt", "m_1.pt"]
    (notice,) = found.notices
    assert "left out (old, other)" in notice


def test_a_run_of_mixopt_is_no_ingredient(tmp_path: Path) -> None:
    touch(tmp_path, "runs/x/model.safetensors", "runs/x/run.toml", "runs/x/recipe.json", "a/m.pt", "b/m.pt")
    assert shown(tmp_path) == ["a/m.pt", "b/m.pt"]


def test_several_names_of_one_file_count_once(tmp_path: Path) -> None:
    touch(tmp_path, "checkpoint-1.pth.tar", "checkpoint-2.pth.tar")
    os.link(tmp_path / "checkpoint-2.pth.tar", tmp_path / "last.pth.tar")
    (tmp_path / "model_best.pth.tar").symlink_to("checkpoint-1.pth.tar")
    found = find_noted(tmp_path)
    assert names_of(found.paths, tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert [notice.partition(":")[0] for notice in found.notices] == ["last.pth.tar", "model_best.pth.tar"]


def test_links_stay_as_they_are_given(tmp_path: Path) -> None:
    touch(tmp_path, "blobs/ab12", "blobs/cd34")
    (tmp_path / "pool").mkdir()
    for name, blob in (("m_0.safetensors", "ab12"), ("m_1.safetensors", "cd34")):
        (tmp_path / "pool" / name).symlink_to(Path("..") / "blobs" / blob)
    assert shown(tmp_path / "pool") == ["m_0.safetensors", "m_1.safetensors"]


@pytest.mark.parametrize("name", ["lr=1e-05 [seed 1].pt", "a*b.pt", "what?.pt", "plain.pt"])
def test_a_files_own_name_always_matches(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "other.pt")
    assert shown(tmp_path, (name,)) == [name]


def test_every_pattern_must_match(tmp_path: Path) -> None:
    touch(tmp_path, "m0.pt", "m1.pt", "log.json", "runs/m0/weights.pt")
    (tmp_path / "gone.pt").symlink_to("nowhere.pt")
    with pytest.raises(CheckpointError) as caught:
        find(tmp_path, ("m0.pt", "m2.pt", "x*.pt", "log.json", "gone.pt", "runs/m0"))
    text = str(caught.value)
    assert "5 problems" in text
    assert "'m2.pt' matches nothing; did you mean 'm1.pt'?" in text
    assert "'x*.pt' matches nothing" in text
    assert "log.json is no ingredient's checkpoint" in text
    assert "gone.pt is a link to nothing" in text
    assert "name what is in them, such as runs/m0/weights.pt" in text


def test_a_pattern_may_name_folders(tmp_path: Path) -> None:
    for step in (1, 2):
        trainer_step(tmp_path / f"checkpoint-{step}")
    assert shown(tmp_path, ("checkpoint-*",)) == ["checkpoint-1", "checkpoint-2"]
    assert shown(tmp_path, ("checkpoint-*/model.safetensors",)) == [
        "checkpoint-1/model.safetensors",
        "checkpoint-2/model.safetensors",
    ]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (("pytorch_model_fsdp_0/__0_0.distcp",), "of FSDP; join them: accelerate merge-weights"),
        (("zero_to_fp32.py", "global_step5/mp_rank_00_model_states.pt"), "of DeepSpeed; join them: python"),
        (("__0_0.distcp", ".metadata"), "dcp_to_torch"),
    ],
)
def test_shards_of_distributed_runs_name_the_command_that_joins_them(
    tmp_path: Path, files: tuple[str, ...], says: str
) -> None:
    touch(tmp_path, *(f"checkpoint-1/{file}" for file in files))
    for use in (lambda: find(tmp_path, ("checkpoint-1",)), lambda: read(tmp_path / "checkpoint-1")):
        with pytest.raises(CheckpointError, match=says):
            use()


def test_parts_without_their_index_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"whose index model\.safetensors\.index\.json is not beside it"):
        find(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "open_clip_model.safetensors",
        "anything.ckpt",
    ],
)
def test_a_folder_is_read_by_the_weights_in_it(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint-1"
    trainer_step(folder)
    (folder / "model.safetensors").unlink()
    if name.endswith(".index.json"):
        stem, suffix, *_ = name.split(".")
        parts = {key: f"{stem}-0000{number}-of-00002.{suffix}" for number, key in enumerate(STATE, 1)}
        for key, part in parts.items():
            (torch.save if suffix == "bin" else save_file)({key: STATE[key]}, folder / part)
        (folder / name).write_text(json.dumps({"weight_map": parts}))
    else:
        (save_file if name.endswith(".safetensors") else torch.save)(STATE, folder / name)
    opened = read(folder)
    assert opened.path == folder
    assert checkpoints.hash_tensors(opened.tensors) == checkpoints.hash_tensors(STATE)


def test_a_folder_without_one_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "two/a.pt", "two/b.pt", "lora/adapter_config.json", "lora/adapter_model.safetensors")
    for name, says in (
        ("empty", "found none"),
        ("two", "several checkpoints .a.pt, b.pt."),
        ("lora", "peft adapter.*--base"),
    ):
        with pytest.raises(CheckpointError, match=says):
            read(tmp_path / name)
