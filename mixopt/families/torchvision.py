"""torchvision's image classifiers (https://pytorch.org/vision/stable/models.html), by name.

The number of classes is that of the checkpoint's head; images are made as torchvision makes them for the model's own
weights, none of which is downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
import torchvision
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models
from torchvision.transforms import functional

from mixopt.errors import SpecError, unknown
from mixopt.families import FamilyOptions
from mixopt.families.image_encoding import image_encoding
from mixopt.families.image_heads import ENLARGED, check_memory, count_classes, head_names, shapes_of, under_names
from mixopt.scoring.evaluator import Predict
from mixopt.untrusted import READER_ERRORS, refusing
from mixopt.untrusted.values import validated
from mixopt.values.groups import depth_order
from mixopt.values.samples import Encoding, Preprocess

# Two numbers of classes that no other part of a model is as large as.
_FEW, _MANY = 13, 17


class _Described(BaseModel):
    """A model of torchvision's, as a recipe has it."""

    model_config = ConfigDict(extra="forbid")

    architecture: str
    num_classes: int | None = Field(default=None, ge=1)


class Torchvision:
    """The family; see `mixopt.families.Family`."""

    def __init__(self, options: FamilyOptions) -> None:
        described = _described(options.model)
        self._name, self._where = described.architecture, f"--model {described.architecture}"
        self._size, self._classnames = options.image_size, options.classnames
        few, many = (shapes_of(_skeleton(self._name, count)) for count in (_FEW, _MANY))
        self._heads = head_names(few, many)
        found = under_names(options.shapes, few)
        said = described.num_classes
        self._classes = count_classes(found, self._heads, said, options.classnames, self._where)
        check_memory(shapes_of(self._meta), self._where)
        # The size is part of a vision transformer's weights.
        if self._size is not None and not _takes_size(self._name, self._size):
            raise SpecError(f"--image-size {self._size}: {self._name} does not take images of that size; leave it out")

    @property
    def classnames(self) -> tuple[str, ...] | None:
        """The user's class names, if any."""
        return self._classnames

    @property
    def encoding(self) -> Encoding:
        """The evaluation transform of the model's default weights, with the normalisation left to the evaluator."""
        made = get_model_weights(self._name).DEFAULT.transforms()
        # Where a size is asked for, nothing of that is cropped away.
        crop, shorter = (made.crop_size[0], made.resize_size[0]) if self._size is None else (self._size, self._size)

        def fit(image: Any) -> Any:
            resized = functional.resize(image, [shorter], interpolation=made.interpolation, antialias=made.antialias)
            return functional.center_crop(resized, [crop])

        key = f"torchvision {crop} of {shorter}, {made.interpolation.value}, {made.mean}, {made.std}"
        return image_encoding(Preprocess((crop, crop), tuple(made.mean), tuple(made.std), fit, key), ENLARGED)

    def build(self) -> nn.Module:
        """A new model, randomly initialised, without touching the global random state."""
        with torch.random.fork_rng(devices=[]):
            return _make(self._name, self._classes)

    def predict(self, module: nn.Module, fixed: frozenset[str]) -> Predict:
        """The model's own logits; of those with auxiliary heads, the main head's."""

        def logits(images: Tensor) -> Tensor:
            found = module(images)
            return torch.as_tensor(found[0] if isinstance(found, tuple) else found)

        return logits

    def depth(self, names: Iterable[str]) -> list[str]:
        """The stem, the blocks by number, the head."""
        place = {name: number for number, name in enumerate(self._meta.state_dict())}
        ordered = depth_order(sorted(names, key=lambda name: (place.get(name, len(place)), name)))
        return sorted(ordered, key=lambda name: name in self._heads)

    def rename(self, name: str) -> str:
        """The same."""
        return name

    def identity(self) -> dict[str, Any]:
        """The name and the number of classes; the architecture is torchvision's own under that name."""
        model = {"architecture": self._name, "num_classes": self._classes}
        names = None if self._classnames is None else list(self._classnames)
        size = {} if self._size is None else {"image_size": self._size}
        return {"name": "torchvision", "model": model, "classnames": names, "templates": None, **size}

    def companions(self) -> dict[str, str]:
        """Nothing: ``get_model(name, num_classes=n)`` and its ``load_state_dict`` take the weights as they are."""
        return {}

    @cached_property
    def _meta(self) -> nn.Module:
        return _skeleton(self._name, self._classes)


def open_family(options: FamilyOptions) -> Torchvision:
    """Open the family.

    Raises:
        SpecError: The model is not known, or its number of classes is not told.
    """
    return Torchvision(options)


def _described(model: str | Mapping[str, Any] | None) -> _Described:
    if model is None:
        raise SpecError("--model: family torchvision needs the name of a model, such as resnet50; set model")
    cure = "expected architecture and num_classes"
    with refusing(SpecError, "--model", found="not a model of torchvision's", cure=cure):
        found = validated(_Described, {"architecture": model} if isinstance(model, str) else model)
    known = list_models(module=torchvision.models)
    if found.architecture not in known:
        raise SpecError("--model: " + unknown("torchvision classifier", found.architecture, known))
    return found


def _make(name: str, classes: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    return made


def _skeleton(name: str, classes: int) -> nn.Module:
    """The model without memory; where its code cannot do without, with."""
    try:
        with torch.device("meta"):
            return _make(name, classes)
    except NotImplementedError:  # torch's, of an operation that has no form without memory
        with torch.random.fork_rng(devices=[]):
            return _make(name, classes)


def _takes_size(name: str, size: int) -> bool:
    """Whether a model gives logits for images of a size, tried without memory where that can be."""
    model = _skeleton(name, _FEW).eval()
    images = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
    try:
        with torch.inference_mode():
            found = model(images)
    except READER_ERRORS:
        return False
    return tuple(found.shape) == (1, _FEW)
