"""Which family a folder of checkpoints is of, from its config files first, then from the names of its tensors.

Reads JSON, names and shapes alone, and imports no model library: what a file says is looked up here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixopt.errors import SpecError, names
from mixopt.untrusted.texts import read_json

OPEN_CLIP_CONFIG = "open_clip_config.json"
CONFIG = "config.json"
# Width of torchvision's and timm's vision transformers to what their names call them.
_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
_LETTERS = {768: "b", 1024: "l", 1280: "h"}
# Families whose model has to be named where the weights do not tell it.
BY_NAME = ("timm", "torchvision")
# Of EfficientNets and MobileNets, ConvNeXts, Swins and MLP-Mixers.
_TIMMS = (
    "conv_stem.weight",
    "stages.0.blocks.0.conv_dw.weight",
    "layers.0.blocks.0.attn.qkv.weight",
    "blocks.0.mlp_tokens.fc1.weight",
)
# Beginnings of names of transformers' models, which need a config beside them.
_TRANSFORMERS = re.compile(
    r"(^|\.)(bert|roberta|distilbert|deberta|electra|albert|vit|deit|beit|swin|convnext|dinov2|vision_model|text_model)"
    r"\.(encoder|embeddings|transformer|layer|layernorm)\b"
)


@dataclass(frozen=True)
class Evidence:
    """What there is to tell a family by.

    Attributes:
        folder: The pool's folder.
        checkpoint: The first ingredient, a file or a folder.
        shapes: Tensor name to shape, as its file has them.
        notes: What its file says of itself beside the weights, as texts: ``arch``, ``args.model``.
    """

    folder: Path
    checkpoint: Path
    shapes: Mapping[str, tuple[int, ...]]
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recognised:
    """A family, and by what it is known.

    Attributes:
        family: Its name.
        model: What the family's ``model`` is; None where the family finds it by itself.
        reason: What told.
    """

    family: str
    model: str | None
    reason: str


def recognise(evidence: Evidence, model: str | None = None) -> Recognised:
    """The family of a folder's checkpoints, and the model.

    Args:
        evidence: What there is to tell it by.
        model: What the user says of the model, which is kept.

    Raises:
        SpecError: Nothing tells it, or more than one family may be meant; what to add.
    """
    found = recognise_family(evidence)
    if model is not None:
        return replace(found, model=model)
    if found.model is None and found.family in BY_NAME:
        raise SpecError(
            f"--model: {evidence.checkpoint} has {found.reason}, but nothing tells which model it is; name it: "
            f"--family {found.family} --model NAME"
        )
    return found


def recognise_family(evidence: Evidence) -> Recognised:
    """The family of a folder's checkpoints, and the model where it is told as well.

    Raises:
        SpecError: Nothing tells it, or more than one family may be meant; what to add.
    """
    found = _by_config(evidence) or _by_names(evidence) or _by_notes(evidence)
    if found is None:
        shown = names(evidence.shapes, 3) or "no tensors"
        raise SpecError(
            f"--family: {evidence.checkpoint} is of no model that is known by its config or its names ({shown}); name "
            "its family, or your own package.module:function"
        )
    return found


def _by_config(evidence: Evidence) -> Recognised | None:
    places = [evidence.checkpoint if evidence.checkpoint.is_dir() else evidence.checkpoint.parent, evidence.folder]
    for place in dict.fromkeys(places):
        path = place / CONFIG
        if not path.is_file():
            continue
        config = read_json(path, SpecError, cure="restore it, or name --family and --model")
        if not isinstance(config, dict):
            continue
        if isinstance(config.get("architecture"), str):
            return Recognised("timm", str(path), f"{path} names timm's architecture {config['architecture']}")
        if isinstance(kind := config.get("model_type"), str):
            return Recognised("transformers", str(place), f"{path} is of transformers' model_type {kind}")
    if not _is_classifier_of_clip(evidence) and (evidence.folder / OPEN_CLIP_CONFIG).is_file():
        return Recognised("open_clip", None, f"{evidence.folder / OPEN_CLIP_CONFIG}")
    return None


def _is_classifier_of_clip(evidence: Evidence) -> bool:
    return _has(evidence, "classification_head.weight") and _has(evidence, "visual.conv1.weight")


def _by_names(evidence: Evidence) -> Recognised | None:
    if _is_classifier_of_clip(evidence):
        return Recognised("clip_classifier", None, "a CLIP image tower and classification_head")
    if _has(evidence, "logit_scale") and any(re.search(r"(^|\.)visual\.", name) for name in evidence.shapes):
        return Recognised("open_clip", None, "visual.* and logit_scale, as CLIP has them")
    if _has(evidence, "encoder.layers.encoder_layer_0.ln_1.weight") and _has(evidence, "conv_proj.weight"):
        width, patch = _patches(evidence, "conv_proj.weight")
        letter = _LETTERS.get(width)
        named = f"vit_{letter}_{patch}" if letter else None
        return Recognised("torchvision", named, "names as torchvision's vision transformers have them")
    if _has(evidence, "patch_embed.proj.weight") and _has(evidence, "blocks.0.norm1.weight"):
        return _timm_transformer(evidence)
    if any(_has(evidence, name) for name in _TIMMS):
        return Recognised("timm", evidence.notes.get("arch"), "names as only timm's models have them")
    if found := next((name for name in evidence.shapes if _TRANSFORMERS.search(name)), None):
        raise SpecError(
            f"--family: {evidence.checkpoint} has names of transformers' models ({found}), which need their "
            f"{CONFIG} beside them; copy it from where the model was trained"
        )
    if any("lora_A" in name for name in evidence.shapes):
        raise SpecError(
            f"--family: {evidence.checkpoint} holds adapters alone (lora_A); name the folder with their "
            "adapter_config.json, and the model that they were trained on with --base"
        )
    if _has(evidence, "layer1.0.conv1.weight") and _has(evidence, "fc.weight") and not evidence.notes:
        raise SpecError(
            f"--family: {evidence.checkpoint} is a ResNet, whose names timm and torchvision share; name the library "
            "that it was trained with, and the model: --family timm --model resnet50, or --family torchvision"
        )
    return None


def _by_notes(evidence: Evidence) -> Recognised | None:
    """By what trainers write beside the weights: timm ``arch`` and ``metric``, torchvision's references ``args``."""
    arch = evidence.notes.get("arch") or evidence.notes.get("args.model") or evidence.notes.get("args.arch")
    if arch is None:
        return None
    is_timm = "version" in evidence.notes and "metric" in evidence.notes
    if is_timm or "." in arch:
        return Recognised("timm", arch, f"a checkpoint of timm's trainer, of {arch}")
    if "args.data_path" in evidence.notes or "best_acc1" in evidence.notes:
        return Recognised("torchvision", arch, f"a checkpoint of torchvision's trainer, of {arch}")
    raise SpecError(
        f"--family: {evidence.checkpoint} says that it is a {arch}, and not of which library; add --family timm, or "
        "--family torchvision"
    )


def _timm_transformer(evidence: Evidence) -> Recognised:
    arch = evidence.notes.get("arch") or evidence.notes.get("args.model")
    if arch is not None:
        return Recognised("timm", arch, f"a vision transformer of timm's, called {arch}")
    width, patch = _patches(evidence, "patch_embed.proj.weight")
    size, edge = _SIZES.get(width), _edge(evidence, patch)
    is_plain = not any(_has(evidence, f"blocks.0.{name}") for name in ("ls1.gamma", "attn.q_norm.weight", "gamma_1"))
    # The family finds other sizes of images itself, by the positions.
    named = f"vit_{size}_patch{patch}_{384 if edge == 384 else 224}" if size and edge and is_plain else None
    return Recognised("timm", named, "names as timm's vision transformers have them")


def _patches(evidence: Evidence, ending: str) -> tuple[int, int]:
    """Width of a vision transformer, and edge of its patches, by the weight ``[width, 3, edge, edge]`` of its stem."""
    shape: Any = next(shape for name, shape in evidence.shapes.items() if _ends(name, ending))
    return (shape[0], shape[-1]) if len(shape) == 4 else (0, 0)


def _edge(evidence: Evidence, patch: int) -> int | None:
    """The edge of the images, in pixels, by how many positions there are beside the class token."""
    shape = next((shape for name, shape in evidence.shapes.items() if _ends(name, "pos_embed")), ())
    count = shape[1] - 1 if len(shape) == 3 else 0
    side = round(count**0.5)
    return side * patch if count > 0 and side * side == count else None


def _has(evidence: Evidence, ending: str) -> bool:
    return any(_ends(name, ending) for name in evidence.shapes)


def _ends(name: str, ending: str) -> bool:
    """Whether a name is the ending, with or without a prefix of whole parts."""
    return name == ending or name.endswith(f".{ending}")
