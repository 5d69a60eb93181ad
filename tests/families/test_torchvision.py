"""torchvision's models: classes from the head, images as its weights want them, and a run that it loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import ShuffleNet_V2_X0_5_Weights, get_model, get_model_weights

import mixopt
from mixopt.errors import SpecError
from mixopt.families import FamilyOptions, from_identity
from mixopt.families.torchvision import Torchvision, open_family
from tests.tiny_images import options_of, write_pool

Shapes = dict[str, tuple[int, ...]]


def shapes_of(name: str, classes: int, prefix: str = "") -> Shapes:
    try:
        with torch.device("meta"):
            module = get_model(name, weights=None, num_classes=classes)
    except NotImplementedError:
        module = get_model(name, weights=None, num_classes=classes)
    return {f"{prefix}{key}": tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def opened(model: Any, shapes: Shapes | None = None, size: int | None = None) -> Torchvision:
    return open_family(FamilyOptions("torchvision", model, None, None, Path(), shapes or {}, size))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("squeezenet1_1", "classifier"),
        ("regnet_y_400mf", "fc"),  # which reads a random number while it is made
        ("mobilenet_v3_small", "classifier"),
        ("swin_t", "head"),
        ("vit_b_32", "heads"),
    ],
)
def test_the_head_says_how_many_classes_and_comes_last(name: str, head: str) -> None:
    family = opened(name, shapes_of(name, 7, "module."))
    assert family.identity()["model"] == {"architecture": name, "num_classes": 7}
    ordered = family.depth(sorted(shapes_of(name, 7)))
    assert ordered[-1].startswith(f"{head}.")
    assert not ordered[0].startswith(f"{head}.")


def test_images_are_made_as_the_default_weights_want_them() -> None:
    name = "shufflenet_v2_x0_5"
    family = opened(name, shapes_of(name, 3))
    record = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    expected = ShuffleNet_V2_X0_5_Weights.DEFAULT.transforms()(Image.fromarray(record))
    arrays = family.encoding.encode(record)
    found = family.encoding.collate({"images": torch.tensor(np.array(arrays["images"]))[None]})[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_size_that_is_asked_for_leaves_images_of_that_size_as_they_are() -> None:
    name = "shufflenet_v2_x0_5"
    family = opened(name, shapes_of(name, 3), 48)
    wide = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert np.array_equal(family.encoding.encode(wide)["images"], wide[:, 8:56])
    assert family.encoding.key != opened(name, shapes_of(name, 3)).encoding.key
    again = from_identity(json.loads(json.dumps(family.identity())), Path(), "recipe.json")
    assert again.encoding.key == family.encoding.key


def test_a_size_that_the_model_cannot_take_is_refused() -> None:
    with pytest.raises(SpecError, match=r"--image-size 64: vit_b_32 does not take images of that size"):
        opened("vit_b_32", shapes_of("vit_b_32", 3), 64)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (None, "needs the name of a model"),
        ("resnet19", "unknown torchvision classifier 'resnet19'"),
        ("fcn_resnet50", "unknown torchvision classifier"),
        ({"architecture": "resnet18", "weights": "DEFAULT"}, "not a model of torchvision's"),
        ({"architecture": "resnet18", "num_classes": 0}, "not a model of torchvision's"),
        ("resnet18", "number of classes is not known"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        opened(model)


def test_torchvision_takes_the_runs_weights_with_the_reports_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    name = "shufflenet_v2_x0_5"
    pool = write_pool(tmp_path / "pool", get_model(name, weights=None, num_classes=3))
    options = options_of(tmp_path, 3, 32)
    mixopt.compare(pool, methods="uniform", family="torchvision", model=name, image_size=32, **options)
    model = get_model(name, weights=None, num_classes=3)
    model.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    split, made = np.load(options["data"]["search"]), get_model_weights(name).DEFAULT.transforms()
    images = torch.from_numpy(split["x"]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (made.mean, made.std))
    with torch.inference_mode():
        logits = model.eval()((images - mean) / std).double()
    labels = torch.from_numpy(split["y"])
    found = mixopt.evaluate(
        tmp_path / "run" / "model.safetensors",
        data={"search": options["data"]["search"]},
        cache=options["cache"],
        device="cpu",
    )
    (metrics,) = (each["metrics"] for each in found["splits"].values())
    assert metrics["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-5)
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
