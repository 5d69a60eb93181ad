"""timm's models: what is told from shapes and configs, the images they get, and a run that timm loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

import mixopt
from mixopt.errors import SpecError
from mixopt.families import FamilyOptions, from_identity
from mixopt.families.timm import Timm, open_family
from tests.listening import Recorder
from tests.tiny_images import options_of, write_pool

Shapes = dict[str, tuple[int, ...]]


def shapes_of(name: str, prefix: str = "", **arguments: Any) -> Shapes:
    with torch.device("meta"):
        module = timm.create_model(name, **arguments)
    return {f"{prefix}{key}": tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def opened(
    model: str | Mapping[str, Any] | None,
    shapes: Shapes | None = None,
    size: int | None = None,
    classnames: tuple[str, ...] | None = None,
) -> Timm:
    return open_family(FamilyOptions("timm", model, classnames, None, Path(), shapes or {}, size))


def told(family: Timm) -> list[str]:
    """What is told of the weights."""
    return [text for text in family.notices if not text.startswith("images are normalised")]


def own_shapes(family: Timm) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in family.build().state_dict().items()}


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_nfnet", "test_convnext"])
@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_the_head_says_how_many_classes(name: str, prefix: str) -> None:
    family = opened(name, shapes_of(name, prefix, num_classes=7))
    assert own_shapes(family) == shapes_of(name, num_classes=7)
    assert family.identity()["model"]["num_classes"] == 7
    assert told(family) == []


def test_both_heads_of_a_distilled_model_count() -> None:
    name = "deit_tiny_distilled_patch16_224"
    found = shapes_of(name, num_classes=5)
    assert opened(name, found).identity()["model"]["num_classes"] == 5
    found["head_dist.weight"] = (6, 192)
    with pytest.raises(SpecError, match="heads of several sizes"):
        opened(name, found)


def test_class_names_say_how_many_where_no_checkpoint_is_known() -> None:
    family = opened("test_resnet", classnames=("one", "two", "three"))
    assert own_shapes(family)["fc.bias"] == (3,)
    with pytest.raises(SpecError, match=r"7 by its head, 3 by classnames"):
        opened("test_resnet", shapes_of("test_resnet", num_classes=7), classnames=("one", "two", "three"))
    with pytest.raises(SpecError, match="number of classes is not known"):
        opened("test_resnet")


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_the_names_say_how_a_vision_transformer_pools(pool: str) -> None:
    name = "vit_tiny_patch16_224"
    family = opened(name, shapes_of(name, num_classes=3, global_pool=pool))
    module: Any = family.build()
    assert module.global_pool == pool
    assert bool(told(family)) == (pool == "avg")


def test_position_embeddings_say_what_size_of_image_a_model_was_made_for() -> None:
    name = "vit_tiny_patch16_224"
    found = shapes_of(name, num_classes=3, img_size=96, global_pool="avg")
    family = opened(name, found)
    assert own_shapes(family) == found
    assert np.shape(family.encoding.encode(np.zeros((50, 60, 3), np.uint8))["images"]) == (96, 96, 3)
    assert any("96x96" in text for text in family.notices)


def test_position_embeddings_are_interpolated_to_the_size_that_is_asked_for() -> None:
    name = "vit_tiny_patch16_224"
    found = shapes_of(name, num_classes=3)
    family = opened(name, found, 96)
    assert own_shapes(family) == found
    assert any("interpolated" in text for text in family.notices)
    module = family.build().eval()
    again = from_identity(json.loads(json.dumps(family.identity())), Path(), "recipe.json")
    images = torch.rand(2, 3, 96, 96)
    twin = again.build().eval()
    twin.load_state_dict(module.state_dict())
    with torch.inference_mode():
        assert torch.equal(family.predict(module, frozenset())(images), again.predict(twin, frozenset())(images))


def test_a_size_that_the_model_cannot_take_is_refused() -> None:
    name = "vit_tiny_patch16_224"
    with pytest.raises(SpecError, match=r"--image-size 97: vit_tiny_patch16_224 does not take images of 97x97"):
        opened(name, shapes_of(name, num_classes=3), 97)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "vit_tiny_patch16_224.augreg_in21k"])
def test_images_are_made_as_timm_makes_them(name: str) -> None:
    family = opened(name, classnames=("one", "two"))
    record = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    data = resolve_model_data_config(timm.create_model(name))
    expected = create_transform(**data, is_training=False)(Image.fromarray(record))
    arrays = family.encoding.encode(record)
    found = family.encoding.collate({"images": torch.tensor(np.array(arrays["images"]))[None]})[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_size_that_is_asked_for_leaves_images_of_that_size_as_they_are() -> None:
    family = opened("test_efficientnet", classnames=("one", "two"), size=48)
    record = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert np.array_equal(family.encoding.encode(record)["images"], record)
    wide = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert np.array_equal(family.encoding.encode(wide)["images"], wide[:, 8:56])
    assert family.identity()["image_size"] == 48
    assert "image_size" not in opened("test_efficientnet", classnames=("one", "two")).identity()
    assert family.encoding.key != opened("test_efficientnet", classnames=("one", "two")).encoding.key


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("test_resnet", "conv1.0.weight", "fc"),
        ("test_efficientnet", "conv_stem.weight", "classifier"),
        ("test_vit", "patch_embed.proj.weight", "head"),
    ],
)
def test_depth_goes_from_the_stem_to_the_head(name: str, first: str, last: str) -> None:
    family = opened(name, shapes_of(name, num_classes=3))
    ordered = family.depth(sorted(shapes_of(name)))
    place = {each: number for number, each in enumerate(ordered)}
    head = [each for each in ordered if each.startswith(f"{last}.")]
    assert ordered[-len(head) :] == head
    assert place[first] < len(ordered) // 4
    running = [each for each in ordered if each.endswith("running_mean")]
    assert all(abs(place[each] - place[each.replace("running_mean", "weight")]) < 12 for each in running)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (None, "needs the name of one of timm's models"),
        ("hf-hub:timm/resnet18.a1_in1k", "a name with a colon asks a hub or another folder"),
        ("local-dir:/tmp", "a name with a colon"),
        ("test_resnett", "did you mean 'test_resnet'"),
        ("test_resnet.none", "timm has no such tag"),
        ({"num_classes": 3}, "not a config of timm's"),
        ({"architecture": "test_resnet", "model_args": {"checkpoint_path": "x.pth"}}, "has checkpoint_path"),
        ({"architecture": "test_resnet", "model_args": {"pretrained": True}}, "has pretrained"),
        ({"architecture": "test_resnet", "num_classes": 3, "model_args": {"nothing": 1}}, "timm cannot make this"),
        ({"architecture": "test_resnet", "pretrained_cfg": {"input_size": [1, 8, 8]}}, "data config cannot be used"),
        ({"architecture": "test_resnet", "pretrained_cfg": {"mean": "x"}}, "data config cannot be used"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        opened(model)


def test_a_config_file_says_classes_and_their_names(tmp_path: Path) -> None:
    config = {"architecture": "test_resnet", "num_classes": 2, "label_names": ["cat", "dog"], "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    family = open_family(FamilyOptions("timm", "config.json", None, None, tmp_path))
    assert family.classnames == ("cat", "dog")
    assert own_shapes(family) == shapes_of("test_resnet", num_classes=2)


def test_a_config_says_another_normalisation_than_the_name(tmp_path: Path) -> None:
    named = opened("test_vit", classnames=("one", "two"))
    assert any(text.startswith("images are normalised by mean [0.5, 0.5, 0.5]") for text in named.notices)
    data = {"input_size": [3, 160, 160], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": data}))
    family = open_family(FamilyOptions("timm", str(tmp_path), ("one", "two"), None, Path()))
    assert family.notices == ()
    assert family.encoding.key != named.encoding.key
    assert open_family(FamilyOptions("timm", ".", ("one", "two"), None, tmp_path)).identity() == family.identity()


def logits_of(model: nn.Module, images: Any) -> torch.Tensor:
    data = resolve_model_data_config(model)
    transform = create_transform(**data, is_training=False)
    batch = torch.stack([transform(Image.fromarray(image)) for image in images])
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(batch)
    return found.double()


@pytest.mark.parametrize(
    ("name", "size", "side"), [("test_efficientnet", 32, 32), ("test_vit", None, 40), ("test_vit", 96, 40)]
)
def test_timm_loads_the_run_folder_with_the_reports_logits(
    tmp_path: Path, name: str, size: int | None, side: int
) -> None:
    torch.manual_seed(0)
    pool = write_pool(tmp_path / "pool", timm.create_model(name, num_classes=3), prefix="net.")
    heard = Recorder()
    options = options_of(tmp_path, 3, side)
    given = {**options, "family": "timm", "model": name, "image_size": size}
    mixopt.compare(pool, methods="uniform", listener=heard.listener, **given)
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    split = np.load(options["data"]["search"])
    logits, labels = logits_of(model, split["x"]), torch.from_numpy(split["y"])
    nll = float(torch.nn.functional.cross_entropy(logits, labels))
    found = mixopt.evaluate(
        tmp_path / "run" / "model.safetensors",
        data={"search": options["data"]["search"]},
        cache=options["cache"],
        device="cpu",
    )
    (metrics,) = (each["metrics"] for each in found["splits"].values())
    assert metrics["nll"] == pytest.approx(nll, abs=1e-5)
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert any("say it with --image-size" in text for text in heard.infos) == (size != side)
