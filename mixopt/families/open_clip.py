"""open_clip models (https://github.com/mlfoundations/open_clip), scored zero-shot through class-name prompts.

Zero-shot head: the mean over templates of the normalised text embeddings, normalised again (Radford et al. 2021,
section 3.1.4); logits are the cosine to the image embedding times the model's own logit scale, plus its bias where it
has one (SigLIP, Zhai et al. 2023).
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional

from mixopt.errors import SpecError
from mixopt.families import FamilyOptions
from mixopt.families.image_encoding import image_encoding
from mixopt.families.open_clip_config import CONFIG_NAME as CONFIG_NAME
from mixopt.families.open_clip_config import completed, create, found_config, preprocess_of, tokenizer_of
from mixopt.families.open_clip_vision import segments_of, steps_of
from mixopt.memory import is_out_of_memory
from mixopt.scoring.evaluator import Predict
from mixopt.untrusted import READER_ERRORS, reason_of
from mixopt.values.groups import depth_order
from mixopt.values.samples import Encoding, Preprocess

_TEXT_NAMES = re.compile(r"^(text\.|transformer\.|token_embedding\.|positional_embedding|ln_final\.|text_projection)")


class OpenClip:
    """The family; see `mixopt.families.Family`."""

    def __init__(self, options: FamilyOptions) -> None:
        if options.image_size is not None:
            raise SpecError("--image-size: an open_clip model takes images of the size in its config; leave it out")
        self._config = completed(found_config(options))
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
        self._head: tuple[weakref.ref[nn.Module], Tensor] | None = None

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self._classnames

    @property
    def preprocess(self) -> Preprocess:
        """open_clip's own evaluation transform, with the normalisation left to the evaluator."""
        return preprocess_of(self._config)

    @property
    def encoding(self) -> Encoding:
        """That of images."""
        return image_encoding(self.preprocess)

    def build(self) -> nn.Module:
        """A new model of the config, randomly initialised, without touching the global random state."""
        with torch.random.fork_rng(devices=[]):
            return create(self._config)

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
        return segments_of(model.visual, model.state_dict(), "visual.")

    def predict_segments(self, module: nn.Module, fixed: frozenset[str]) -> tuple[Predict, ...]:
        """What ``VisionTransformer.forward`` runs, part by part."""
        model: Any = module
        visual, classify = model.visual, self._classify(model, fixed)
        return steps_of(visual, classify)

    def _classify(self, model: Any, fixed: frozenset[str]) -> Callable[[Tensor], Tensor]:
        """From image features to logits."""
        head = self._zero_shot_head(model, fixed)
        scale, bias = model.logit_scale.exp(), getattr(model, "logit_bias", None)

        def logits(features: Tensor) -> Tensor:
            # Cosines that are close decide the class: in bf16, rounding here changes more of them than the tower's.
            with torch.autocast(features.device.type, enabled=False):
                found = torch.as_tensor(scale * (functional.normalize(features.float(), dim=-1) @ head))
                return found if bias is None else found + bias

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
        device, tokenizer = model.logit_scale.device, tokenizer_of(self._config)
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
        tokens = tokenizer_of(self._config)(prompts).to(model.logit_scale.device)
        embedded = model.encode_text(tokens, normalize=True).unflatten(0, (len(self._classnames), -1))
        return functional.normalize(embedded.mean(dim=1), dim=-1).T


def open_family(options: FamilyOptions) -> OpenClip:
    """Open the family.

    Raises:
        SpecError: The architecture or config file is not known, or class names are missing.
    """
    return OpenClip(options)
