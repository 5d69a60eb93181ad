"""What timm makes of a name or a config: the only module that calls it. No weights are loaded, no hub is asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_DEFAULT_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_DEFAULT_STD
from timm.data import create_transform, resolve_data_config
from timm.models import group_parameters, is_model, list_models, split_model_name_tag
from torch import nn

from mixopt.errors import SpecError, unknown
from mixopt.families import FamilyOptions
from mixopt.untrusted import READER_ERRORS, refusing
from mixopt.untrusted.texts import read_json
from mixopt.untrusted.values import validated

CONFIG = "config.json"
# Of a pretrained config what says how images are made and where the model ends; nothing of where weights lie.
_DATA = (
    *("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"),
    *("first_conv", "classifier"),
)
# Arguments that have files read, or other things made than a classifier.
_REFUSED = ("checkpoint", "cache", "pretrained", "features_only", "feature_cfg", "file", "url", "hf_hub")

# What trying a size may raise.
_FAILURES: tuple[type[Exception], ...] = (*READER_ERRORS, SpecError)


@dataclass(frozen=True)
class Described:
    """A model of timm's, as its own ``config.json`` describes one.

    Attributes:
        architecture: The name without a tag.
        data: The pretrained config, what is of use of it.
        arguments: For the model's own constructor.
        classes: Their number, where it is known.
        labels: The classes' names, where a config has them.
    """

    architecture: str
    data: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    classes: int | None = None
    labels: tuple[str, ...] | None = None

    @property
    def where(self) -> str:
        """For messages."""
        return f"--model {self.architecture}"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images."""
        height, width = self.data["input_size"][-2:]
        return height, width

    def config(self, classes: int, features: int) -> dict[str, Any]:
        """What ``timm.create_model("local-dir:...")`` reads."""
        return {
            "architecture": self.architecture,
            "num_classes": classes,
            "num_features": features,
            "global_pool": self.arguments.get("global_pool"),
            "pretrained_cfg": {**deepcopy(self.data), "num_classes": classes},
            "model_args": deepcopy(self.arguments),
        }


class _Config(BaseModel):
    """A ``config.json`` of timm's, as far as it is of use."""

    model_config = ConfigDict(extra="ignore")

    architecture: str
    num_classes: int | None = Field(default=None, ge=1)
    label_names: Any = None
    pretrained_cfg: dict[str, Any] = Field(default_factory=dict)
    model_args: dict[str, Any] = Field(default_factory=dict)


def describe(options: FamilyOptions) -> Described:
    """A model's description, from its name, its config or the file of that.

    Raises:
        SpecError: No such model, or one that asks for files.
    """
    model = options.model
    if model is None:
        raise SpecError("--model: family timm needs the name of one of timm's models, such as resnet50; set model")
    if isinstance(model, Mapping):
        return _from_config(model, "--model")
    path = _config_file(model, options.folder)
    if path is not None:
        found = read_json(path, SpecError, cure="name a model of timm's or its config with --model")
        if not isinstance(found, Mapping):
            raise SpecError(f"--model {path}: expected a JSON object, found a {type(found).__name__}")
        return _from_config(found, f"--model {path}")
    if ":" in model:
        raise SpecError(
            f"--model {model}: a name with a colon asks a hub or another folder; expected a name alone, as resnet50"
        )
    architecture, _ = split_model_name_tag(model)
    _check_name(architecture)
    with refusing(SpecError, f"--model {model}", found="timm has no such tag", cure="leave it out or correct it"):
        cfg = timm.get_pretrained_cfg(model, allow_unregistered=False).to_dict()
    return Described(architecture, _data_of(cfg, f"--model {model}"))


def _config_file(model: str, folder: Path) -> Path | None:
    """The config that a user's text names, or whose folder it names, from here or in the pool; None for a name."""
    for place in (Path(model), folder / model):
        if (place / CONFIG).is_file():
            return place / CONFIG
        if model.endswith(".json") and place.is_file():
            return place
    return folder / model if model.endswith(".json") else None


def _from_config(given: Mapping[str, Any], where: str) -> Described:
    with refusing(SpecError, where, found="not a config of timm's", cure=f"expected what timm writes as {CONFIG}"):
        # Before releases wrote it as a table of its own, all stood in one.
        flat = given if "pretrained_cfg" in given else {**given, "pretrained_cfg": dict(given)}
        config = validated(_Config, flat)
    _check_name(config.architecture)
    if refused := [name for name in config.model_args if name.startswith(_REFUSED)]:
        raise SpecError(f"{where}: model_args has {refused[0]}, which reads files or changes the model; remove it")
    labels = config.label_names
    are_names = isinstance(labels, list) and all(isinstance(each, str) for each in labels)
    return Described(
        config.architecture,
        _data_of(config.pretrained_cfg, where),
        dict(config.model_args),
        config.num_classes,
        tuple(labels) if are_names else None,
    )


def _check_name(architecture: str) -> None:
    if not is_model(architecture):
        raise SpecError("--model: " + unknown("timm architecture", architecture, list_models()))


def _data_of(cfg: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What is of use of a pretrained config, complete, as plain JSON values."""
    with refusing(SpecError, where, found="its data config cannot be used", cure="correct it"):
        kept = {name: cfg[name] for name in _DATA if name in cfg}
        resolved = resolve_data_config(pretrained_cfg=kept or {"input_size": None})
        for name in ("input_size", "mean", "std"):
            resolved[name] = [int(each) if name == "input_size" else float(each) for each in resolved[name]]
            if len(resolved[name]) != 3:
                raise ValueError(f"{name} {resolved[name]}, expected 3 values")
        channels, *size = resolved["input_size"]
        if channels != 3 or min(size) < 1 or not 0 < float(resolved["crop_pct"]) <= 2:
            raise ValueError(f"input_size {resolved['input_size']}, crop_pct {resolved['crop_pct']}")
        more = {name: _plain(kept[name]) for name in ("fixed_input_size", "first_conv", "classifier") if name in kept}
        return {**resolved, **more}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def make(described: Described, classes: int | None, **arguments: Any) -> nn.Module:
    """A model with random weights; where no number of classes is given, its own.

    Raises:
        SpecError: timm cannot make it.
    """
    given = {**described.arguments, **arguments}
    if classes is not None:
        given["num_classes"] = classes
    cfg = {**deepcopy(described.data), "num_classes": 1000}
    with (
        refusing(
            SpecError, described.where, found="timm cannot make this model", cure="correct it", also=(ImportError,)
        ),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        module: nn.Module = timm.create_model(described.architecture, pretrained=False, pretrained_cfg=cfg, **given)
    return module


def skeleton(described: Described, classes: int, **arguments: Any) -> Any:
    """The model without memory; where its code cannot do without, with.

    Raises:
        SpecError: timm cannot make it.
    """
    try:
        with torch.device("meta"):
            return make(described, classes, **arguments)
    except SpecError:
        with torch.random.fork_rng(devices=[]):
            return make(described, classes, **arguments)


def takes_size(described: Described, classes: int, size: int, **arguments: Any) -> bool:
    """Whether a model gives logits for images of a size, tried without memory, and with where that cannot be."""
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.random.fork_rng(devices=[]), torch.inference_mode():
                model = make(described, classes, **arguments).eval()
                return tuple(model(torch.zeros(1, 3, size, size)).shape) == (1, classes)
        except _FAILURES:
            continue
    return False


def fit_of(described: Described) -> Callable[[Any], Any]:
    """Timm's own evaluation transform of a PIL image, without the last steps, which make a normalised tensor."""
    data = {name: value for name, value in described.data.items() if name in _DATA[:1] + _DATA[2:7]}
    data["input_size"] = tuple(data["input_size"])
    with refusing(SpecError, described.where, found="its data config cannot be used", cure="correct it"):
        steps = create_transform(**data, is_training=False).transforms[:-2]

    def fit(image: Any) -> Any:
        for step in steps:
            image = step(image)
        return image

    return fit


def layers_of(module: Any) -> dict[str, int]:
    """Parameter name to the number of its layer, the stem's the lowest; empty where the model does not say."""
    if not hasattr(module, "group_matcher"):
        return {}
    found: dict[str, int] = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
    return found
