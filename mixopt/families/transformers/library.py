"""What transformers itself is asked for: a config, a model, its names for tensors; and no hub is asked meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from mixopt.errors import CheckpointError, SpecError, short, unknown
from mixopt.families.hub import no_hub
from mixopt.families.transformers.folder import Described
from mixopt.untrusted import refusing

TEXTS, IMAGES = "SequenceClassification", "ImageClassification"
# Far beyond any model: what comes next is refused by its memory.
_MOST_LAYERS = 1000
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "depth")
# The last layer of a head that an adapter brings (modules_to_save).
_ADAPTERS_HEAD = re.compile(r"^base_model\.model\.(classifier|score)(\.\w+)*\.(out_proj\.)?weight$")


@contextmanager
def offline() -> Iterator[None]:
    """Whatever a file says, no hub is asked in this block.

    Raises:
        SpecError: transformers is not installed.
    """
    try:
        import transformers  # noqa: F401 (its absence is told here)
    except ImportError as error:
        raise SpecError(
            f"--family transformers needs the library ({error}); install it: pip install 'mixopt[transformers]'"
        ) from error
    with no_hub():
        yield


def task_of(described: Described) -> str:
    """What the model does: `TEXTS` or `IMAGES`.

    Raises:
        SpecError: Something else, or what cannot be scored by class.
    """
    config, where = described.config, described.where
    refuse_config(config, where)
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    tasks = [task for task in (TEXTS, IMAGES) if f"For{task}" in architecture]
    if not architecture:
        tasks = [task for task in (TEXTS, IMAGES) if str(config.get("model_type")) in _models_for(task)]
    if len(tasks) != 1:
        raise SpecError(
            f"{where}: expected a model of transformers' that classifies texts or images (architectures: "
            f"...For{TEXTS} or ...For{IMAGES}), found {short(architecture) or 'none named'}; for another task "
            "write a family of your own (mixopt guide files)"
        )
    return tasks[0]


def with_head(described: Described, shapes: Mapping[str, tuple[int, ...]]) -> Described:
    """The config of a pretrained model, made that of a classifier where adapters bring the head.

    Args:
        described: What the base's folder says.
        shapes: Tensor name to shape of the first ingredient, as its file has them.
    """
    heads = {shape[0] for name, shape in shapes.items() if _ADAPTERS_HEAD.search(name)}
    if is_classifier(described.config) or len(heads) != 1:
        return described
    count = heads.pop()
    labels = {"id2label": {str(number): f"LABEL_{number}" for number in range(count)}, "num_labels": count}
    said = f"{described.where}: describes no classifier; the adapters' head of {count} classes is put on it"
    config = {key: value for key, value in described.config.items() if key not in ("architectures", "label2id")}
    return replace(described, config={**config, **labels}, notices=(*described.notices, said))


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a model that classifies, as far as it names its architecture."""
    named = config.get("architectures")
    return not named or any(f"For{task}" in str(named) for task in (TEXTS, IMAGES))


def refuse_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse what is no model of classes, quantised, or far beyond any model.

    Raises:
        SpecError: It is.
    """
    if (problem := config.get("problem_type")) not in (None, "single_label_classification"):
        raise SpecError(f"{where}: problem_type is {short(repr(problem))}; only single_label_classification is scored")
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else "unknown"
        raise SpecError(
            f"{where}: the model is quantised ({short(str(method))}), which cannot be mixed; use the checkpoint before "
            "it was quantised, or save a dequantised one"
        )
    for key in _LAYERS:
        if isinstance(layers := config.get(key), int) and not 0 <= layers <= _MOST_LAYERS:
            raise SpecError(f"{where}: {key} is {layers:,}; expected 0 to {_MOST_LAYERS:,}; correct it")
    for name in (config.get("architecture"), config.get("backbone")):
        if isinstance(name, str) and (":" in name or "/" in name):
            raise SpecError(f"{where}: names the model {short(name)} of a hub or another folder; nothing is downloaded")
    if config.get("use_pretrained_backbone"):
        raise SpecError(f"{where}: use_pretrained_backbone downloads weights; set it to false, the checkpoint has them")


def config_of(values: Mapping[str, Any], where: str) -> Any:
    """The config object of what a ``config.json`` holds.

    Raises:
        SpecError: transformers does not know its kind, or cannot make it.
    """
    from transformers import CONFIG_MAPPING

    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        what = unknown("model_type", short(str(kind)), CONFIG_MAPPING.keys()) if kind else "there is no model_type"
        raise SpecError(f"{where}: {what}; models that bring code of their own are not run")
    with refusing(
        SpecError, where, found="transformers cannot make a config of it", cure="correct it", also=strict_errors()
    ):
        return CONFIG_MAPPING[kind].from_dict(dict(values))


def strict_errors() -> tuple[type[Exception], ...]:
    """What transformers raises of configs beside Python's own errors."""
    from huggingface_hub.errors import StrictDataclassError

    return (StrictDataclassError, ImportError)


def make(config: Any, task: str, where: str) -> Any:
    """A model of a config in float32, in evaluation mode, its weights random.

    Raises:
        SpecError: transformers cannot make it.
    """
    import transformers

    auto: Any = getattr(transformers, f"AutoModelFor{task}")
    found = "transformers cannot make this model"
    with refusing(SpecError, where, found=found, cure="correct the config", also=strict_errors()):
        kind = auto._model_mapping[type(config)]
        every = kind if isinstance(kind, tuple) else (kind,)
        # The same whatever the machine has installed, and never a kernel of a hub that a config names.
        attention = "sdpa" if all(each._supports_sdpa for each in every) else "eager"
        return auto.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()


def renaming(meta: Any, where: str) -> Callable[[str], str]:
    """From the name of a tensor in files to transformers' own in memory; other names stay.

    Args:
        meta: The model, its weights without memory.
        where: Its config, for messages.

    Returns:
        A function, which raises a `CheckpointError` where a tensor is split or merged with others as it is loaded.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    steps = get_model_conversion_mapping(meta)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    own = dict.fromkeys(meta.state_dict(), True)

    def rename(name: str) -> str:
        if name in own:
            return name
        found, converted = rename_source_key(name, renamings, converters, meta.base_model_prefix, own)
        if found in own and converted is not None:
            raise CheckpointError(
                f"{where}: transformers makes {short(found)} of several tensors of a file as it loads them, which "
                "cannot be mixed by name; load each model with transformers and save its state_dict() in a .pt file"
            )
        return str(found) if found in own else name

    return rename


def head_of(meta: Any, count: int) -> frozenset[str]:
    """The names of the one layer that has a row for each label; empty where there is none, or more than one."""
    base = f"{meta.base_model_prefix}."
    shapes = {name: tensor.shape for name, tensor in meta.state_dict().items()}
    outside = [name for name in shapes if not name.startswith(base)]
    if not outside:  # a model of timm's: it knows itself
        classifier = meta.timm_model.get_classifier() if hasattr(meta, "timm_model") else None
        layers = [name for name, module in meta.named_modules() if module is classifier and classifier is not None]
        outside = [name for name in shapes if name.rpartition(".")[0] in layers]
    found = {name for name in outside if shapes[name][:1] == (count,)}
    return frozenset(found if len({name.rpartition(".")[0] for name in found}) == 1 else ())


def _models_for(task: str) -> Any:
    from transformers.models.auto import modeling_auto

    which = {TEXTS: "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"}
    return getattr(modeling_auto, which.get(task, "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"))
