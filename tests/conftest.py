"""Tiny pools for every test: random weights, real formats, nothing downloaded."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file
from torch import Tensor

from mixopt.stages import confirm
from mixopt.values.groups import Groups
from mixopt.values.mix import Mix
from mixopt.weights.pool import Pool, open_pool
from tests import postgres
from tests.faults.summary import pytest_terminal_summary as pytest_terminal_summary

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# A busy machine is not a failing property.
settings.register_profile("mixopt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mixopt")


def pytest_collection_finish() -> None:
    """Modules and test items stay until the end: no collection need walk them, and each row of a search makes one."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def pages() -> None:
    """Runs in this process draw their pages, which takes seconds: only for tests that look at them."""


@pytest.fixture(autouse=True)
def _no_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pages" not in request.fixturenames:
        monkeypatch.setattr("mixopt.runs.search.write_page", lambda *given: None)
        monkeypatch.setattr("mixopt.runs.compare.write_page", lambda *given: None)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts, also where a shell started the tests in the background and so told them to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def permissions_bind() -> bool:
    """Whether a file that nobody may read cannot be read: not so for most who are root."""
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0)
        return not os.access(file.name, os.R_OK)


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A PostgreSQL server, one for all tests; a test that stops it starts it again."""
    with postgres.open_server() as opened:
        yield opened


CLASSES = ("red", "green", "blue", "grey")
SIZE = 16
CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIZE, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}
POOL_TOML = f"""\
family = "open_clip"
model = "open_clip_config.json"
base = "base.safetensors"
ingredients = ["model_*.safetensors"]
classnames = {json.dumps(CLASSES)}
templates = ["a photo of a {{}}.", "a {{}} thing."]

[data]
search = "val.npz"

[data.test]
test = "test.npz"
shift = "shift.npz"
"""


def make_images(count: int, seed: int) -> dict[str, Any]:
    """Noisy images tinted by class: ``x`` uint8 [n, 16, 16, 3], ``y`` int64 [n]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(CLASSES), count)
    tints = np.array([[160, 60, 60], [60, 160, 60], [60, 60, 160], [110, 110, 110]])
    noise = random.normal(0, 60, (count, SIZE, SIZE, 3))
    images = np.clip(tints[labels][:, None, None, :] + noise, 0, 255).astype(np.uint8)
    return {"x": images, "y": labels.astype(np.int64), "classes": np.array(CLASSES)}


def write_clip_pool(folder: Path, ingredients: int = 4) -> Path:
    """A complete open_clip pool: config, base, ingredients that differ in the image tower, three splits."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP_CONFIG))
    (folder / "pool.toml").write_text(POOL_TOML)
    torch.manual_seed(0)
    base = open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in base.items()}, folder / "base.safetensors")
    for number in range(ingredients):
        torch.manual_seed(number + 1)
        tuned = {
            name: tensor + 0.05 * torch.randn_like(tensor) if name.startswith("visual.") else tensor
            for name, tensor in base.items()
        }
        save_file({n: t.contiguous() for n, t in tuned.items()}, folder / f"model_{number}.safetensors")
    for number, name in enumerate(("val", "test", "shift")):
        np.savez(folder / f"{name}.npz", **make_images(96, seed=number))
    return folder


@pytest.fixture(scope="session")
def clip_pool_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_pool(tmp_path_factory.mktemp("clip") / "pool")


@pytest.fixture
def clip_pool(clip_pool_template: Path, tmp_path: Path) -> Path:
    """A fresh copy of the tiny open_clip pool that a test may damage."""
    return Path(shutil.copytree(clip_pool_template, tmp_path / "pool"))


@pytest.fixture
def run_options(tmp_path: Path) -> dict[str, Any]:
    """Options that keep a run inside the test's folder."""
    return {"cache": tmp_path / "cache", "out": tmp_path / "run", "device": "cpu"}


State = dict[str, Tensor]


def random_states(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[State]:
    """State dicts of a small residual network, alike in names and shapes, with a frozen tensor and a counter."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "stem.weight": (6, 3),
        "blocks.0.mlp.weight": (6, 6),
        "blocks.0.mlp.bias": (6,),
        "blocks.1.mlp.weight": (6, 6),
        "blocks.1.mlp.bias": (6,),
        "head.weight": (4, 6),
        "scale": (),
    }
    frozen = torch.randn(5, generator=generator).to(dtype)
    return [
        {
            **{name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()},
            "frozen": frozen,
            "steps": torch.tensor(7),
        }
        for _ in range(count)
    ]


@pytest.fixture
def make_pool(tmp_path: Path) -> Callable[..., Pool]:
    """Write state dicts to files and open them as a pool."""

    def make(states: list[State], base: State | None = None, **options: Any) -> Pool:
        folder = tmp_path / "states"
        folder.mkdir(exist_ok=True)
        paths = {}
        for number, state in enumerate(states):
            paths[f"model_{number}"] = folder / f"model_{number}.safetensors"
            save_file(state, paths[f"model_{number}"])
        base_file = None
        if base is not None:
            base_file = ("base", folder / "base.safetensors")
            save_file(base, base_file[1])
        return open_pool(paths, base_file, **options)

    return make


def random_mix(groups: Groups, columns: tuple[str, ...], seed: int = 0, affine: bool = False) -> Mix:
    """Random rows that sum to 1; with ``affine``, some entries are negative."""
    random = np.random.default_rng(seed)
    rows = random.dirichlet(np.ones(len(columns)), size=len(groups))
    if affine:
        rows = rows * 2 - 1 / len(columns)
    return Mix(groups, columns, rows / rows.sum(axis=1, keepdims=True))


@pytest.fixture
def finalists(monkeypatch: pytest.MonkeyPatch) -> list[list[Mix]]:
    """What each search hands to the last choice, filled as it runs."""
    given: list[list[Mix]] = []
    real = confirm.choose_candidate

    def watched(objective: Any, start: Mix, candidates: list[Mix]) -> Any:
        given.append(candidates)
        return real(objective, start, candidates)

    monkeypatch.setattr(confirm, "choose_candidate", watched)
    return given
