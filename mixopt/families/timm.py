"""timm's image classifiers (https://github.com/huggingface/pytorch-image-models), by name or config.

What a name does not say is told from the checkpoint's shapes: the number of classes, how a vision transformer pools,
and the size of image that its position embeddings are of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from mixopt.errors import SpecError
from mixopt.families import FamilyOptions
from mixopt.families.image_encoding import image_encoding
from mixopt.families.image_heads import (
    ENLARGED,
    Shapes,
    check_memory,
    count_classes,
    head_names,
    shapes_of,
    under_names,
)
from mixopt.families.timm_library import (
    CONFIG,
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    Described,
    describe,
    fit_of,
    layers_of,
    make,
    skeleton,
    takes_size,
)
from mixopt.scoring.evaluator import Predict
from mixopt.values.groups import depth_order
from mixopt.values.samples import Encoding, Preprocess

# Two numbers of classes that no other part of a model is as large as.
_FEW, _MANY = 13, 17
_POOLS = ("avg", "token", "map")


class Timm:
    """The family; see `mixopt.families.Family`."""

    def __init__(self, options: FamilyOptions) -> None:
        described = describe(options)
        # In a recipe's config all of this is settled.
        few = shapes_of(skeleton(described, _FEW))
        self._heads = head_names(few, shapes_of(skeleton(described, _MANY)))
        self._notices: list[str] = []
        found = under_names(options.shapes, few)
        names = described.labels if options.classnames is None else options.classnames
        self._classes = count_classes(found, self._heads, described.classes, names, described.where)
        self._classnames = names
        self._image_size = options.image_size
        described = self._fitted(described, found)
        if options.image_size is not None:
            described = self._resized(described, found, options.image_size)
        if [*described.data["mean"], *described.data["std"]] != [*IMAGENET_DEFAULT_MEAN, *IMAGENET_DEFAULT_STD]:
            self._notices.append(
                f"images are normalised by mean {described.data['mean']} and std {described.data['std']}, as timm says "
                f"of {described.architecture}; where the model was trained with others, name a {CONFIG} of timm's that "
                "has these in pretrained_cfg: --model FILE"
            )
        self._described = described
        check_memory(shapes_of(self._skeleton), described.where)

    @property
    def classnames(self) -> tuple[str, ...] | None:
        """The user's class names, or a config's, if any."""
        return self._classnames

    @property
    def notices(self) -> tuple[str, ...]:
        """What was told from the checkpoint's shapes."""
        return tuple(self._notices)

    @property
    def encoding(self) -> Encoding:
        """Timm's own evaluation transform, with the normalisation left to the evaluator."""
        data = self._described.data
        key = json.dumps({"timm": data}, sort_keys=True)
        mean, std = tuple(data["mean"]), tuple(data["std"])
        preprocess = Preprocess(self._described.size, mean, std, fit_of(self._described), key)
        return image_encoding(preprocess, ENLARGED)

    def build(self) -> nn.Module:
        """A new model, randomly initialised, without touching the global random state."""
        with torch.random.fork_rng(devices=[]):
            return make(self._described, self._classes)

    def predict(self, module: nn.Module, fixed: frozenset[str]) -> Predict:
        """The model's own logits."""

        def logits(images: Tensor) -> Tensor:
            return torch.as_tensor(module(images))

        return logits

    def depth(self, names: Iterable[str]) -> list[str]:
        """By timm's own numbers of layers, buffers with the weights beside them, the head last."""
        ordered = sorted(names)
        layers = layers_of(self._skeleton)
        if not layers:
            return sorted(depth_order(ordered), key=lambda name: name in self._heads)
        place = {name: number for number, name in enumerate(self._skeleton.state_dict())}
        beside = {name.rpartition(".")[0]: layer for name, layer in layers.items()}
        last = max(layers.values()) + 1

        def key(name: str) -> tuple[bool, int, int]:
            layer = layers.get(name, beside.get(name.rpartition(".")[0], last))
            return name in self._heads, layer, place.get(name, len(place))

        return sorted(ordered, key=key)

    def rename(self, name: str) -> str:
        """The same."""
        return name

    def identity(self) -> dict[str, Any]:
        """The whole config rather than the name: what a name means differs from release to release."""
        names = None if self._classnames is None else list(self._classnames)
        size = {} if self._image_size is None else {"image_size": self._image_size}
        return {"name": "timm", "model": self._config, "classnames": names, "templates": None, **size}

    def companions(self) -> dict[str, str]:
        """The config that ``timm.create_model("local-dir:...", pretrained=True)`` reads."""
        labels = {} if self._classnames is None else {"label_names": list(self._classnames)}
        return {CONFIG: json.dumps({**self._config, **labels}, indent=2) + "\n"}

    @property
    def _config(self) -> dict[str, Any]:
        return self._described.config(self._classes, int(self._skeleton.num_features))

    @cached_property
    def _skeleton(self) -> Any:
        return skeleton(self._described, self._classes)

    def _shapes(self, described: Described) -> dict[str, tuple[int, ...]]:
        return shapes_of(skeleton(described, self._classes))

    def _fitted(self, described: Described, found: Shapes) -> Described:
        """With the pooling and the size of image that a checkpoint's shapes tell, where they leave no doubt."""
        if not found or _agree(found, ours := self._shapes(described)):
            return described
        if not ours.keys() <= found.keys():
            described, ours = self._pooled(described, found, ours)
        size = _size_of(found, ours, described)
        if size is not None:
            wider = _with_size(described, size)
            if _agree(found, self._shapes(wider)):
                self._notices.append(f"the model's position embeddings are of images of {size}x{size}, as it is made")
                return wider
        return described

    def _pooled(
        self, described: Described, found: Shapes, ours: dict[str, tuple[int, ...]]
    ) -> tuple[Described, dict[str, tuple[int, ...]]]:
        """With the one way of pooling by which the model has the checkpoint's names, where there is one."""
        own = getattr(skeleton(described, self._classes), "global_pool", None)
        for pool in _POOLS if own in _POOLS else ():
            if pool == own:
                continue
            other = replace(described, arguments={**described.arguments, "global_pool": pool})
            try:
                shapes = self._shapes(other)
            except SpecError:  # not of this architecture
                continue
            if shapes.keys() == found.keys():
                self._notices.append(f"the model pools by {pool!r} rather than {own!r}, as its weights are named")
                return other, shapes
        return described, ours

    def _resized(self, described: Described, found: Shapes, size: int) -> Described:
        """For images of a size that the user gave, none of which is cropped away."""
        data = {**described.data, "input_size": [3, size, size], "crop_pct": 1.0}
        if described.size == (size, size) or not described.data.get("fixed_input_size"):
            chosen = replace(described, data=data)
        elif (
            "img_size" not in described.arguments and found and _agree(found, self._shapes(_with_size(described, size)))
        ):
            chosen = _with_size(replace(described, data=data), size)
        else:
            # Position embeddings stay of the checkpoint's size, and are brought to that of the images.
            native = {"img_size": list(described.size), "dynamic_img_size": True}
            data["fixed_input_size"] = False
            chosen = replace(described, data=data, arguments={**described.arguments, **native})
            self._notices.append(f"position embeddings are interpolated to images of {size}x{size} (--image-size)")
        if not takes_size(chosen, self._classes, size):
            raise SpecError(
                f"--image-size {size}: {described.architecture} does not take images of {size}x{size}; its own size is "
                + "x".join(map(str, described.size))
            )
        return chosen


def open_family(options: FamilyOptions) -> Timm:
    """Open the family.

    Raises:
        SpecError: The model is not known, or what is needed of it is not told.
    """
    return Timm(options)


def _agree(found: Shapes, ours: Shapes) -> bool:
    return all(found.get(name) == shape for name, shape in ours.items())


def _with_size(described: Described, size: int) -> Described:
    data = {**described.data, "input_size": [3, size, size]}
    return replace(described, data=data, arguments={**described.arguments, "img_size": size})


def _size_of(found: Shapes, ours: Shapes, described: Described) -> int | None:
    """The size of square image that the position embeddings of a checkpoint are of, if these alone are another."""
    others = [name for name, shape in ours.items() if found.get(name) != shape]
    height, width = described.size
    if len(others) != 1 or not others[0].endswith("pos_embed") or height != width:
        return None
    before, after = ours[others[0]], found.get(others[0], ())
    if len(before) != 3 or len(after) != 3 or (before[0], before[2]) != (after[0], after[2]):
        return None
    for extra in range(6):  # tokens before those of the image
        side, new = isqrt(before[1] - extra), isqrt(max(0, after[1] - extra))
        if side * side == before[1] - extra and new * new == after[1] - extra and new and height % side == 0:
            return new * (height // side)
    return None
