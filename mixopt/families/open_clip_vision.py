"""open_clip's image towers: the forward pass in segments, and which architecture a tower's shapes are of."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import open_clip
from open_clip.transformer import VisionTransformer
from torch import Tensor

from mixopt.errors import SpecError, names
from mixopt.scoring.evaluator import Predict

Shapes = Mapping[str, tuple[int, ...]]
# What VisionTransformer._embeds runs.
_STEM = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.")
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(attn|ln_1|ln_2|mlp)\.")
_STAGE = re.compile(r"layer([1-4])\.(\d+)\.")
# What a tower of the plain kind has outside its blocks, and a config says of one.
_PLAIN = re.compile(r"conv1\.weight|class_embedding|positional_embedding|ln_(pre|post)\.(weight|bias)|proj")
_SAID = frozenset({"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"})


def segments_of(visual: Any, every: Collection[str], prefix: str) -> tuple[frozenset[str], ...] | None:
    """A model's tensors by segments: the stem, each block, and the rest; None for towers of another kind.

    Args:
        visual: The image tower.
        every: The names of all of the model's tensors.
        prefix: What stands before the tower's own.
    """
    # Anything derived from it may run its parts another way.
    if type(visual) is not VisionTransformer or not visual.transformer.batch_first:
        return None
    stem = tuple(f"{prefix}{part}" for part in _STEM)
    blocks = [(f"{prefix}transformer.resblocks.{number}.",) for number in range(len(visual.transformer.resblocks))]
    found = [frozenset(name for name in every if name.startswith(starts)) for starts in (stem, *blocks)]
    return *found, frozenset(every).difference(*found)


def steps_of(visual: Any, classify: Callable[[Tensor], Tensor]) -> tuple[Predict, ...]:
    """What ``VisionTransformer.forward`` runs, part by part, the last with what makes logits of its features."""

    def head(hidden: Tensor) -> Tensor:
        return classify(visual._pool(hidden)[0] @ visual.proj)

    return visual._embeds, *visual.transformer.resblocks, head


def architecture_of(shapes: Shapes) -> tuple[str, str | None]:
    """The registered architecture of an image tower, and what a user should know of the choice, if anything.

    Architectures that differ in their text tower alone are one here. Where they differ in the activation, which shapes
    do not tell, the one of OpenAI's weights is taken (quick GELU), and else the plain one.

    Args:
        shapes: Tensor name, within the tower, to shape.

    Raises:
        SpecError: No architecture has such a tower, or several have that differ in more.
    """
    tower = _transformer(shapes) or _residual(shapes)
    configs = {name: open_clip.get_model_config(name) for name in open_clip.list_models()} if tower else {}
    fitting = {name: config for name, config in configs.items() if _described(config) == tower}
    if not fitting:
        shown = f" ({', '.join(f'{name} {value}' for name, value in tower.items())})" if tower else ""
        raise SpecError(
            f"--model: no registered open_clip architecture has the image tower of the checkpoints{shown}; name the "
            "one they were fine-tuned from, or its config file: --model NAME"
        )
    if len({config["vision_cfg"].get("head_width", 64) for config in fitting.values()}) > 1:
        raise SpecError(
            f"--model: the image tower of the checkpoints may be that of {names(sorted(fitting))}; name the one that "
            "they were fine-tuned from: --model NAME"
        )
    openai = [name for name in fitting if "openai" in open_clip.list_pretrained_tags_by_model(name)]
    quick = {name: bool(config.get("quick_gelu")) for name, config in fitting.items()}
    # The shortest name is the plainest.
    ranked = sorted(openai or fitting, key=lambda name: (quick[name] != bool(openai), len(name), name))
    chosen = ranked[0]
    others = sorted((name for name in fitting if quick[name] != quick[chosen]), key=lambda name: (len(name), name))
    if not others:
        return chosen, None
    why = "as OpenAI's weights are" if openai and quick[chosen] else "the plain one"
    return chosen, (
        f"by their shapes the image towers are of {chosen} or {others[0]}, which differ in the activation alone: "
        f"{chosen} is taken ({why}); --model {others[0]} says otherwise"
    )


def _transformer(shapes: Shapes) -> dict[str, Any] | None:
    """What shapes tell of a plain vision transformer; None for anything else."""
    blocks = {int(found[1]) for name in shapes if (found := _BLOCK.match(name))}
    outside = [name for name in shapes if not _BLOCK.match(name)]
    stem, positions = shapes.get("conv1.weight", ()), shapes.get("positional_embedding", ())
    proj, hidden = shapes.get("proj", ()), shapes.get("transformer.resblocks.0.mlp.c_fc.weight", ())
    if not blocks or any(not _PLAIN.fullmatch(name) for name in outside) or "ln_pre.weight" not in shapes:
        return None
    if [len(shape) for shape in (stem, positions, proj, hidden)] != [4, 2, 2, 2]:
        return None
    side = round((positions[0] - 1) ** 0.5)
    if side * side != positions[0] - 1 or blocks != set(range(len(blocks))):
        return None
    return {
        "width": stem[0],
        "patch_size": stem[-1],
        "image_size": side * stem[-1],
        "layers": len(blocks),
        "mlp_width": hidden[0],
        "embed_dim": proj[1],
    }


def _residual(shapes: Shapes) -> dict[str, Any] | None:
    """What shapes tell of one of CLIP's residual networks; None for anything else."""
    blocks = {(int(found[1]), int(found[2])) for name in shapes if (found := _STAGE.match(name))}
    first, last = shapes.get("layer1.0.conv1.weight", ()), shapes.get("attnpool.c_proj.weight", ())
    positions = shapes.get("attnpool.positional_embedding", ())
    if [len(shape) for shape in (first, last, positions)] != [4, 2, 2]:
        return None
    return {
        "width": first[0],
        "image_size": 32 * round((positions[0] - 1) ** 0.5),
        "layers": [sum(stage == number for stage, _ in blocks) for number in range(1, 5)],
        "embed_dim": last[0],
    }


def _described(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a registered config says of an image tower of these kinds; None for any other, or a hub's text tower."""
    vision = config["vision_cfg"]
    if not vision.keys() <= _SAID or "hf_model_name" in config["text_cfg"]:
        return None
    alike = {name: vision[name] for name in ("width", "image_size", "layers")} | {"embed_dim": config["embed_dim"]}
    if isinstance(vision["layers"], list):
        return alike
    return {
        **alike,
        "patch_size": vision["patch_size"],
        "mlp_width": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
    }
