"""The run folder: what design promises lies in it, and open_clip itself loads and scores it the same."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import mixopt
from mixopt import PoolError
from mixopt.runs.search import SearchResult
from mixopt.stages.plan import LEARNED
from mixopt.weights.saving import load_recipe

ZOO = Path(__file__).parents[3] / "shared" / "zoo"


@pytest.fixture(scope="module")
def searched(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    folder = tmp_path_factory.mktemp("run")
    return mixopt.search(
        clip_pool_template,
        out=folder / "run",
        cache=folder / "cache",
        trials=8,
        sampler="random",
        device="cpu",
        space="simplex",
        signal="metric",
        confirm=0,
    )


def open_clip_outcomes(folder: Path, split: Path, classnames: list[str], templates: list[str]) -> Any:
    """Predictions and losses by open_clip's own zero-shot path: its factory, its transform, its classifier."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    classifier = open_clip.build_zero_shot_classifier(model, tokenizer, classnames, templates)
    with np.load(split) as arrays:
        images, labels = arrays["x"], torch.from_numpy(arrays["y"])
    logits = []
    with torch.no_grad():
        for start in range(0, len(images), 250):
            batch = torch.stack([transform(Image.fromarray(image)) for image in images[start : start + 250]])
            logits.append(model.logit_scale.exp() * model.encode_image(batch, normalize=True) @ classifier)
    every = torch.cat(logits)
    return float((every.argmax(1) == labels).float().mean()), float(torch.nn.functional.cross_entropy(every, labels))


def test_report_says_where_time_went(searched: SearchResult) -> None:
    spent = searched.report.as_dict()["time"]
    assert {"decode", "open", "fuse", "forward", "cache", "optimizer", "storage", "other"} <= set(spent)
    assert sum(spent.values()) == pytest.approx(searched.report.as_dict()["wall_seconds"], abs=0.05)
    assert spent["forward"] > spent["fuse"] > 0


def test_open_clip_loads_the_run_folder_and_scores_the_same(searched: SearchResult, clip_pool_template: Path) -> None:
    pool = tomllib.loads((clip_pool_template / "pool.toml").read_text())
    row = searched.report.as_dict()["methods"][-1]
    for split, name in (("val", "validation"), ("test", "test"), ("shift", "shift")):
        accuracy, nll = open_clip_outcomes(
            searched.folder, clip_pool_template / f"{split}.npz", pool["classnames"], pool["templates"]
        )
        assert accuracy == pytest.approx(row["metrics"][name]["accuracy"], abs=1e-6)
        assert nll == pytest.approx(row["metrics"][name]["nll"], abs=1e-4)


def test_run_folder_holds_what_is_promised(searched: SearchResult) -> None:
    names = {path.name for path in searched.folder.iterdir()}
    promised = {"study.journal", "run.toml", "recipe.json", "model.safetensors", "report.json", "run.log"}
    assert promised | {"open_clip_config.json"} <= names
    assert json.loads((searched.folder / "report.json").read_text()) == searched.report.as_dict()
    assert "trial 7" in (searched.folder / "run.log").read_text()
    spec = tomllib.loads((searched.folder / "run.toml").read_text())
    assert spec["trials"] == 8
    assert Path(spec["models"]).is_absolute()


def test_report_rows_and_counts(searched: SearchResult) -> None:
    report = searched.report.as_dict()
    rows = {row["name"]: row for row in report["methods"]}
    assert list(rows) == ["base", "individual", "uniform", "greedy", LEARNED, "search"]
    assert report["metric"] == "accuracy"
    assert report["best"] == "search"
    assert rows["individual"]["evaluations"] == 4
    assert rows["greedy"]["evaluations"] == 7
    assert rows["uniform"]["evaluations"] == 0
    assert rows["uniform"]["ingredients"] == 4
    assert rows[LEARNED]["evaluations"] == 3, "passes with gradients"
    # From nothing: greedy's seven, the uniform soup, learning and the score of what was learned, and every trial but
    # the start, which is one of those.
    assert rows["search"]["evaluations"] == 7 + 1 + (3 + 1) + 7
    assert rows["search"]["images"] == 96 * 19
    assert rows["search"]["search"] >= max(rows[name]["search"] for name in ("individual", "uniform", "greedy"))
    assert all(set(row["test"]) == {"test", "shift"} for row in rows.values())
    assert set(rows["search"]["mcnemar_p"]) == {"individual", "greedy"}


def test_the_saved_file_scores_as_its_trial(searched: SearchResult) -> None:
    check = searched.report.as_dict()["verification"]
    assert check["predictions_differing"] == 0
    assert check["difference"] == 0
    assert check["trial_score"] == searched.recipe.scores["search"]["accuracy"]


def test_recipe_has_no_paths_and_stands_in_the_model(searched: SearchResult, clip_pool_template: Path) -> None:
    text = (searched.folder / "recipe.json").read_text()
    assert str(clip_pool_template) not in text
    assert str(searched.folder) not in text
    assert load_recipe(searched.folder / "model.safetensors") == load_recipe(searched.folder / "recipe.json")


def test_build_gives_the_same_bytes_wherever_the_ingredients_are(
    searched: SearchResult, clip_pool_template: Path, tmp_path: Path
) -> None:
    wanted = (searched.folder / "model.safetensors").read_bytes()
    built = mixopt.build(searched.folder / "recipe.json", tmp_path / "one.safetensors", verify=True)
    assert built.read_bytes() == wanted
    # Elsewhere, under other names, beside a file that is no checkpoint, from the model instead of the recipe.
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "notes.pt").write_bytes(b"not a checkpoint")
    for number, path in enumerate(sorted(clip_pool_template.glob("*.safetensors"), reverse=True)):
        shutil.copy(path, moved / f"renamed_{number}.safetensors")
    again = mixopt.build(searched.folder / "model.safetensors", tmp_path / "two.safetensors", models=moved)
    assert again.read_bytes() == wanted


def test_build_names_the_checkpoints_it_lacks(searched: SearchResult, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception, match=r"were not found in .*empty.*--models"):
        mixopt.build(searched.folder / "recipe.json", tmp_path / "x.safetensors", models=tmp_path / "empty")
    assert not (tmp_path / "x.safetensors").exists()


def test_verify_notices_other_weights(searched: SearchResult, clip_pool_template: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.safetensors"
    content = bytearray((searched.folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    options: dict[str, Any] = {"data": {"search": clip_pool_template / "val.npz"}, "cache": tmp_path}
    mixopt.evaluate(searched.folder / "model.safetensors", verify=True, **options)
    with pytest.raises(PoolError, match="not those of the recipe"):
        mixopt.evaluate(changed, verify=True, **options)


def test_dtype_is_saved_and_scored_as_asked(clip_pool_template: Path, tmp_path: Path) -> None:
    result = mixopt.search(
        clip_pool_template, out=tmp_path / "run", cache=tmp_path / "c", trials=2, dtype="bf16", device="cpu"
    )
    from safetensors.torch import load_file

    saved = load_file(result.folder / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert result.report.as_dict()["verification"]["predictions_differing"] == 0


@pytest.mark.skipif(not ZOO.is_dir(), reason="the development zoo is not beside this checkout")
def test_on_a_real_pool(tmp_path: Path) -> None:
    with np.load(ZOO / "cinic.npz") as arrays:
        np.savez(tmp_path / "few.npz", x=arrays["x"][:300], y=arrays["y"][:300])
    result = mixopt.search(
        ZOO,
        out=tmp_path / "run",
        cache=tmp_path / "c",
        trials=3,
        limit=300,
        confirm=0,
        precision="fp32",  # open_clip runs in it below
        sampler="random",
        device="cpu",
        data={"test": {"few": tmp_path / "few.npz"}},
    )
    check = result.report.as_dict()["verification"]
    assert check["predictions_differing"] <= 0.001 * 300
    pool = tomllib.loads((ZOO / "pool.toml").read_text())
    accuracy, nll = open_clip_outcomes(result.folder, tmp_path / "few.npz", pool["classnames"], pool["templates"])
    row = result.report.as_dict()["methods"][-1]["metrics"]["few"]
    assert (accuracy, nll) == (pytest.approx(row["accuracy"], abs=1e-6), pytest.approx(row["nll"], abs=1e-4))
    rows = {entry["name"]: entry["search"] for entry in result.report.as_dict()["methods"]}
    assert rows["base"] < rows["individual"] <= rows["greedy"]


@pytest.mark.parametrize("with_base", [True, False])
def test_inspect_measures_distances_and_cosines(with_base: bool, clip_pool: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    if not with_base:
        (clip_pool / "base.safetensors").unlink()
        text = (clip_pool / "pool.toml").read_text()
        (clip_pool / "pool.toml").write_text(text.replace('base = "base.safetensors"\n', ""))
    found = mixopt.inspect(clip_pool, cache=tmp_path)
    assert found["problems"] == []
    files = [load_file(clip_pool / f"model_{number}.safetensors") for number in range(4)]
    moving = [name for name in files[0] if name.startswith("visual.")]
    weights = torch.stack([torch.cat([file[name].reshape(-1) for name in moving]) for file in files]).double()
    centre = weights.mean(0)
    if with_base:
        base = load_file(clip_pool / "base.safetensors")
        centre = torch.cat([base[name].reshape(-1) for name in moving]).double()
    for number, item in enumerate(found["ingredients"]):
        assert item["distance"] == pytest.approx(float((weights[number] - centre).norm()))
        wanted = float(torch.cosine_similarity(weights[number], centre, dim=0)) if with_base else None
        assert item["base_cosine"] == (pytest.approx(wanted) if with_base else None)
    deltas = weights - centre
    wanted_cosine = float(torch.cosine_similarity(deltas[0], deltas[1], dim=0))
    assert found["cosines"][0][1] == pytest.approx(wanted_cosine, abs=1e-6)
    assert found["distances"][2][3] == pytest.approx(float((weights[2] - weights[3]).norm()))
