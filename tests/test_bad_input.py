"""Bad input: exit code 2, one message that says where and what to do, and nothing lost. The control runs first."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from mixopt.cli import app
from mixopt.errors import LISTED
from tests.conftest import CLASSES, make_images

TRIALS = "5"
Damage = Callable[[Path], list[str]]
Case = tuple[Damage, tuple[str, ...]]
CASES: dict[str, Case] = {}


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared") / "cache"


@pytest.fixture
def mixopt(shared_cache: Path) -> Callable[..., Result]:
    """Run ``mixopt search`` on a pool; ``--out`` is ``run`` beside it unless said otherwise."""

    def run(pool: Path, *more: str, trials: str = TRIALS) -> Result:
        fixed = ["--models", str(pool), "--out", str(pool.parent / "run"), "--cache", str(shared_cache)]
        return CliRunner().invoke(app, ["search", *fixed, "--trials", trials, "--device", "cpu", "--quiet", *more])

    return run


def message_of(result: Result) -> str:
    """The one message of a command that refused its input, behind the warnings of what came before."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert [line for line in lines if line.startswith("error: ")] == lines[:1]
    assert "Traceback" not in result.stderr
    return str(result.stderr)


def snapshot(folder: Path) -> dict[str, str]:
    """Every file's hash."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def case(*says: str) -> Callable[[Damage], Damage]:
    """Register a way to damage a pool, with what the message must hold; POOL stands for the pool's path."""

    def register(damage: Damage) -> Damage:
        CASES[damage.__name__] = (damage, says)
        return damage

    return register


def edit(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(path)), path)


def edit_tensor(path: Path, name: str, value: float) -> None:
    """Set the first value of one tensor."""
    state = load_file(path)
    state[name].view(-1)[0] = value
    save_file(state, path)


def rewrite(pool: Path, old: str, new: str) -> None:
    text = (pool / "pool.toml").read_text()
    assert old in text
    (pool / "pool.toml").write_text(text.replace(old, new))


def save_split(path: Path, **changes: Any) -> list[str]:
    """A small split with some arrays replaced; None leaves one out."""
    arrays = {**make_images(24, seed=0), **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return []


def save_folder(folder: Path, count: int = 24) -> list[Path]:
    """The same images as class folders of PNGs."""
    arrays = make_images(count, seed=0)
    paths = []
    for number, (pixels, label) in enumerate(zip(arrays["x"], arrays["y"], strict=True)):
        path = folder / CLASSES[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


def columns_cut(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor if tensor.ndim < 2 else tensor[:, :1].contiguous() for name, tensor in state.items()}


# Checkpoints


@case("POOL", "no checkpoints", "correct --models")
def empty_directory(pool: Path) -> list[str]:
    shutil.rmtree(pool)
    pool.mkdir()
    return []


@case("POOL", "no such directory", "--models")
def missing_directory(pool: Path) -> list[str]:
    shutil.rmtree(pool)
    return []


@case("at least two checkpoints", "found 1 (model_2)")
def one_checkpoint_only(pool: Path) -> list[str]:
    rewrite(pool, 'base = "base.safetensors"\n', "")
    rewrite(pool, "model_*", "model_2")
    return []


@case("POOL/model_2.safetensors", "truncated", "copy it again")
def truncated_header(pool: Path) -> list[str]:
    os.truncate(pool / "model_2.safetensors", 1000)
    return []


@case("POOL/model_2.safetensors", "truncated", "copy it again")
def truncated_at_the_end(pool: Path) -> list[str]:
    os.truncate(pool / "model_2.safetensors", (pool / "model_2.safetensors").stat().st_size - 1)
    return []


@case("POOL/model_2.safetensors", "empty (0 bytes)", "copy it again")
def zero_bytes(pool: Path) -> list[str]:
    os.truncate(pool / "model_2.safetensors", 0)
    return []


@case("model_1: lacks 2 tensors that model_0 has", "visual.conv1.weight", "model_1: has 1 tensors", "visual.more")
def keys_that_differ(pool: Path) -> list[str]:
    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state["visual.more"] = state.pop("visual.conv1.weight")
        return {name: tensor for name, tensor in state.items() if name != "visual.proj"}

    edit(pool / "model_1.safetensors", change)
    return []


@case("model_2: visual.proj has shape [32, 1], expected [32, 16] as in model_0", "problems:")
def shapes_that_differ(pool: Path) -> list[str]:
    edit(pool / "model_2.safetensors", columns_cut)
    return []


@case("model_1: tensor visual.proj holds NaN")
def nan_in_one_parameter(pool: Path) -> list[str]:
    edit_tensor(pool / "model_1.safetensors", "visual.proj", float("nan"))
    return []


@case("model_3: tensor visual.ln_post.bias holds an infinite value")
def infinity_in_one_parameter(pool: Path) -> list[str]:
    edit_tensor(pool / "model_3.safetensors", "visual.ln_post.bias", float("-inf"))
    return []


@case("base: tensor visual.proj holds NaN")
def nan_in_the_base(pool: Path) -> list[str]:
    edit_tensor(pool / "base.safetensors", "visual.proj", float("nan"))
    return []


@case("base: visual.proj has shape [32, 1], expected [32, 16]")
def base_that_does_not_fit(pool: Path) -> list[str]:
    edit(pool / "base.safetensors", columns_cut)
    return []


@case("--family and --model", "visual.proj", "[32, 16]", "[32, 8]")
def model_that_does_not_fit(pool: Path) -> list[str]:
    config = json.loads((pool / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 8
    (pool / "open_clip_config.json").write_text(json.dumps(config))
    return []


@case("--base nothing.safetensors", "no such checkpoint", "POOL")
def base_that_is_missing(pool: Path) -> list[str]:
    return ["--base", "nothing.safetensors"]


# Data


@case("POOL/val.npz", "labels go from 0 to 4, expected 0 to 3", "4 classes")
def label_too_large(pool: Path) -> list[str]:
    return save_split(pool / "val.npz", y=np.arange(24) % 5)


@case("POOL/val.npz", "labels go from -1 to 2, expected 0 to 3")
def label_negative(pool: Path) -> list[str]:
    return save_split(pool / "val.npz", y=np.arange(24) % 4 - 1)


@case("POOL/shift.npz", "labels go from 0 to 4, expected 0 to 3")
def label_too_large_in_a_test_split_without_classes(pool: Path) -> list[str]:
    return save_split(pool / "shift.npz", y=np.arange(24) % 5, classes=None)


@case("POOL/val.npz", "split is empty")
def empty_split(pool: Path) -> list[str]:
    return save_split(pool / "val.npz", x=np.zeros((0, 16, 16, 3), np.uint8), y=np.zeros(0, np.int64))


@case("POOL/images", "split is empty", "one folder of images per class")
def empty_folder_split(pool: Path) -> list[str]:
    (pool / "images").mkdir()
    return ["--data", str(pool / "images")]


@case("POOL/test.npz", "POOL/val.npz", "give another --test or --data")
def search_and_test_split_identical(pool: Path) -> list[str]:
    shutil.copy(pool / "val.npz", pool / "test.npz")
    return []


@case("POOL/images/red/", ".png", "does not decode", "replace or remove it")
def image_that_does_not_decode(pool: Path) -> list[str]:
    broken = next(path for path in save_folder(pool / "images") if path.parent.name == "red")
    broken.write_bytes(broken.read_bytes()[:60])
    return ["--data", str(pool / "images")]


@case("POOL/images", "expected red, green, blue, grey", "found blue, green, red", "missing: grey")
def folder_split_without_a_class(pool: Path) -> list[str]:
    save_folder(pool / "images")
    shutil.rmtree(pool / "images" / "grey")
    return ["--data", str(pool / "images")]


@case("POOL/val.npz", "expected red, green, blue, grey", "found red, green, blue, pink", "unknown: pink")
def classes_that_differ(pool: Path) -> list[str]:
    return save_split(pool / "val.npz", classes=np.array(["red", "green", "blue", "pink"]))


@case("POOL/val.npz", "classes are red, green, blue, blue", "correct them")
def classes_that_repeat(pool: Path) -> list[str]:
    return save_split(pool / "val.npz", classes=np.array(["red", "green", "blue", "blue"]))


@case("POOL/val.npz", "expected classes as text [n_classes]", "<U3 []")
def classes_that_are_one_text(pool: Path) -> list[str]:
    return save_split(pool / "val.npz", classes=np.array("red"))


@case("POOL/val.npz", "expected x uint8 [n, h, w, 3], found float32 [24, 16, 16, 3]")
def x_of_wrong_dtype(pool: Path) -> list[str]:
    return save_split(pool / "val.npz", x=np.zeros((24, 16, 16, 3), np.float32))


@case("POOL/val.npz", "expected x uint8 [n, h, w, 3], found uint8 [24, 3, 16, 16]")
def x_with_channels_first(pool: Path) -> list[str]:
    return save_split(pool / "val.npz", x=np.zeros((24, 3, 16, 16), np.uint8))


@case("POOL/val.npz", "lacks x", "found y, classes")
def x_missing(pool: Path) -> list[str]:
    return save_split(pool / "val.npz", x=None)


@case("POOL/val.npz", "lacks x and y", "found images")
def x_and_y_missing(pool: Path) -> list[str]:
    np.savez(pool / "val.npz", images=np.zeros(3))
    return []


@case("POOL/val.npz", "expected y integer [24], found float64 [24]")
def y_of_wrong_dtype(pool: Path) -> list[str]:
    return save_split(pool / "val.npz", y=np.zeros(24))


@case("POOL/val.npz", "expected y integer [24], found int64 [23]")
def y_of_wrong_length(pool: Path) -> list[str]:
    return save_split(pool / "val.npz", y=np.zeros(23, np.int64))


@case("POOL/val.npz", "not an .npz file", "numpy.savez")
def split_that_is_text(pool: Path) -> list[str]:
    (pool / "val.npz").write_text("red, green")
    return []


@case("POOL/val.npz", "not an .npz file", "numpy.savez")
def split_that_is_npy(pool: Path) -> list[str]:
    with (pool / "val.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    return []


@case("POOL/val.npz", "not an .npz file, or only a part of one")
def split_that_is_truncated(pool: Path) -> list[str]:
    os.truncate(pool / "val.npz", 3000)
    return []


@case("POOL/val.npz", "not a readable .npz file", "CRC")
def split_with_a_flipped_byte(pool: Path) -> list[str]:
    content = bytearray((pool / "val.npz").read_bytes())
    content[3000] ^= 255
    (pool / "val.npz").write_bytes(content)
    return []


@case("POOL/val.npz", "not a readable .npz file")
def split_with_objects(pool: Path) -> list[str]:
    return save_split(pool / "val.npz", y=np.array([{} for _ in range(24)]))


@case("nothing.npz", "no such file or folder", "--data")
def split_that_is_missing(pool: Path) -> list[str]:
    return ["--data", "nothing.npz"]


@case("POOL/pool.toml", "expected .npz", "folder")
def split_of_another_kind(pool: Path) -> list[str]:
    return ["--data", str(pool / "pool.toml")]


# pool.toml


@case("POOL/pool.toml: classname: unknown key", "did you mean 'classnames'?", "Known: ")
def unknown_key(pool: Path) -> list[str]:
    rewrite(pool, "classnames", "classname")
    return []


@case("POOL/pool.toml: data.serach: unknown key", "did you mean 'search'?")
def unknown_key_in_data(pool: Path) -> list[str]:
    rewrite(pool, "search =", "serach =")
    return ["--data", str(pool / "val.npz")]


@case("POOL/pool.toml", "not valid TOML", "line 3")
def invalid_toml(pool: Path) -> list[str]:
    rewrite(pool, 'base = "base.safetensors"', "base = base.safetensors")
    return []


@case("POOL/pool.toml: ingredients: input should be a list of texts (found 0.5)", "POOL/pool.toml: data.test", "2 prob")
def wrong_types(pool: Path) -> list[str]:
    rewrite(pool, 'ingredients = ["model_*.safetensors"]', "ingredients = 0.5")
    text = (pool / "pool.toml").read_text().partition("[data.test]")[0]
    (pool / "pool.toml").write_text(f'{text}test = "test.npz"\n')
    return []


@case("POOL/pool.toml: data: input should be a table", "found 'val.npz'")
def data_that_is_text(pool: Path) -> list[str]:
    text = (pool / "pool.toml").read_text().partition("[data]")[0]
    (pool / "pool.toml").write_text(f'{text}data = "val.npz"\n')
    return []


@case("POOL/pool.toml", "does not name one", "--data")
def no_selection_split(pool: Path) -> list[str]:
    rewrite(pool, 'search = "val.npz"', "")
    return []


@case("classnames", "open_clip", "needs the class names")
def no_class_names(pool: Path) -> list[str]:
    rewrite(pool, f"classnames = {json.dumps(CLASSES)}\n", "")
    return []


@case("templates", "expected {}", "'a photo.'")
def template_without_a_place(pool: Path) -> list[str]:
    return ["--templates", "a {}.", "--templates", "a photo."]


@pytest.mark.parametrize("name", CASES)
def test_damaged_pool_is_refused(clip_pool: Path, mixopt: Callable[..., Result], name: str) -> None:
    damage, says = CASES[name]
    more = damage(clip_pool)
    before = snapshot(clip_pool.parent)
    message = message_of(mixopt(clip_pool, *more))
    for part in says:
        assert part.replace("POOL", str(clip_pool)) in message
    assert snapshot(clip_pool.parent) == before, "a refused pool leaves nothing behind"


def test_control_untouched_pool_runs(clip_pool: Path, mixopt: Callable[..., Result]) -> None:
    before = snapshot(clip_pool)
    result = mixopt(clip_pool)
    assert result.exit_code == 0, result.output
    assert (clip_pool.parent / "run" / "model.safetensors").is_file()
    assert snapshot(clip_pool) == before


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--family", "openclip"], ["--family", "'openclip'", "did you mean 'open_clip'?", "package.module:function"]),
        (["--sampler", "cmase"], ["--sampler", "did you mean 'cmaes'?", "tpe"]),
        (["--metric", "acuracy"], ["--metric", "did you mean 'accuracy'?", "nll"]),
        (["--groups", "blok"], ["--groups", "did you mean 'block'?", "whole", "number of groups"]),
        (["--model", "ViT-B32"], ["--model", "did you mean 'ViT-B-32'?"]),
        (["--start", "gredy"], ["--start", "did you mean 'greedy'?", "recipe.json"]),
        (["--dtype", "float16"], ["--dtype", "did you mean 'fp16'?"]),
        (["--device", "gpu"], ["--device gpu", "expected auto, cpu, cuda"]),
        (["--device", "cuda:99"], ["--device cuda:99", "CUDA devices", "--device cpu"]),
        (["--greedy-rule", "loose"], ["--greedy-rule", "'at-least' or 'strict'", "'loose'"]),
        (["--trials", "0"], ["--trials", "greater than or equal to 1", "found 0"]),
        (["--limit", "-3"], ["--limit", "found -3"]),
        (["--ingredients", "0"], ["--ingredients", "found 0"]),
        (["--ingredients", "nothing*"], ["ingredients 'nothing*' matches nothing"]),
        (["--radius", "2"], ["--radius", "less than or equal to 1"]),
        (["--study", "nothing.toml"], ["nothing.toml", "cannot be read"]),
        (["--test", "search=x.npz"], ["--test", "cannot be called 'search'"]),
        (
            ["--trials", "0", "--metric", "acuracy", "--family", "clip", "--groups", "blocks", "--dtype", "fp23"],
            ["5 problems", "--trials", "--metric", "--family", "--groups", "--dtype"],
        ),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_option_is_refused(
    clip_pool_template: Path,
    tmp_path: Path,
    mixopt: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    says: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    message = message_of(mixopt(clip_pool_template, "--out", str(tmp_path / "run"), *options))
    for part in says:
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_sampler_that_cannot_be_imported(clip_pool: Path, mixopt: Callable[..., Result]) -> None:
    message = message_of(mixopt(clip_pool, "--sampler", "no.such:Class"))
    for part in ("--sampler no.such:Class", "cannot import", "package.module:Class"):
        assert part in message


# Checkpoints, continued


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("kind", ["torch", "bare"])
def test_pickle_with_code_is_never_run(clip_pool: Path, mixopt: Callable[..., Result], kind: str) -> None:
    mark = clip_pool.parent / "was-run"
    state: dict[str, Any] = dict(load_file(clip_pool / "model_1.safetensors"))
    state["extra"] = Hostile(mark)
    path = clip_pool / "model_1.pt"
    if kind == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps({"extra": Hostile(mark)}, protocol=2))
        pickle.loads(path.read_bytes())
        assert mark.exists(), "control: the payload works where it is unpickled"
        mark.unlink()
    (clip_pool / "model_1.safetensors").unlink()
    rewrite(clip_pool, "model_*.safetensors", "model_*")
    message = message_of(mixopt(clip_pool))
    assert str(path) in message
    assert "was not opened" in message
    assert "convert it" in message
    assert not mark.exists()


def test_many_problems_are_listed_up_to_a_limit(clip_pool: Path, mixopt: Callable[..., Result]) -> None:
    for number in (1, 2, 3):
        edit(clip_pool / f"model_{number}.safetensors", columns_cut)
    cut = sum(tensor.ndim >= 2 for tensor in load_file(clip_pool / "base.safetensors").values())
    message = message_of(mixopt(clip_pool))
    # Three of five checkpoints agree, and so the others are the odd ones.
    assert f"{2 * cut} problems" in message
    assert message.count("\n  - ") == LISTED
    assert f"... and {2 * cut - LISTED} more" in message


def test_problems_of_different_kinds_stand_in_one_message(clip_pool: Path, mixopt: Callable[..., Result]) -> None:
    os.truncate(clip_pool / "model_0.safetensors", 0)
    edit_tensor(clip_pool / "model_1.safetensors", "visual.proj", float("nan"))
    message = message_of(mixopt(clip_pool))
    for part in ("2 problems", "0 bytes", "visual.proj holds NaN"):
        assert part in message


def test_baseline_that_is_not_finite(clip_pool: Path, mixopt: Callable[..., Result]) -> None:
    def overflow(state: dict[str, Tensor]) -> dict[str, Tensor]:
        huge = {name for name in state if name.startswith("visual.") and state[name].ndim >= 2}
        return {name: tensor.sign() * 1e30 if name in huge else tensor for name, tensor in state.items()}

    edit(clip_pool / "model_1.safetensors", overflow)
    before = snapshot(clip_pool)
    message = message_of(mixopt(clip_pool))
    for part in ("model_1", "77 of 77 losses", "not finite"):
        assert part in message
    assert snapshot(clip_pool) == before
    (clip_pool / "model_1.safetensors").unlink()
    assert mixopt(clip_pool).exit_code == 0, "the same command runs without the ingredient"


# pool.toml and npz, continued


def test_missing_pool_toml_prints_one_to_fill_in(clip_pool: Path, mixopt: Callable[..., Result]) -> None:
    (clip_pool / "pool.toml").unlink()
    shutil.copy(clip_pool / "shift.npz", clip_pool / "shift v2.1.npz")
    message = message_of(mixopt(clip_pool))
    assert f"Write this to {clip_pool / 'pool.toml'}" in message
    text = message.partition("filled in:\n")[2]
    printed = tomllib.loads(text)
    assert printed["family"] == "open_clip"
    assert printed["base"] == "base.safetensors"
    assert printed["data"]["search"] == "val.npz"
    assert printed["data"]["test"] == {"shift": "shift.npz", "shift v2.1": "shift v2.1.npz", "test": "test.npz"}
    (clip_pool / "pool.toml").write_text(text.replace('["...", "..."]', json.dumps(CLASSES)))
    assert mixopt(clip_pool).exit_code == 0, "filled in, it works"


def test_classes_in_another_order_are_matched_by_name(
    clip_pool: Path, tmp_path: Path, shared_cache: Path, mixopt: Callable[..., Result]
) -> None:
    reports = []
    with np.load(clip_pool / "val.npz") as arrays:
        images, labels = arrays["x"], arrays["y"]
    order = np.array([2, 0, 3, 1])
    for number, split in enumerate((clip_pool / "val.npz", tmp_path / "permuted.npz")):
        if number:
            np.savez(split, x=images, y=np.argsort(order)[labels], classes=np.array(CLASSES)[order])
        # The fixed order follows the classes: by all samples, and without folds, every choice is the same, but for what
        # is learned by gradient from a few of them after others.
        more = ["--data", str(split), "--json", "--out", str(tmp_path / f"run{number}"), "--confirm", "0"]
        more += ["--sampler", "cmaes", "--start", "greedy", "--space", "simplex"]
        result = mixopt(clip_pool, *more)
        assert result.exit_code == 0, result.output
        reports.append(json.loads(result.stdout))
    for one, other in zip(reports[0]["methods"], reports[1]["methods"], strict=True):
        if one["gradient_images"]:
            continue
        assert one["metrics"].keys() == other["metrics"].keys()
        for name, metrics in one["metrics"].items():
            assert metrics == pytest.approx(other["metrics"][name], abs=1e-6)
    common = ["--models", str(clip_pool), "--cache", str(shared_cache), "--device", "cpu"]
    told = CliRunner().invoke(
        app, ["evaluate", str(clip_pool / "model_0.safetensors"), "--data", str(tmp_path / "permuted.npz"), *common]
    )
    assert told.exit_code == 0, told.output
    assert "permuted.npz" in told.stderr
    assert "matched by name" in told.stderr


# The run folder


@pytest.fixture(scope="session")
def finished_template(clip_pool_template: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool with a finished run beside it."""
    folder = tmp_path_factory.mktemp("finished")
    pool = Path(shutil.copytree(clip_pool_template, folder / "pool"))
    fixed = ["--models", str(pool), "--out", str(folder / "run"), "--cache", str(shared_cache)]
    result = CliRunner().invoke(app, ["search", *fixed, "--trials", TRIALS, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def finished(finished_template: Path, tmp_path: Path) -> Path:
    """A fresh copy of a pool whose run is finished; its path is the pool's, the run is beside it."""
    return Path(shutil.copytree(finished_template, tmp_path / "finished")) / "pool"


def _remove(pool: Path) -> list[str]:
    (pool / "model_3.safetensors").unlink()
    return []


def _add(pool: Path) -> list[str]:
    shutil.copy(pool / "model_0.safetensors", pool / "model_4.safetensors")
    edit_tensor(pool / "model_4.safetensors", "visual.proj", 0.5)
    return []


def _retrain(pool: Path) -> list[str]:
    edit_tensor(pool / "model_2.safetensors", "visual.proj", 0.5)
    return []


def _other_base(pool: Path) -> list[str]:
    edit_tensor(pool / "base.safetensors", "visual.proj", 0.5)
    return []


def _no_base(pool: Path) -> list[str]:
    rewrite(pool, 'base = "base.safetensors"\n', "")
    return []


def _other_data(pool: Path) -> list[str]:
    return save_split(pool / "val.npz")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_remove, "checkpoint model_3 was"),
        (_add, "checkpoint model_4 was null"),
        (_retrain, "checkpoint model_2 was"),
        (_other_base, "checkpoint base was"),
        (_no_base, 'base was "base", now null'),
        (_other_data, "data validation was"),
        (lambda _: ["--limit", "50"], "data validation was"),
        (lambda _: ["--groups", "whole"], 'groups was "auto"'),
        (lambda _: ["--metric", "nll"], 'metric was "accuracy", now "nll"'),
        (lambda _: ["--sampler", "tpe"], 'sampler was "surface", now "tpe"'),
        (lambda _: ["--seed", "1"], "seed was 0, now 1"),
        (lambda _: ["--templates", "one {}."], "family was"),
    ],
)
def test_run_folder_of_another_study(finished: Path, mixopt: Callable[..., Result], change: Damage, says: str) -> None:
    run = finished.parent / "run"
    more = change(finished)
    before = snapshot(run)
    message = message_of(mixopt(finished, *more, trials="6"))
    assert f"{run} holds another study" in message
    assert says in message
    assert f"--start {run / 'recipe.json'}" in message
    assert snapshot(run) == before, "the old run is untouched"


def test_starting_anew_from_the_old_recipe(finished: Path, mixopt: Callable[..., Result]) -> None:
    run = finished.parent / "run"
    old = json.loads((run / "recipe.json").read_text())
    more = ["--out", str(finished.parent / "new"), "--start", str(run / "recipe.json"), "--groups", "2", "--json"]
    result = mixopt(finished, *more)
    assert result.exit_code == 0, result.output
    found = {row["name"]: row["search"] for row in json.loads(result.stdout)["methods"]}
    assert found["search"] >= old["scores"]["search"]["accuracy"]


def test_metric_of_a_run_that_never_began_is_free(clip_pool: Path, mixopt: Callable[..., Result]) -> None:
    message_of(mixopt(clip_pool, "--groups", "99"))
    result = mixopt(clip_pool, "--metric", "nll", "--json", trials="8")
    assert result.exit_code == 0, result.output
    found = {row["name"]: row["search"] for row in json.loads(result.stdout)["methods"]}
    assert found["search"] <= found["individual"], "nll is minimised: the search never ends above its start"


def test_output_folder_that_holds_something_else(clip_pool: Path, mixopt: Callable[..., Result]) -> None:
    run = clip_pool.parent / "run"
    run.mkdir()
    (run / "thesis.tex").write_text("precious")
    message = message_of(mixopt(clip_pool))
    for part in (str(run), "not a run folder", "thesis.tex", "--out"):
        assert part in message
    assert [path.name for path in run.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["pool.toml", "pool.toml/run"])
def test_output_folder_that_is_a_file(clip_pool: Path, mixopt: Callable[..., Result], place: str) -> None:
    before = snapshot(clip_pool.parent)
    message = message_of(mixopt(clip_pool, "--out", str(clip_pool / place)))
    assert str(clip_pool / place) in message
    assert "choose --out" in message
    assert snapshot(clip_pool.parent) == before


def test_cache_that_is_a_file(clip_pool: Path, mixopt: Callable[..., Result]) -> None:
    message = message_of(mixopt(clip_pool, "--cache", str(clip_pool / "pool.toml")))
    assert str(clip_pool / "pool.toml") in message
    assert "could not write" in message


HOLD = """
import sys
from pathlib import Path
from mixopt.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(finished: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run."""
    run = str(finished.parent / "run")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, run], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_second_process_on_the_same_run(
    finished: Path, mixopt: Callable[..., Result], held: subprocess.Popen[str]
) -> None:
    run = finished.parent / "run"
    before = snapshot(run)
    message = message_of(mixopt(finished, trials="6"))
    for part in (str(run), "another process", f"process {held.pid} on", "--out"):
        assert part in message
    assert snapshot(run) == before
    held.kill()
    held.wait()
    assert mixopt(finished, trials="6").exit_code == 0, "the lock of a killed process is free"


@pytest.mark.parametrize("file", ["run.toml", "recipe.json", "model.safetensors", "report.json"])
def test_full_disk_while_saving(
    clip_pool: Path, mixopt: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    replace = os.replace

    def full(source: str, target: Path) -> None:
        if target.name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("mixopt.files.os.replace", full)
        message = message_of(mixopt(clip_pool))
    run = clip_pool.parent / "run"
    for part in (str(run / file), "No space left on device", "Nothing already computed is lost"):
        assert part in message
    assert not list(run.glob(".*.tmp")), "no temporary file stays behind"
    assert not (run / file).exists()
    assert mixopt(clip_pool).exit_code == 0, "the same command continues"
    assert (run / "report.json").is_file()


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes: a write then fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("size", "file"), [(400_000, "model.safetensors"), (15_000, "study.journal")])
def test_files_that_may_not_grow(clip_pool: Path, mixopt: Callable[..., Result], size: int, file: str) -> None:
    run, whole = clip_pool.parent / "run", clip_pool.parent / "whole"
    # Another run first: with the splits decoded, the limit meets the run folder.
    assert mixopt(clip_pool, "--out", str(whole), trials="8").exit_code == 0
    with files_limited_to(size):
        message = message_of(mixopt(clip_pool, trials="8"))
    for part in (str(run), "File too large", "Nothing already computed is lost"):
        assert part in message
    assert not (run / file).exists() or (run / file).stat().st_size <= size
    result = mixopt(clip_pool, trials="8")
    assert result.exit_code == 0, result.output
    for name in ("recipe.json", "model.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), "the same as a run that was not stopped"


def test_full_disk_while_decoding(clip_pool: Path, tmp_path: Path, mixopt: Callable[..., Result]) -> None:
    cache = tmp_path / "cache"
    with files_limited_to(20_000):
        message = message_of(mixopt(clip_pool, "--cache", str(cache)))
    for part in ("could not write", str(cache), "File too large"):
        assert part in message
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert mixopt(clip_pool, "--cache", str(cache)).exit_code == 0


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from mixopt.cli import main
sys.argv[1:] = sys.argv[2:]
main()
"""


def test_full_disk_in_a_process_of_its_own(clip_pool: Path, tmp_path: Path) -> None:
    fixed = ["--models", str(clip_pool), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    command = [sys.executable, "-c", LIMITED, "100000", "search", *fixed, "--trials", TRIALS, "--device", "cpu", "-q"]
    stopped = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert stopped.returncode == 2, stopped.stderr
    assert stopped.stdout == ""
    assert "Traceback" not in stopped.stderr
    assert f"error: could not write {tmp_path / 'run' / 'model.safetensors'}: File too large" in stopped.stderr
