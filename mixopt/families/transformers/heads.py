"""Whether an ingredient's own config means the same model as the family's, and label maps in another order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mixopt.errors import SpecError, names, short

# Fields of a config that change no logit of a model in evaluation mode, or that are compared by themselves.
_WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "chunk_size_feed_forward",
        "dtype",
        "finetuning_task",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "label2id",
        "label_names",
        "label_smoothing",
        "num_classes",
        "layerdrop",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_UNNAMED = re.compile(r"LABEL_\d+")
# Of heads whose rows are in one order after the map and in another before it; between, nothing is certain.
_ALIKE, _CLEARLY = 0.5, 0.5


def differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs between two configs, complete with defaults, and changes what the model computes."""
    return [
        f"{key} is {short(repr(other[key]))}, expected {short(repr(value))}"
        for key, value in own.items()
        if key in other and other[key] != value and key not in _WITHOUT_EFFECT and "drop" not in key
    ]


def labels_of(config: Any, where: str) -> tuple[str, ...] | None:
    """The names of the labels in the order of the logits; None where the config has none, or ``LABEL_0`` and on.

    Args:
        config: transformers' own config object.
        where: The file, for messages.

    Raises:
        SpecError: The numbers are not 0 and on, or two labels have one name.
    """
    named = config.id2label
    if sorted(named, key=str) != sorted(range(len(named)), key=str) or not all(
        isinstance(label, str) for label in named.values()
    ):
        raise SpecError(
            f"{where}: expected id2label as the numbers from 0 on with a name each, found {short(repr(named))}; "
            "correct it"
        )
    labels = tuple(named[number] for number in range(len(named)))
    if all(_UNNAMED.fullmatch(label) for label in labels):
        return None
    if len(set(labels)) != len(labels):
        raise SpecError(f"{where}: two labels of id2label have the same name ({names(labels)}); correct it")
    return labels


def label_problem(own: Sequence[str] | None, other: Sequence[str] | None, counts: tuple[int, int]) -> str:
    """What is wrong with an ingredient's labels where no order brings them together; else nothing.

    Args:
        own: The family's labels; None where they have no names.
        other: The ingredient's.
        counts: How many the family has, and the ingredient.
    """
    if counts[0] != counts[1]:
        return f"it has {counts[1]} labels, expected {counts[0]}"
    if own is None or other is None or sorted(own) == sorted(other):
        return ""
    return f"its labels are {_listed(other)}, expected {_listed(own)}"


def order_of(own: Sequence[str] | None, other: Sequence[str] | None) -> list[int] | None:
    """The place in the ingredient's labels of each of the family's; None where they are in one order already."""
    if own is None or other is None or list(own) == list(other):
        return None
    return [list(other).index(label) for label in own]


def reordered(
    head: Mapping[str, Tensor], reference: Mapping[str, Tensor], order: Sequence[int]
) -> tuple[dict[str, Tensor], str]:
    """A head's rows in the family's order, where the weights themselves show that they are in the config's order.

    Heads that were fine-tuned from one start resemble each other row by row, once each row's common part is taken off.

    Args:
        head: The ingredient's tensors ``[n_labels, ...]``.
        reference: Those of the first ingredient, whose order is the family's.
        order: From `order_of`.

    Returns:
        The tensors in the family's order, and nothing; or no tensors, and what the weights show instead.
    """
    before, after = _likeness(head, reference), _likeness({name: x[list(order)] for name, x in head.items()}, reference)
    if after >= _ALIKE and after - before >= _CLEARLY:
        return {name: tensor[list(order)].contiguous() for name, tensor in head.items()}, ""
    if before >= _ALIKE and before - after >= _CLEARLY:
        return {}, "the rows of its head resemble the first ingredient's as they stand: its config seems to be wrong"
    return {}, "its head's rows do not resemble the first ingredient's enough in either order to tell which is right"


def permuted(own: Sequence[str], other: Sequence[str], shown: str, config: str) -> str:
    """The error for labels in another order that cannot be brought into the family's."""
    return (
        f"its labels are in the order {_listed(other)}, expected {_listed(own)}, and {shown}; correct id2label in "
        f"{config} if it is wrong, or put the rows of the head in the expected order, or leave this ingredient out"
    )


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(map(short, labels[:10]))
    return f"[{shown}{', ...' if len(labels) > 10 else ''}]"


def _likeness(head: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """The cosine between two heads ``[n_labels, ...]`` without the part that all rows have in common."""

    def centred(tensors: Mapping[str, Tensor]) -> Tensor:
        rows = torch.cat([tensors[name].double().flatten(1) for name in reference if tensors[name].ndim > 1], dim=1)
        return (rows - rows.mean(dim=0)).flatten()

    return float(torch.nn.functional.cosine_similarity(centred(head), centred(reference), dim=0))
