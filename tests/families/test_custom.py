"""The custom family: any model, by import path."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mixopt
from mixopt.errors import MixoptError, SpecError
from mixopt.families import Family, FamilyOptions, from_identity, open_family
from mixopt.families.custom import PLAIN
from tests.conftest import CLASSES, make_images
from tests.listening import Recorder
from tests.tiny_family import Mlp

MODULE = "tests.tiny_family"


def opened(function: str, model: str | None = None, classnames: Sequence[str] | None = None) -> Family:
    given = None if classnames is None else tuple(classnames)
    return open_family(FamilyOptions(f"{MODULE}:{function}", model, given, None, Path()))


def test_module_and_predict() -> None:
    family = opened("plain", classnames=("a", "b", "c"))
    module = family.build()
    images = torch.rand(5, 3, 16, 16)
    logits = family.predict(module, frozenset())(images)
    assert logits.shape == (5, 3)
    assert torch.equal(logits, module(images))
    assert family.encoding.key == PLAIN.key
    assert family.classnames == ("a", "b", "c")


def test_plain_preprocess_scales_to_one() -> None:
    encoding = opened("plain").encoding
    for size in (4, 6):
        image = np.full((size, size, 3), 51, dtype=np.uint8)
        arrays = encoding.encode(image)
        assert np.array_equal(arrays["images"], image), "images of any size stay as they are"
        images = encoding.collate({"images": torch.from_numpy(image)[None]})
        torch.testing.assert_close(images, torch.full((1, 3, size, size), 0.2))


def test_module_predict_and_preprocess() -> None:
    family = opened("with_preprocess", model="7")
    image = np.full((16, 20, 3), 255, dtype=np.uint8)
    arrays = {name: torch.from_numpy(np.array(array))[None] for name, array in family.encoding.encode(image).items()}
    images = family.encoding.collate(arrays)
    torch.testing.assert_close(images, torch.ones(1, 3, 8, 8))
    assert family.predict(family.build(), frozenset())(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    assert family.encoding.key == "8x8 ['classnames', 'model', 'templates']", "all that it takes is given"


def test_function_without_arguments() -> None:
    assert isinstance(opened("nothing_asked", model="anything").build(), Mlp)


def test_each_build_is_a_new_module() -> None:
    family = opened("plain")
    assert family.build() is not family.build()


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("only_a_module", r"expected \(module, predict\), .* or \(module, predict, encoding\), found Mlp"),
        ("no_module", r"expected \(module, predict\)"),
        ("four_values", r"expected \(module, predict\)"),
        ("predictor_that_is_none", "predict must be callable"),
        ("preprocess_that_is_a_tuple", "what follows it a mixopt.Preprocess or a mixopt.Encoding"),
        ("NOT_A_FUNCTION", "expected a function, found a int"),
        ("no_such_function", "cannot import it .* expected package.module:function"),
    ],
)
def test_wrong_functions(function: str, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        opened(function)
    assert f"--family {MODULE}:{function}" in str(caught.value)


def test_module_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"--family my\.own:model: cannot import") as caught:
        open_family(FamilyOptions("my.own:model", None, None, None, tmp_path))
    assert str(tmp_path) in str(caught.value), "says where it looked"


def test_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_model_of_today.py").write_text("from tests.tiny_family import nothing_asked\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    family = open_family(FamilyOptions("my_model_of_today:nothing_asked", None, None, None, tmp_path))
    assert isinstance(family.build(), Mlp)


def test_identity_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = "from tests.tiny_family import Mlp\ndef make():\n    return Mlp(4), lambda module: module\n"
    identities = []
    for name, more in (("first_of_two", ""), ("second_of_two", "# edited\n")):
        (tmp_path / f"{name}.py").write_text(text + more)
        identities.append(open_family(FamilyOptions(f"{name}:make", None, None, None, tmp_path)).identity())
    assert identities[0]["source"] != identities[1]["source"]
    assert json.loads(json.dumps(identities[0])) == identities[0]


def test_identity_round_trip() -> None:
    family = opened("with_preprocess", model="3", classnames=("a", "b", "c"))
    again = from_identity(json.loads(json.dumps(family.identity())), Path(), "recipe.json", family.identity()["name"])
    assert again.identity() == family.identity()
    assert again.build().state_dict().keys() == family.build().state_dict().keys()


@pytest.mark.parametrize("trusted", [None, "tests.tiny_family:other"])
def test_a_function_that_a_file_alone_names_is_not_imported(trusted: str | None) -> None:
    identity = {"name": "payload:run", "model": None, "classnames": None, "templates": None, "source": "x"}
    with pytest.raises(SpecError, match=r"model\.safetensors: names the function 'payload:run'.*--family payload:run"):
        from_identity(identity, Path(), "model.safetensors", trusted)


# A whole search


@pytest.fixture
def mlp_pool(tmp_path: Path) -> Path:
    """Four fine-tunings of one small network, by a few steps of gradient descent each."""
    folder = tmp_path / "pool"
    folder.mkdir()
    torch.manual_seed(0)
    base = Mlp(len(CLASSES))
    save_file(base.state_dict(), folder / "base.safetensors")
    for number in range(4):
        data = make_images(64, seed=10 + number)
        tuned = Mlp(len(CLASSES))
        tuned.load_state_dict(base.state_dict())
        images = torch.from_numpy(data["x"]).permute(0, 3, 1, 2).float() / 255
        optimizer = torch.optim.Adam(tuned.parameters(), lr=0.01)
        for _ in range(15):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(tuned(images), torch.from_numpy(data["y"])))
            optimizer.step()
        save_file(tuned.state_dict(), folder / f"model_{number}.safetensors")
    for number, name in enumerate(("val", "test")):
        np.savez(folder / f"{name}.npz", **make_images(96, seed=number))
    (folder / "pool.toml").write_text(
        f'family = "{MODULE}:plain"\nbase = "base.safetensors"\nclassnames = {json.dumps(CLASSES)}\n'
        '[data]\nsearch = "val.npz"\n[data.test]\ntest = "test.npz"\n'
    )
    return folder


def test_search_with_a_custom_family(mlp_pool: Path, run_options: dict[str, Any]) -> None:
    result = mixopt.search(mlp_pool, trials=8, metric="nll", groups="tensor", **run_options)
    rows = {row["name"]: row["search"] for row in result.report.as_dict()["methods"]}
    assert rows["search"] <= min(rows["individual"], rows["uniform"], rows["greedy"]) + 1e-6 < rows["base"]
    assert result.report.as_dict()["trials"] == {"complete": 8}
    assert result.recipe.family["name"] == f"{MODULE}:plain"

    model = Mlp(len(CLASSES))
    model.load_state_dict(load_file(result.folder / "model.safetensors"))
    data = make_images(96, seed=0)
    with torch.inference_mode():
        logits = model(torch.from_numpy(data["x"]).permute(0, 3, 1, 2).float() / 255)
        nll = nn.functional.cross_entropy(logits, torch.from_numpy(data["y"])).item()
    assert rows["search"] == pytest.approx(nll, abs=1e-5), "the user's own code gives the saved model's score"

    again = mixopt.evaluate(
        result.folder / "model.safetensors",
        verify=True,
        family=f"{MODULE}:plain",
        data={"search": mlp_pool / "val.npz"},
        cache=run_options["cache"],
    )
    assert again["splits"]["val"]["metrics"]["nll"] == pytest.approx(rows["search"], abs=1e-6)


def test_logits_in_a_mapping_are_scored_and_learned_from(mlp_pool: Path, run_options: dict[str, Any]) -> None:
    options = {**run_options, "methods": ["uniform", "learned", "ensemble"], "precision": "fp32", "batch_size": 17}
    heard = Recorder()
    plain, found = (
        mixopt.compare(
            mlp_pool, family=f"{MODULE}:{family}", listener=heard.listener, **{**options, "out": mlp_pool / family}
        )
        for family in ("plain", "in_a_dict")
    )
    rows = {row.name: row for row in plain.report.made}
    assert {row.name: (row.search, row.test) for row in found.report.made} == {
        name: (row.search, row.test) for name, row in rows.items()
    }
    assert set(rows) == {"base", "uniform", "learned", "ensemble"}
    said = "predict of --family gives a dict (features, logits), no tensor: its logits are taken"
    assert heard.infos.count(said) == 1


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("one_logit", r"^--family: expected a tensor of logits .* \[\d+, classes\] .* found a tensor of shape \[\d+\]"),
        ("no_numbers", r"losses on validation are not finite; .* predict of --family gives logits that are no numbers"),
    ],
)
def test_logits_that_are_none(family: str, says: str, mlp_pool: Path, run_options: dict[str, Any]) -> None:
    with pytest.raises(MixoptError, match=says):
        mixopt.search(mlp_pool, family=f"{MODULE}:{family}", trials=5, **run_options)


def test_labels_beyond_the_models_logits(mlp_pool: Path, run_options: dict[str, Any]) -> None:
    from mixopt.errors import DataError

    data = make_images(30, seed=0)
    np.savez(mlp_pool / "val.npz", x=data["x"], y=np.arange(30) % 6)
    text = (mlp_pool / "pool.toml").read_text().replace(f"classnames = {json.dumps(CLASSES)}\n", "")
    (mlp_pool / "pool.toml").write_text(text)
    with pytest.raises(DataError, match=r"labels go up to 5, but the model gives logits of shape \[batch, 4\]"):
        mixopt.search(mlp_pool, trials=5, **run_options)


def test_checkpoints_of_another_model(mlp_pool: Path, run_options: dict[str, Any]) -> None:
    from mixopt.errors import PoolError

    with pytest.raises(PoolError, match=r"layers\.2\.weight: the model expects \[3, 12\]"):
        mixopt.search(mlp_pool, family=f"{MODULE}:with_preprocess", model="3", trials=5, **run_options)
