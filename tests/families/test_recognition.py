"""Which family a folder is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixopt.errors import SpecError
from mixopt.families.recognition import Evidence, Recognised, recognise, recognise_family

Shapes = dict[str, tuple[int, ...]]
CLIP: Shapes = {"visual.conv1.weight": (768, 3, 32, 32), "visual.transformer.resblocks.0.ln_1.weight": (768,)}
TIMM: Shapes = {
    "cls_token": (1, 1, 384),
    "pos_embed": (1, 197, 384),
    "patch_embed.proj.weight": (384, 3, 16, 16),
    "blocks.0.norm1.weight": (384,),
    "head.weight": (10, 384),
}
TORCHVISION: Shapes = {
    "class_token": (1, 1, 768),
    "conv_proj.weight": (768, 3, 32, 32),
    "encoder.layers.encoder_layer_0.ln_1.weight": (768,),
    "heads.head.weight": (10, 768),
}
RESNET: Shapes = {"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 3, 3), "fc.weight": (10, 512)}


def told(folder: Path, shapes: Shapes, notes: dict[str, str] | None = None, **files: Any) -> tuple[str, str | None]:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    found = recognise(Evidence(folder, folder / "m.pt", shapes, notes or {}))
    assert found.reason
    return found.family, found.model


def prefixed(shapes: Shapes) -> Shapes:
    return {f"model.{name}": shape for name, shape in shapes.items()}


@pytest.mark.parametrize("change", [dict, prefixed], ids=["plain", "with a prefix"])
@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({**CLIP, "logit_scale": ()}, ("open_clip", None)),
        ({**CLIP, "classification_head.weight": (10, 512)}, ("clip_classifier", None)),
        (TIMM, ("timm", "vit_small_patch16_224")),
        ({**TIMM, "pos_embed": (1, 577, 384)}, ("timm", "vit_small_patch16_384")),
        ({**TIMM, "pos_embed": (1, 37, 384)}, ("timm", "vit_small_patch16_224")),
        (TORCHVISION, ("torchvision", "vit_b_32")),
    ],
    ids=["open_clip", "clip_classifier", "timm", "timm at 384", "timm at 96", "torchvision"],
)
def test_names_and_shapes_tell(tmp_path: Path, change: Any, shapes: Shapes, expected: tuple[str, str | None]) -> None:
    assert told(tmp_path, change(shapes)) == expected


def test_config_files_tell_first(tmp_path: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    assert told(tmp_path, TIMM, config=config) == ("transformers", str(tmp_path))
    assert told(tmp_path, TIMM, config={"architecture": "vit_x"}) == ("timm", str(tmp_path / "config.json"))


def test_the_config_of_open_clip_tells(tmp_path: Path) -> None:
    assert told(tmp_path, {"anything": (1,)}, open_clip_config={}) == ("open_clip", None)
    classifier = {**CLIP, "classification_head.weight": (10, 512)}
    assert told(tmp_path, classifier, open_clip_config={}) == ("clip_classifier", None)


def test_the_folder_of_a_checkpoint_is_looked_into_before_the_pools(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_x"}))
    assert recognise(Evidence(tmp_path, folder, {})).family == "transformers"


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({"arch": "resnet50", "version": "2", "metric": "0.7"}, ("timm", "resnet50")),
        ({"arch": "resnet50.a1_in1k"}, ("timm", "resnet50.a1_in1k")),
        ({"args.model": "resnet18", "args.data_path": "/d"}, ("torchvision", "resnet18")),
        ({"arch": "resnet18", "best_acc1": "0.5"}, ("torchvision", "resnet18")),
    ],
)
def test_what_a_trainer_wrote_beside_the_weights_tells(
    tmp_path: Path, notes: dict[str, str], expected: tuple[str, str]
) -> None:
    assert told(tmp_path, RESNET, notes) == expected


@pytest.mark.parametrize(
    ("shapes", "notes", "says"),
    [
        (RESNET, {}, "names timm and torchvision share.*--family timm --model resnet50, or --family torchvision"),
        (RESNET, {"arch": "resnet18"}, "says that it is a resnet18, and not of which library"),
        ({"bert.encoder.layer.0.output.dense.weight": (2, 2)}, {}, r"need their config\.json beside them"),
        ({"x.lora_A.weight": (8, 2)}, {}, r"adapters alone.*adapter_config\.json"),
        ({"stem.weight": (2, 2)}, {}, "of no model that is known"),
        ({}, {}, "no tensors"),
        (
            {**TIMM, "blocks.0.ls1.gamma": (384,)},
            {},
            "--model: .*--family timm --model NAME",
        ),
        (
            {**TIMM, "patch_embed.proj.weight": (400, 3, 16, 16)},
            {},
            "--model: .*--family timm --model NAME",
        ),
    ],
)
def test_what_is_in_doubt_is_asked_for(tmp_path: Path, shapes: Shapes, notes: dict[str, str], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        told(tmp_path, shapes, notes)


@pytest.mark.parametrize("name", ["conv_stem.weight", "module.stages.0.blocks.0.conv_dw.weight"])
def test_names_of_timms_own_tell_the_family_and_ask_for_the_model(tmp_path: Path, name: str) -> None:
    evidence = Evidence(tmp_path, tmp_path / "m.pt", {name: (8, 3, 3, 3)})
    assert recognise_family(evidence) == Recognised("timm", None, "names as only timm's models have them")
    with pytest.raises(SpecError, match="--family timm --model NAME"):
        recognise(evidence)
    assert recognise(evidence, "mine").model == "mine"


def test_what_the_user_says_of_the_model_stays(tmp_path: Path) -> None:
    assert recognise(Evidence(tmp_path, tmp_path / "m.pt", TIMM), "vit_mine").model == "vit_mine"


def test_a_config_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SpecError, match=r"config\.json"):
        told(tmp_path, TIMM)
