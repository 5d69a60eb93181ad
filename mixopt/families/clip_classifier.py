"""CLIP image towers with a linear head: the checkpoints of model soups, and of WiSE-FT, as state dicts.

Follows ``utils.ModelWrapper`` of https://github.com/mlfoundations/model-soups (``model.visual.*`` and
``classification_head.*``), and ``ImageClassifier`` of https://github.com/mlfoundations/wise-ft, whose names begin with
``image_encoder.model.visual.*``: the head is applied to the tower's features divided by their L2 norm. What such files
keep of CLIP's text tower plays no part in the logits, and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from mixopt.errors import SpecError, names
from mixopt.families import FamilyOptions
from mixopt.families.image_encoding import image_encoding
from mixopt.families.image_heads import check_memory, count_classes
from mixopt.families.open_clip_config import CONFIG_NAME, completed, found_config, image_tower, preprocess_of
from mixopt.families.open_clip_vision import Shapes, architecture_of, segments_of, steps_of
from mixopt.scoring.evaluator import Predict
from mixopt.untrusted import refusing
from mixopt.untrusted.values import validated
from mixopt.values.groups import depth_order
from mixopt.values.samples import Encoding
from mixopt.weights.checkpoints import Checkpoint
from mixopt.weights.checkpoints.naming import without

_TOWER, _HEAD, _BIAS = "model.visual.", "classification_head.weight", "classification_head.bias"
# WiSE-FT's image encoder holds CLIP as its model.
_ENCODER = "image_encoder."
_STEM = "visual.conv1.weight"
# What a config has of the head, beside open_clip's own keys.
_HEAD_KEY = "classification_head"


class _Head(BaseModel):
    """The linear layer, as a recipe has it."""

    model_config = ConfigDict(extra="forbid")

    num_classes: Annotated[int, Field(ge=1)] | None = None
    bias: bool | None = None


class _Classifier(nn.Module):
    """Modules by the names of the released checkpoints."""

    def __init__(self, visual: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"visual": visual})
        self.classification_head = head


class ClipClassifier:
    """The family; see `mixopt.families.Family`."""

    def __init__(self, options: FamilyOptions) -> None:
        if options.image_size is not None:
            raise SpecError("--image-size: a CLIP's images have the size that its config says; leave it out")
        if options.templates:
            raise SpecError("templates: family clip_classifier has a linear head and no prompts; leave templates out")
        options, assumed = _with_model(options)
        self._notices = () if assumed is None else (assumed,)
        found = found_config(options)
        with refusing(SpecError, "--model", found=f"{_HEAD_KEY} cannot be used", cure="correct the config"):
            said = validated(_Head, found.pop(_HEAD_KEY, {}))
        self._config = completed(found)
        self._classnames = options.classnames
        self._width = self._config["model_cfg"].get("embed_dim")
        if not isinstance(self._width, int) or self._width < 1:
            raise SpecError(f"--model: embed_dim of its config is {self._width!r}; expected a number of 1 or more")
        heads = {name: shape for name in (_HEAD, _BIAS) if (shape := _ending(options.shapes, name)) is not None}
        self._classes = count_classes(heads, frozenset({_HEAD}), said.num_classes, options.classnames, "--model")
        self._has_bias = _BIAS in heads if heads else said.bias is not False
        check_memory({_HEAD: (self._classes, self._width)}, _HEAD)

    @property
    def classnames(self) -> tuple[str, ...] | None:
        """The user's class names, if any."""
        return self._classnames

    @property
    def notices(self) -> tuple[str, ...]:
        """What was assumed of the architecture."""
        return self._notices

    @property
    def encoding(self) -> Encoding:
        """open_clip's own evaluation transform of the config, with the normalisation left to the evaluator."""
        return image_encoding(preprocess_of(self._config))

    def build(self) -> nn.Module:
        """A new model, randomly initialised, without touching the global random state."""
        with torch.random.fork_rng(devices=[]):
            return _Classifier(image_tower(self._config), nn.Linear(self._width, self._classes, bias=self._has_bias))

    def predict(self, module: nn.Module, fixed: frozenset[str]) -> Predict:
        """The head's logits of normalised features."""
        model: Any = module
        visual, classify = model.model.visual, _classify(model.classification_head)

        def logits(images: Tensor) -> Tensor:
            features = visual(images)
            # A tower with output_tokens gives its tokens as well.
            return classify(features[0] if isinstance(features, tuple) else features)

        return logits

    def segments(self, module: nn.Module) -> tuple[frozenset[str], ...] | None:
        """Of open_clip's own vision transformer: the stem, each block, and the rest."""
        model: Any = module
        return segments_of(model.model.visual, model.state_dict(), _TOWER)

    def predict_segments(self, module: nn.Module, fixed: frozenset[str]) -> tuple[Predict, ...]:
        """What ``VisionTransformer.forward`` runs, part by part."""
        model: Any = module
        return steps_of(model.model.visual, _classify(model.classification_head))

    def depth(self, names: Iterable[str]) -> list[str]:
        """The image tower's stem, its blocks by number, what comes after them, and the head."""
        return sorted(depth_order(names), key=lambda name: name in (_HEAD, _BIAS))

    def rename(self, name: str) -> str:
        """Without the encoder that WiSE-FT has around CLIP."""
        return name.removeprefix(_ENCODER) if name.startswith(f"{_ENCODER}model.") else name

    def fitted(self, checkpoint: Checkpoint) -> Checkpoint:
        """A checkpoint without what is left in it of the rest of CLIP; see `mixopt.families.Compared`."""
        every = (*checkpoint.tensors, *checkpoint.tied)
        gone = [name for name in every if name.startswith("model.") and not name.startswith(_TOWER)]
        if not gone or not any(name.startswith(_TOWER) for name in every):
            return checkpoint
        said = (
            f"{len(gone)} tensors of CLIP beside its image tower, which do not classify, are left out ({names(gone)})"
        )
        kept = without(checkpoint, gone)
        return replace(kept, notices=(*kept.notices, said), left_out=tuple(sorted({*kept.left_out, *gone})))

    def identity(self) -> dict[str, Any]:
        """The whole config rather than its name, with the size of the head."""
        return {
            "name": "clip_classifier",
            "model": self._described(),
            "classnames": None if self._classnames is None else list(self._classnames),
            "templates": None,
        }

    def companions(self) -> dict[str, str]:
        """open_clip's config of the tower, by which this family opens the folder again."""
        return {CONFIG_NAME: json.dumps(self._described(), indent=2) + "\n"}

    def _described(self) -> dict[str, Any]:
        return {**deepcopy(self._config), _HEAD_KEY: {"num_classes": self._classes, "bias": self._has_bias}}


def open_family(options: FamilyOptions) -> ClipClassifier:
    """Open the family.

    Raises:
        SpecError: The architecture is not known and not told by the checkpoints' shapes, or the number of classes is in
            doubt.
    """
    return ClipClassifier(options)


def _classify(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """From image features to logits."""

    def logits(features: Tensor) -> Tensor:
        # As for zero-shot heads: cosines that are close decide the class.
        with torch.autocast(features.device.type, enabled=False):
            return torch.as_tensor(head(functional.normalize(features.float(), dim=-1)))

    return logits


def _with_model(options: FamilyOptions) -> tuple[FamilyOptions, str | None]:
    """The options with a model: the user's, the config in the folder, or what the shapes tell; and what was assumed."""
    if options.model is not None or (options.folder / CONFIG_NAME).is_file():
        return options, None
    stems = sorted((name for name in options.shapes if f".{name}".endswith(f".{_STEM}")), key=len)
    if not stems:
        raise SpecError(
            f"--model: the checkpoints have no {_STEM} to tell the architecture by; name the open_clip architecture "
            "that they were fine-tuned from, or its config file"
        )
    prefix = stems[0].removesuffix("conv1.weight")
    tower = {name.removeprefix(prefix): shape for name, shape in options.shapes.items() if name.startswith(prefix)}
    chosen, assumed = architecture_of(tower)
    return replace(options, model=chosen), assumed


def _ending(shapes: Shapes, name: str) -> tuple[int, ...] | None:
    """The shape of the tensor by a name, behind a prefix or none; of several the one with the shortest."""
    found = sorted((each for each in shapes if f".{each}".endswith(f".{name}")), key=len)
    return shapes[found[0]] if found else None
