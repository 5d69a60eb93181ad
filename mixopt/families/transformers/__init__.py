"""transformers' models (https://github.com/huggingface/transformers) that classify texts or images, from local folders.

The config, the tokenizer and the image processor are those of a folder; a hub is never asked, and code that a folder
names is never run. Weights keep the names that files have them under: `rename` says what transformers calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from mixopt.errors import CheckpointError, SpecError, names
from mixopt.families import FamilyOptions
from mixopt.families.image_encoding import image_encoding
from mixopt.families.transformers.folder import (
    CONFIG,
    PROCESSORS,
    config_beside,
    describe,
    read_config,
    text_of,
    without_dtype,
)
from mixopt.families.transformers.heads import differences, label_problem, labels_of, order_of, permuted, reordered
from mixopt.families.transformers.images import open_preprocess
from mixopt.families.transformers.library import (
    IMAGES,
    config_of,
    head_of,
    is_classifier,
    make,
    offline,
    renaming,
    task_of,
    with_head,
)
from mixopt.families.transformers.text import longest_of, open_tokenizer, padding_of, text_encoding
from mixopt.memory import available_memory, gigabytes
from mixopt.scoring.evaluator import Predict
from mixopt.untrusted import refusing
from mixopt.values.groups import depth_order
from mixopt.values.samples import Encoding
from mixopt.weights.checkpoints import Checkpoint


class Transformers:
    """The family; see `mixopt.families.Family`."""

    def __init__(self, options: FamilyOptions) -> None:
        if options.image_size is not None:
            raise SpecError("--image-size: a model of transformers' takes images as its own processor makes them")
        with offline():
            self._described = with_head(describe(options.model, options.folder), options.shapes)
            self._where = self._described.where
            self._task = task_of(self._described)
            self._config = config_of(self._described.config, self._where)
            self._labels = labels_of(self._config, self._where)
            self._classnames = self._names(options.classnames)
            self._encoding = self._open_encoding()
        # The first ingredient's, which those with their labels in another order are compared with.
        self._head: dict[str, Tensor] = {}

    @property
    def classnames(self) -> tuple[str, ...] | None:
        """The labels' names in the order of the logits, where the config or the user has any."""
        return self._classnames

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of how the folder was understood."""
        return self._described.notices

    @property
    def encoding(self) -> Encoding:
        """That of texts or of images, by the model's task."""
        return self._encoding

    def build(self) -> nn.Module:
        """A new model of the config in float32, randomly initialised, without touching the global random state."""
        needed = sum(tensor.nbytes for tensor in self._meta.state_dict().values())
        if needed > (free := available_memory()) > 0:
            raise SpecError(
                f"{self._where}: a model of this config needs {gigabytes(needed)} of memory, and {gigabytes(free)} can "
                "be had"
            )
        with torch.random.fork_rng(devices=[]), offline():
            module: nn.Module = make(self._config, self._task, self._where)
        return module

    def predict(self, module: nn.Module, fixed: frozenset[str]) -> Predict:
        """The model's own logits."""
        model: Any = module
        if self._task == IMAGES:
            return lambda images: model(pixel_values=images).logits
        taken = signature(model.forward).parameters

        def logits(batch: Mapping[str, Tensor]) -> Tensor:
            return torch.as_tensor(model(**{name: value for name, value in batch.items() if name in taken}).logits)

        return logits

    def depth(self, names: Iterable[str]) -> list[str]:
        """Embeddings, layers by number, pooler, head."""
        place = {name: number for number, name in enumerate(self._meta.state_dict())}
        return depth_order(sorted(names, key=lambda name: place.get(name, len(place))))

    def rename(self, name: str) -> str:
        """The name in memory of what files, or older releases, call otherwise.

        Raises:
            CheckpointError: The tensor is split or merged with others while it is loaded.
        """
        return self._renamed(name)

    def fitted(self, checkpoint: Checkpoint) -> Checkpoint:
        """A checkpoint whose own config means this model, its labels in this order; see `mixopt.families.Compared`.

        Raises:
            CheckpointError: All differences between the two configs.
        """
        path = config_beside(checkpoint.path)
        if path is None:
            return self._remembered(checkpoint)
        with refusing(CheckpointError, str(path), found="cannot be compared", cure="restore it from a copy"):
            other = config_of(read_config(path), str(path))
            labels = labels_of(other, str(path))
        problems = differences(self._config.to_dict(), other.to_dict())
        if not is_classifier(other.to_dict()):  # a base that is not tuned yet
            labels = self._labels
        elif problem := label_problem(self._labels, labels, (self._config.num_labels, other.num_labels)):
            problems.append(problem)
        if problems:
            raise CheckpointError(
                f"{checkpoint.path}: its {CONFIG} differs from {self._where}: {'; '.join(problems)}; leave it out, or "
                "correct the file if it is wrong"
            )
        return self._ordered(checkpoint, labels, str(path))

    def identity(self) -> dict[str, Any]:
        """The whole config, that of the image processor, and a hash of each file of the tokenizer."""
        config, processor = self._described.config, self._described.processor
        described = {"config": config, "processor": processor, "files": self._described.hashes}
        names = None if self._classnames is None else list(self._classnames)
        return {"name": "transformers", "model": described, "classnames": names, "templates": None}

    def companions(self) -> dict[str, str | bytes]:
        """What ``from_pretrained`` reads beside the weights, whose own dtype decides; with the user's class names."""
        processor, config = self._described.processor, without_dtype(self._described.config)
        if self._labels is None and self._classnames is not None:
            config |= {"id2label": dict(enumerate(self._classnames))}
            config |= {"label2id": {name: number for number, name in enumerate(self._classnames)}}
        images = {} if processor is None else {PROCESSORS[0]: text_of(processor)}
        return {CONFIG: text_of(config), **images, **self._described.files}

    def _names(self, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """The user's class names, or the config's."""
        count = self._config.num_labels
        if given is None:
            return self._labels
        if len(given) != count:
            raise SpecError(f"classnames: {len(given)} names ({names(given)}), expected {count} as in {self._where}")
        if self._labels is not None and given != self._labels and sorted(given) == sorted(self._labels):
            raise SpecError(
                f"classnames: in the order {names(given)}, but id2label of {self._where} has {names(self._labels)}; "
                "leave classnames out"
            )
        return given

    def _open_encoding(self) -> Encoding:
        if self._task == IMAGES:
            return image_encoding(open_preprocess(self._described))
        tokenizer = open_tokenizer(self._described)
        padding = padding_of(tokenizer, self._config, self._where)
        if len(tokenizer) > self._config.vocab_size:
            raise SpecError(
                f"{self._where}: its tokenizer has {len(tokenizer):,} tokens, but the model embeds "
                f"{self._config.vocab_size:,}; expected the tokenizer that the model was trained with"
            )
        return text_encoding(tokenizer, self._described, padding, longest_of(tokenizer, self._config))

    @cached_property
    def _meta(self) -> Any:
        """The model without memory."""
        with offline(), torch.device("meta"):
            return make(self._config, self._task, self._where)

    @cached_property
    def _renamed(self) -> Callable[[str], str]:
        return renaming(self._meta, self._where)

    @cached_property
    def _head_names(self) -> frozenset[str]:
        return head_of(self._meta, self._config.num_labels)

    def _remembered(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint; the head of the first one is what later ones are compared with."""
        if not self._head:
            found = {name: checkpoint.tensors[name] for name in self._head_names if name in checkpoint.tensors}
            self._head = {name: tensor.clone() for name, tensor in found.items()}
        return checkpoint

    def _ordered(self, checkpoint: Checkpoint, labels: tuple[str, ...] | None, config: str) -> Checkpoint:
        """The checkpoint with its head's rows in the family's order."""
        if self._labels is not None and labels is None:
            said = f"{config} names no labels; they are taken to be {names(self._labels)}, in this order"
            return self._remembered(replace(checkpoint, notices=(*checkpoint.notices, said)))
        order = order_of(self._labels, labels)
        if order is None or self._labels is None or labels is None:
            return self._remembered(checkpoint)
        head = {name: checkpoint.tensors[name] for name in self._head_names if name in checkpoint.tensors}
        if head.keys() != self._head.keys() or not head:
            shown = "there is no head in this order to compare its own with"
            raise CheckpointError(f"{checkpoint.path}: {permuted(self._labels, labels, shown, config)}")
        rows, shown = reordered(head, self._head, order)
        if shown:
            raise CheckpointError(f"{checkpoint.path}: {permuted(self._labels, labels, shown, config)}")
        said = f"{config} has its labels in another order ({names(labels)}); the rows of its head are brought into ours"
        return replace(checkpoint, tensors={**checkpoint.tensors, **rows}, notices=(*checkpoint.notices, said))


def open_family(options: FamilyOptions) -> Transformers:
    """Open the family.

    Raises:
        SpecError: transformers is not installed, or the folder does not describe a model that classifies.
    """
    return Transformers(options)
