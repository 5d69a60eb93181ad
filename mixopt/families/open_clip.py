"""open_clip models (https://github.com/mlfoundations/open_clip), scored zero-shot through class-name prompts.

Zero-shot head: the mean over templates of the normalised text embeddings, normalised again (Radford et al. 2021,
section 3.1.4); logits are the cosine to the image embedding times the model's own logit scale.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from mixopt.errors import SpecError, unknown
from mixopt.families import FamilyOptions
from mixopt.families.image_encoding import image_encoding
from mixopt.memory import available_memory, gigabytes, is_out_of_memory
from mixopt.scoring.evaluator import Predict
from mixopt.untrusted import READER_ERRORS, reason_of, refusing
from mixopt.untrusted.texts import read_json
from mixopt.values.groups import depth_order
from mixopt.values.samples import Encoding, Preprocess

CONFIG_NAME = "open_clip_config.json"
# Options of a tokenizer that no file may ask for, and what they do.
_REFUSED = {"trust_remote_code": "runs a stranger's code", "bpe_path": "reads a file outside the pool"}
# Far beyond any tower, and soon refused by memory below.
_MOST_LAYERS = 1000
_TEXT_NAMES = re.compile(r"^(text\.|transformer\.|token_embedding\.|positional_embedding|ln_final\.|text_projection)")

# What VisionTransformer._embeds runs.
_STEM = tuple(f"visual.{part}" for part in ("conv1.", "class_embedding", "positional_embedding", "ln_pre."))


class OpenClip:
    """The family; see `mixopt.families.Family`."""

    def __init__(self, options: FamilyOptions) -> None:
        if options.image_size is not None:
            raise SpecError("--image-size: an open_clip model takes images of the size in its config; leave it out")
        self._config = _config(options)
        if not options.classnames:
            raise SpecError("classnames: family open_clip scores zero-shot and needs the class names; set classnames")
        self._classnames = tuple(options.classnames)
        self._templates = tuple(options.templates or ("a photo of a {}.",))
        if wrong := [text for text in self._templates if "{}" not in text]:
            raise SpecError(f"templates: expected {{}} where the class name goes, but not so in {wrong[0]!r}")
        for text in self._templates:
            try:
                text.format("x")
            except (ValueError, KeyError, IndexError) as error:
                raise SpecError(f"templates: {text!r} has braces other than {{}} ({error}); double them") from error
        self._cfg = PreprocessCfg(**self._config["preprocess_cfg"])
        self._head: tuple[weakref.ref[nn.Module], Tensor] | None = None

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self._classnames

    @property
    def preprocess(self) -> Preprocess:
        """open_clip's own evaluation transform, with the normalisation left to the evaluator."""
        height, width = self._cfg.input_size[-2:]
        steps = image_transform_v2(self._cfg, is_train=False).transforms[:-2]

        def fit(image: Any) -> Any:
            for step in steps:
                image = step(image)
            return image

        key = json.dumps({"open_clip": asdict(self._cfg)}, sort_keys=True)
        return Preprocess((height, width), tuple(self._cfg.mean), tuple(self._cfg.std), fit, key)

    @property
    def encoding(self) -> Encoding:
        """That of images."""
        return image_encoding(self.preprocess)

    def build(self) -> nn.Module:
        """A new model of the config, randomly initialised, without touching the global random state."""
        with torch.random.fork_rng(devices=[]):
            return _create(self._config)

    def predict(self, module: nn.Module, fixed: frozenset[str]) -> Predict:
        """Logits by the zero-shot head, which is kept while no text tensor changes."""
        model: Any = module
        classify = self._classify(model, fixed)

        def logits(images: Tensor) -> Tensor:
            features = model.encode_image(images, normalize=False)
            # A tower with output_tokens gives its tokens as well.
            return classify(features[0] if isinstance(features, tuple) else features)

        return logits

    def segments(self, module: nn.Module) -> tuple[frozenset[str], ...] | None:
        """Of open_clip's own vision transformer: the stem, each block, and the rest."""
        model: Any = module
        # Anything derived from these may run its parts another way.
        if type(model) not in (open_clip.CLIP, open_clip.CustomTextCLIP):
            return None
        if type(model.visual) is not VisionTransformer or not model.visual.transformer.batch_first:
            return None
        blocks = [
            f"visual.transformer.resblocks.{number}." for number in range(len(model.visual.transformer.resblocks))
        ]
        names = list(model.state_dict())
        found = [frozenset(name for name in names if name.startswith(start)) for start in (_STEM, *blocks)]
        return *found, frozenset(names).difference(*found)

    def predict_segments(self, module: nn.Module, fixed: frozenset[str]) -> tuple[Predict, ...]:
        """What ``VisionTransformer.forward`` runs, part by part."""
        model: Any = module
        visual, classify = model.visual, self._classify(model, fixed)

        def head(hidden: Tensor) -> Tensor:
            return classify(visual._pool(hidden)[0] @ visual.proj)

        return visual._embeds, *visual.transformer.resblocks, head

    def _classify(self, model: Any, fixed: frozenset[str]) -> Callable[[Tensor], Tensor]:
        """From image features to logits."""
        head = self._zero_shot_head(model, fixed)
        scale = model.logit_scale.exp()

        def logits(features: Tensor) -> Tensor:
            # Cosines that are close decide the class: in bf16, rounding here changes more of them than the tower's.
            with torch.autocast(features.device.type, enabled=False):
                return torch.as_tensor(scale * (functional.normalize(features.float(), dim=-1) @ head))

        return logits

    def depth(self, names: Iterable[str]) -> list[str]:
        """Image tower, then text tower; in each the stem, the blocks by number, the head."""
        ordered = depth_order(names)
        return sorted(ordered, key=lambda name: not name.startswith("visual."))

    def rename(self, name: str) -> str:
        """The same."""
        return name

    def identity(self) -> dict[str, Any]:
        """The whole config rather than its name: a registered name may mean something else later."""
        return {
            "name": "open_clip",
            "model": deepcopy(self._config),
            "classnames": list(self._classnames),
            "templates": list(self._templates),
        }

    def companions(self) -> dict[str, str]:
        """The config that ``open_clip.create_model('local-dir:...')`` reads."""
        return {CONFIG_NAME: json.dumps(self._config, indent=2) + "\n"}

    def _zero_shot_head(self, model: Any, fixed: frozenset[str]) -> Tensor:
        text = {name for name in model.state_dict() if _TEXT_NAMES.match(name)}
        if self._head is not None and self._head[0]() is model and text <= fixed:
            return self._head[1]
        if torch.is_grad_enabled() and any(
            name in text - fixed and weight.requires_grad for name, weight in model.named_parameters()
        ):
            return self._head_with_gradient(model)
        device, tokenizer = model.logit_scale.device, _tokenizer(self._config)
        try:
            head: Tensor = open_clip.build_zero_shot_classifier(
                model, tokenizer, self._classnames, self._templates, device=device
            )
        except READER_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise SpecError(
                f"--model: its text tower cannot embed the class names ({reason_of(error)}); correct text_cfg"
            ) from error
        self._head = (weakref.ref(model), head)
        return head

    def _head_with_gradient(self, model: Any) -> Tensor:
        """The same head, ``[width, n_classes]``, through which a gradient reaches the text tower."""
        prompts = [template.format(name) for name in self._classnames for template in self._templates]
        tokens = _tokenizer(self._config)(prompts).to(model.logit_scale.device)
        embedded = model.encode_text(tokens, normalize=True).unflatten(0, (len(self._classnames), -1))
        return functional.normalize(embedded.mean(dim=1), dim=-1).T


def open_family(options: FamilyOptions) -> OpenClip:
    """Open the family.

    Raises:
        SpecError: The architecture or config file is not known, or class names are missing.
    """
    return OpenClip(options)


def _config(options: FamilyOptions) -> dict[str, Any]:
    """The model config and the complete preprocess config, from wherever the user keeps them."""
    model = options.model
    if model is None:
        model = CONFIG_NAME
    if isinstance(model, Mapping):
        found = deepcopy(dict(model))
    elif model.endswith(".json"):
        # A config on the command line may be given from here, or by its name in the pool.
        here = Path(model)
        found = _read_config(here if options.model and here.is_file() else options.folder / model)
    else:
        # A name with a colon asks a hub, or another folder: a file might ask for it as well.
        config = None if ":" in model else open_clip.get_model_config(model)
        if config is None:
            more = f", or the name of a config file such as {CONFIG_NAME}"
            raise SpecError("--model: " + unknown("open_clip architecture", model, open_clip.list_models(), more))
        found = {"model_cfg": config}
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


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise SpecError(f"--model {path}: no such file; name an open_clip architecture or its config")
    found = read_json(path, SpecError, cure="name an architecture or its config with --model")
    if not isinstance(found, dict):
        raise SpecError(f"--model {path}: expected a JSON object, found a {type(found).__name__}")
    return found


def _create(config: Mapping[str, Any]) -> nn.Module:
    """open_clip's own factory, on a folder that holds the config alone; it downloads nothing."""
    _check_size(config)
    if ":" in str(config["model_cfg"]["vision_cfg"].get("timm_model_name", "")):
        raise SpecError("--model: timm_model_name asks a hub or a folder; expected a name alone")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
        level = logging.root.level
        logging.disable(logging.WARNING)
        try:
            with refusing(
                SpecError,
                "--model",
                found="open_clip cannot make this model",
                cure="correct its config",
                also=(ImportError,),
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


def _tokenizer(config: Mapping[str, Any]) -> Any:
    text = config["model_cfg"].get("text_cfg", {})
    given = text.get("tokenizer_kwargs", {})
    if not isinstance(given, Mapping):
        raise SpecError(f"--model: expected tokenizer_kwargs as a JSON object, found a {type(given).__name__}")
    if refused := [name for name in _REFUSED if name in given]:
        raise SpecError(f"--model: tokenizer_kwargs has {refused[0]}, which {_REFUSED[refused[0]]}; remove it")
    with refusing(
        SpecError, "--model", found="its tokenizer cannot be made", cure="correct text_cfg", also=(ImportError,)
    ):
        if source := text.get("hf_tokenizer_name"):
            return open_clip.tokenizer.HFTokenizer(
                source,
                context_length=text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
                tokenizer_mode=text.get("tokenizer_mode"),
                **{**given, "trust_remote_code": False},
            )
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
            return open_clip.get_tokenizer(f"local-dir:{folder}")
