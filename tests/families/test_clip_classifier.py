"""CLIP image towers with a linear head: released layouts, what shapes tell, and a run that a plain wrapper loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mixopt
from mixopt.errors import PoolError, SpecError
from mixopt.families import FamilyOptions, from_identity
from mixopt.families.clip_classifier import ClipClassifier, open_family
from mixopt.families.open_clip_config import CONFIG_NAME, image_tower
from mixopt.families.open_clip_vision import architecture_of
from tests.conftest import CLASSES, CLIP_CONFIG
from tests.listening import Recorder
from tests.tiny_images import options_of

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
LEFT_OVER = {
    "model.positional_embedding": (12, 8),
    "model.token_embedding.weight": (50, 8),
    "model.ln_final.weight": (8,),
    "model.ln_final.bias": (8,),
    "model.text_projection": (8, 16),
    "model.logit_scale": (),
}
CONSTANTS = {"model.input_resolution": 224, "model.context_length": 77, "model.vocab_size": 49408}
LAYOUTS = {"soups": "", "wise_ft": "image_encoder."}


class Reference(nn.Module):
    """As the papers' code has it: the tower of open_clip's own CLIP, the norm, a linear layer."""

    def __init__(self, folder: Path, bias: bool = True) -> None:
        super().__init__()
        self.model: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        for name in ("transformer", "token_embedding", "ln_final", "positional_embedding", "text_projection"):
            delattr(self.model, name)
        del self.model.logit_scale
        self.classification_head = nn.Linear(16, len(CLASSES), bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.visual(images)
        found: Tensor = self.classification_head(features / features.norm(dim=-1, keepdim=True))
        return found


@pytest.fixture(scope="module")
def config_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    (folder / CONFIG_NAME).write_text(json.dumps(CLIP_CONFIG))
    return folder


@pytest.fixture
def reference(config_folder: Path) -> Reference:
    torch.manual_seed(1)
    made = Reference(config_folder)
    with torch.no_grad():
        made.classification_head.weight.mul_(5)
    return made.eval()


def opened(
    model: str | Mapping[str, Any] | None = None,
    shapes: Shapes | None = None,
    folder: Path = Path("/nowhere"),
    **more: Any,
) -> ClipClassifier:
    given = {"classnames": None, "templates": None, **more}
    return open_family(FamilyOptions("clip_classifier", model, folder=folder, shapes=shapes or {}, **given))


def write_pool(folder: Path, start: Reference, layout: str) -> None:
    """Two checkpoints as the released ones, under the layout's names: with leftovers of the text tower."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(2):
        state = {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in start.state_dict().items()
        }
        state |= {name: torch.randn(shape, generator=generator) for name, shape in LEFT_OVER.items()}
        state |= {name: torch.tensor(value) for name, value in CONSTANTS.items()}
        prefix = LAYOUTS[layout]
        state = {f"{prefix if name.startswith('model.') else ''}{name}": tensor for name, tensor in state.items()}
        torch.save(state, folder / f"model_{number}.pt")


def tower_shapes(width: int, patch: int, image: int, layers: int, embed: int) -> Shapes:
    """Of a plain vision transformer, by its names within the tower."""
    shapes: Shapes = {
        "conv1.weight": (width, 3, patch, patch),
        "class_embedding": (width,),
        "positional_embedding": ((image // patch) ** 2 + 1, width),
        "proj": (width, embed),
    }
    shapes |= {f"{norm}.{part}": (width,) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")}
    for number in range(layers):
        shapes[f"transformer.resblocks.{number}.mlp.c_fc.weight"] = (4 * width, width)
        shapes[f"transformer.resblocks.{number}.attn.in_proj_weight"] = (3 * width, width)
    return shapes


B_32 = tower_shapes(768, 32, 224, 12, 512)


def classifier_shapes(tower: Shapes, classes: int = 1000, prefix: str = "") -> Shapes:
    shapes = {f"{prefix}model.visual.{name}": shape for name, shape in tower.items()}
    width = tower["proj"][1]
    return shapes | {"classification_head.weight": (classes, width), "classification_head.bias": (classes,)}


# The model


def test_logits_are_the_papers(reference: Reference) -> None:
    family = opened(CLIP_CONFIG, classnames=CLASSES)
    module = family.build().eval()
    module.load_state_dict(reference.state_dict())
    images = torch.randn(5, 3, 16, 16)
    with torch.inference_mode():
        logits, expected = family.predict(module, frozenset())(images), reference(images)
    assert expected.std() > 0.1, "control: the logits are not all alike"
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_images_are_made_as_clip_makes_them() -> None:
    family = opened("ViT-B-32-quickgelu", classnames=CLASSES)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    stored = family.encoding.encode(image)["images"]
    given = family.encoding.collate({"images": torch.from_numpy(np.array(stored)[None])})
    expected = image_transform(224, is_train=False)(Image.fromarray(image))
    torch.testing.assert_close(given[0], expected)


def test_the_head_comes_last() -> None:
    family = opened(CLIP_CONFIG, classnames=CLASSES)
    ordered = family.depth(sorted(family.build().state_dict()))
    assert ordered[-2:] == ["classification_head.bias", "classification_head.weight"]
    assert ordered.index("model.visual.conv1.weight") < ordered.index("model.visual.transformer.resblocks.0.ln_1.bias")


def test_a_head_without_a_bias() -> None:
    shapes = classifier_shapes(B_32, 4)
    del shapes["classification_head.bias"]
    family = opened({**CLIP_CONFIG}, shapes)
    assert "classification_head.bias" not in family.build().state_dict()
    again = from_identity(json.loads(json.dumps(family.identity())), Path(), "recipe.json")
    assert "classification_head.bias" not in again.build().state_dict()


def test_a_tower_of_timms_has_no_segments() -> None:
    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
    family = opened({"embed_dim": 16, "vision_cfg": vision}, classnames=CLASSES)
    module = family.build().eval()
    assert family.segments(module) is None
    with torch.inference_mode():
        assert family.predict(module, frozenset())(torch.randn(2, 3, 32, 32)).shape == (2, 4)


# What shapes tell


@pytest.mark.parametrize("prefix", ["", "image_encoder.", "module.image_encoder."])
def test_the_released_soups_are_openais_by_their_shapes(prefix: str) -> None:
    family = opened(None, classifier_shapes(B_32, prefix=prefix))
    identity = family.identity()["model"]
    assert identity["model_cfg"] == open_clip.get_model_config("ViT-B-32-quickgelu")
    assert identity["classification_head"] == {"num_classes": 1000, "bias": True}
    (told,) = family.notices
    assert "ViT-B-32-quickgelu is taken" in told
    assert "--model ViT-B-32 says otherwise" in told
    assert opened("ViT-B-32", classifier_shapes(B_32, prefix=prefix)).notices == ()


@pytest.mark.parametrize(
    ("tower", "name", "is_told"),
    [
        (tower_shapes(768, 16, 224, 12, 512), "ViT-B-16-quickgelu", True),
        (tower_shapes(1024, 14, 336, 24, 768), "ViT-L-14-336-quickgelu", True),
        (tower_shapes(1280, 14, 224, 32, 1024), "ViT-H-14", True),
        (tower_shapes(768, 32, 256, 12, 512), "ViT-B-32-256", False),
    ],
)
def test_architectures_are_told_by_their_shapes(tower: Shapes, name: str, is_told: bool) -> None:
    found, told = architecture_of(tower)
    assert found == name
    assert (told is not None) == is_told


def test_a_residual_network_is_told_by_its_shapes() -> None:
    config = open_clip.get_model_config("RN50-quickgelu")
    shapes = {name: tuple(tensor.shape) for name, tensor in image_tower({"model_cfg": config}).state_dict().items()}
    assert architecture_of(shapes)[0] == "RN50-quickgelu"


@pytest.mark.parametrize(
    "tower",
    [
        tower_shapes(768, 32, 288, 12, 512),
        {**B_32, "attn_pool.query": (1, 768)},
        {name: shape for name, shape in B_32.items() if not name.startswith("ln_pre")},
        {"conv1.weight": (3,)},
    ],
)
def test_a_tower_that_no_architecture_has_asks_for_its_model(tower: Shapes) -> None:
    with pytest.raises(SpecError, match=r"--model: no registered open_clip architecture .*--model NAME"):
        opened(None, {f"model.visual.{name}": shape for name, shape in tower.items()})


def test_no_tower_at_all_asks_for_its_model() -> None:
    with pytest.raises(SpecError, match=r"--model: the checkpoints have no visual\.conv1\.weight"):
        opened(None, {"classification_head.weight": (4, 16)})


def test_the_number_of_classes_is_in_doubt() -> None:
    with pytest.raises(SpecError, match="1000 by its head, 4 by classnames"):
        opened(None, classifier_shapes(B_32), classnames=CLASSES)
    with pytest.raises(SpecError, match="number of classes is not known"):
        opened(CLIP_CONFIG)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"image_size": 32}, "--image-size: "),
        ({"templates": ("a {}",)}, "templates: .* no prompts"),
        ({"model": {**CLIP_CONFIG, "classification_head": {"num_classes": 0}}}, "--model: .*classification_head"),
        ({"model": {**CLIP_CONFIG, "classification_head": {"num_classes": 10**14}}, "classnames": None}, "memory"),
        ({"model": {"vision_cfg": {}}}, "embed_dim"),
    ],
)
def test_options_that_cannot_be_used(more: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        opened(**{"model": CLIP_CONFIG, "classnames": CLASSES, **more})


# Whole runs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_folder_loads_as_its_checkpoints_do(
    layout: str, tmp_path: Path, config_folder: Path, reference: Reference
) -> None:
    pool = tmp_path / "pool"
    write_pool(pool, reference, layout)
    (pool / CONFIG_NAME).write_text(json.dumps(CLIP_CONFIG))
    recorder, options = Recorder(), options_of(tmp_path, len(CLASSES), 16)
    result = mixopt.compare(pool, methods=("uniform",), **options, listener=recorder.listener)
    told = "\n".join(recorder.infos)
    assert "recognised clip_classifier" in told
    assert "6 tensors of CLIP beside its image tower" in told
    assert "3 constants that the model has no place for are left out" in told

    state = load_file(result.folder / "model.safetensors")
    prefix = LAYOUTS[layout]
    assert all(name.startswith((f"{prefix}model.visual.", "classification_head.")) for name in state)
    loaded = Reference(result.folder).eval()
    loaded.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    with np.load(tmp_path / "test.npz") as split:
        images = (torch.from_numpy(split["x"]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        labels = torch.from_numpy(split["y"])
    with torch.inference_mode():
        logits = loaded(images)
    given = {name: options[name] for name in ("data", "device", "cache")}
    metrics = mixopt.evaluate(result.folder / "model.safetensors", **given)["splits"]["test"]["metrics"]
    assert metrics["nll"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(dim=1) == labels).double().mean().item())

    built = mixopt.build(result.folder / "recipe.json", tmp_path / "again.safetensors", verify=True)
    assert built.read_bytes() == (result.folder / "model.safetensors").read_bytes()
    again = opened(None, folder=result.folder)
    assert again.identity()["model"]["classification_head"] == {"num_classes": len(CLASSES), "bias": True}


def test_weights_that_are_not_clips_are_refused(tmp_path: Path, reference: Reference) -> None:
    pool = tmp_path / "pool"
    write_pool(pool, reference, "soups")
    for path in pool.glob("*.pt"):
        state = torch.load(path, weights_only=True) | {"adapter.weight": torch.randn(3)}
        save_file(state, path.with_suffix(".safetensors"))
        path.unlink()
    (pool / CONFIG_NAME).write_text(json.dumps(CLIP_CONFIG))
    with pytest.raises(PoolError, match=r"adapter\.weight"):
        mixopt.compare(pool, methods=("uniform",), **options_of(tmp_path, len(CLASSES), 16))
