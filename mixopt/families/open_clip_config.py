"""open_clip's configs: found, checked, and made into models, transforms and tokenizers without asking a hub."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from torch import nn

from mixopt.errors import SpecError, unknown
from mixopt.families import FamilyOptions
from mixopt.families.hub import no_hub
from mixopt.memory import available_memory, gigabytes
from mixopt.untrusted import refusing
from mixopt.untrusted.texts import read_json
from mixopt.values.samples import Preprocess

CONFIG_NAME = "open_clip_config.json"
# Options of a tokenizer that no file may ask for, and what they do.
_REFUSED = {"trust_remote_code": "runs a stranger's code", "bpe_path": "reads a file outside the pool"}
# Far beyond any tower, and soon refused by memory below.
_MOST_LAYERS = 1000
# Of the text tower that open_clip makes beside an image tower, and that is thrown away.
_SMALLEST = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
_OF_IMAGES = frozenset({"embed_dim", "vision_cfg", "quick_gelu"})


def found_config(options: FamilyOptions) -> dict[str, Any]:
    """The config as the user keeps it: a mapping, a file, or a registered architecture's name.

    Raises:
        SpecError: It is none of these.
    """
    model = options.model
    if model is None:
        model = CONFIG_NAME
    if isinstance(model, Mapping):
        return deepcopy(dict(model))
    if model.endswith(".json"):
        # A config on the command line may be given from here, or by its name in the pool.
        here = Path(model)
        return _read_config(here if options.model and here.is_file() else options.folder / model)
    # A name with a colon asks a hub, or another folder: a file might ask for it as well.
    config = None if ":" in model else open_clip.get_model_config(model)
    if config is None:
        more = f", or the name of a config file such as {CONFIG_NAME}"
        raise SpecError("--model: " + unknown("open_clip architecture", model, open_clip.list_models(), more))
    return {"model_cfg": config}


def completed(found: dict[str, Any]) -> dict[str, Any]:
    """The model config and the complete preprocess config.

    Args:
        found: From `found_config`, with or without the outer table.

    Raises:
        SpecError: It describes no image tower, or images that cannot be made.
    """
    if "model_cfg" not in found:
        found = {"model_cfg": found}
    vision = found["model_cfg"].get("vision_cfg") if isinstance(found["model_cfg"], Mapping) else None
    if not isinstance(vision, Mapping):
        raise SpecError("--model: the open_clip config lacks model_cfg.vision_cfg; expected open_clip_config.json")
    with refusing(SpecError, "--model", found="preprocess_cfg cannot be used", cure="correct the config"):
        default = merge_preprocess_dict(asdict(PreprocessCfg()), found.get("preprocess_cfg", {}))
        default["size"] = vision.get("image_size", default["size"])
        # Made here, as what is wrong with it shows only then.
        cfg = PreprocessCfg(**default)
        image_transform_v2(cfg, is_train=False)
        sizes, statistics = [int(size) for size in cfg.input_size], [float(value) for value in (*cfg.mean, *cfg.std)]
        if min(sizes) < 1 or len(statistics) != 6:
            raise ValueError(f"sizes {sizes}, mean {cfg.mean} and std {cfg.std}; expected 3 values each")
    return {"model_cfg": found["model_cfg"], "preprocess_cfg": default}


def preprocess_of(config: Mapping[str, Any]) -> Preprocess:
    """open_clip's own evaluation transform, with the normalisation left to the evaluator."""
    cfg = PreprocessCfg(**config["preprocess_cfg"])
    height, width = cfg.input_size[-2:]
    steps = image_transform_v2(cfg, is_train=False).transforms[:-2]

    def fit(image: Any) -> Any:
        for step in steps:
            image = step(image)
        return image

    key = json.dumps({"open_clip": asdict(cfg)}, sort_keys=True)
    return Preprocess((height, width), tuple(cfg.mean), tuple(cfg.std), fit, key)


def image_tower(config: Mapping[str, Any]) -> nn.Module:
    """The image tower of a config alone, randomly initialised, without touching the global random state."""
    kept = {name: value for name, value in config["model_cfg"].items() if name in _OF_IMAGES}
    with torch.random.fork_rng(devices=[]):
        made: Any = create({**config, "model_cfg": {**kept, "text_cfg": _SMALLEST}})
    tower: nn.Module = made.visual
    return tower


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise SpecError(f"--model {path}: no such file; name an open_clip architecture or its config")
    found = read_json(path, SpecError, cure="name an architecture or its config with --model")
    if not isinstance(found, dict):
        raise SpecError(f"--model {path}: expected a JSON object, found a {type(found).__name__}")
    return found


def create(config: Mapping[str, Any]) -> nn.Module:
    """open_clip's own factory, on a folder that holds the config alone; it downloads nothing.

    Raises:
        SpecError: open_clip cannot make the model, or there is not the memory for it.
    """
    _check_size(config)
    if ":" in str(config["model_cfg"]["vision_cfg"].get("timm_model_name", "")):
        raise SpecError("--model: timm_model_name asks a hub or a folder; expected a name alone")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
        level = logging.root.level
        logging.disable(logging.WARNING)
        try:
            with (
                refusing(
                    SpecError,
                    "--model",
                    found="open_clip cannot make this model",
                    cure="correct its config",
                    also=(ImportError,),
                ),
                no_hub(),
            ):
                module: nn.Module = open_clip.create_model(
                    f"local-dir:{folder}", load_weights=False, pretrained_image=False, pretrained_text=False
                )
        finally:
            logging.disable(logging.NOTSET)
            logging.root.setLevel(level)
        return module


def _check_size(config: Mapping[str, Any]) -> None:
    """Refuse a tower that would take more memory than there is, before any of it is made."""
    for name in ("vision_cfg", "text_cfg"):
        tower = config["model_cfg"].get(name)
        if not isinstance(tower, Mapping):
            continue
        # The stages of a residual network are a list of layers each.
        counted = {key: sum(value) if _is_counts(value) else value for key, value in tower.items()}
        sizes = {key: value for key, value in counted.items() if isinstance(value, int)}
        layers, width, free = sizes.get("layers", 1), sizes.get("width", 1), available_memory()
        # Attention and MLP of every block, and a token's embedding: less than any tower has.
        needed = 4 * width * (12 * layers * width + sizes.get("vocab_size", 0))
        # Their positions, and a mask of the text's.
        text = sizes.get("context_length", 0)
        patches = sizes.get("image_size", 0) // max(1, sizes.get("patch_size", 16))
        needed += 4 * max(text, patches**2) * max(width, text)
        if layers > _MOST_LAYERS or needed > free > 0:
            raise SpecError(
                f"--model: {name} of {layers:,} layers of width {width:,} needs {gigabytes(needed)} of memory or more, "
                f"and {gigabytes(free)} can be had; correct the config"
            )


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, int) for each in value)


def tokenizer_of(config: Mapping[str, Any]) -> Any:
    """The tokenizer that a config names.

    Raises:
        SpecError: It cannot be made, or asks for what no file may ask for.
    """
    text = config["model_cfg"].get("text_cfg", {})
    given = text.get("tokenizer_kwargs", {})
    if not isinstance(given, Mapping):
        raise SpecError(f"--model: expected tokenizer_kwargs as a JSON object, found a {type(given).__name__}")
    if refused := [name for name in _REFUSED if name in given]:
        raise SpecError(f"--model: tokenizer_kwargs has {refused[0]}, which {_REFUSED[refused[0]]}; remove it")
    source = text.get("hf_tokenizer_name")
    cure = f"correct text_cfg, or fetch it yourself: hf download {source}" if source else "correct text_cfg"
    found = "its tokenizer cannot be made from what is on this disk" if source else "its tokenizer cannot be made"
    with refusing(SpecError, "--model", found=found, cure=cure, also=(ImportError,)), no_hub():
        if source:
            return open_clip.tokenizer.HFTokenizer(
                source,
                context_length=text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
                tokenizer_mode=text.get("tokenizer_mode"),
                **{**given, "trust_remote_code": False},
            )
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
            return open_clip.get_tokenizer(f"local-dir:{folder}")
