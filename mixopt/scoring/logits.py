"""Logits: what a family's predict gave, as one tensor ``[b, n_classes]``, whatever it is wrapped in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixopt.errors import SpecError, names
from mixopt.scoring.outcomes import Outcomes
from mixopt.values.kept_logits import LEAST, KeptLogits, kept_of

LOGITS = "logits"
_EXPECTED = "expected a tensor of logits [batch, classes]"


def logits_of(given: Any, count: int) -> tuple[Tensor, str]:
    """The logits in what ``predict`` gave, and a sentence on where they were found.

    A tensor stands for itself. Of what declares its parts (a mapping, as the outputs of transformers are, a tuple with
    names, or a dataclass) the part named ``logits`` is taken; else, of a tuple or list, the first tensor, and of a
    mapping its only one. Any other object is refused, also one that happens to have an attribute of that name: what an
    attribute means is known to whoever wrote the class, who can name it in ``predict``.

    Args:
        given: By ``predict``, for one batch.
        count: Samples in the batch.

    Returns:
        ``[count, n_classes]`` float32, and the sentence; empty where a tensor was given.

    Raises:
        SpecError: There are no logits in it, or their shape or dtype is another.
    """
    found, where = (given, "") if isinstance(given, Tensor) else _inside(given)
    if found is None:
        raise SpecError(f"--family: {_EXPECTED} from predict, found {_described(given)}{_advice(given)}")
    shape = list(found.shape)
    if found.ndim != 2 or len(found) != count or not found.is_floating_point():
        inside = f" ({where})" if where else ""
        raise SpecError(
            f"--family: {_EXPECTED} from predict, here [{count}, classes] in a floating-point dtype, found a tensor "
            f"of shape {shape} in {str(found.dtype).removeprefix('torch.')}{inside}"
        )
    parts = f" ({names(map(str, _parts(given)))})" if where else ""
    return found.float(), f"predict of --family gives {_kind(given)}{parts}, no tensor: {where}" if where else ""


def restricted(logits: Tensor, among: tuple[int, ...] | None) -> Tensor:
    """Logits ``[b, n_classes]`` with minus infinity for every class that is not among those given.

    Predictions and cross-entropy are then those of the logits of these classes alone, and classes keep their numbers:
    how ImageNet-R is scored (Hendrycks et al., "The many faces of robustness", ICCV 2021, arXiv 2006.16241).
    """
    if among is None:
        return logits
    outside = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    outside[list(among)] = False
    return logits.masked_fill(outside, -torch.inf)


@dataclass(frozen=True, eq=False)
class Told:
    """What is kept of a batch's logits, where the model runs.

    Attributes:
        each: Fields of `Outcomes` to ``[b]``.
        values: ``[b, k]`` float16, and the others as in `KeptLogits`.
        classes: ``[b, k]`` int64, or None.
        rest: ``[b]`` float16, or None.
        class_count: The model's classes.
    """

    each: Mapping[str, Tensor]
    values: Tensor
    classes: Tensor | None
    rest: Tensor | None
    class_count: int


def told(logits: Tensor, labels: Tensor) -> Told:
    """What is kept of logits ``[b, n_classes]`` float32 and labels ``[b]``."""
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    # The cross-entropy is this and a look-up: its other half costs nothing more.
    chances = F.log_softmax(logits, dim=1)
    each = {
        "predicted": logits.argmax(dim=1),
        "losses": F.nll_loss(chances, labels, reduction="none"),
        "above": ((logits > own) | ((logits == own) & lower)).sum(dim=1),
        "confidence": (logits - logits.amax(dim=1, keepdim=True)).exp().sum(dim=1).reciprocal(),
    }
    class_count = logits.shape[1]
    few = kept_of(class_count)
    if few == class_count:
        return Told(each, _kept(chances), None, None, class_count)
    classes = logits.topk(few, dim=1).indices
    # The right class is always kept; the last of the others gives way to it.
    classes[:, -1] = torch.where((classes == labels[:, None]).any(dim=1), classes[:, -1], labels)
    classes = classes.sort(dim=1).values
    values = chances.gather(1, classes)
    # Not from what the kept ones leave of 1: next to nothing is left of it where the model is sure.
    rest = chances.scatter(1, classes, -torch.inf).logsumexp(dim=1)
    return Told(each, _kept(values), classes, _kept(rest), class_count)


def _kept(chances: Tensor) -> Tensor:
    """Log-probabilities as the cache keeps them; those of classes that are left out are the least that there is."""
    return chances.clamp(LEAST, 0.0).half()


def outcomes_of(batches: Sequence[Told]) -> Outcomes:
    """The outcomes of batches, one after another, see `told`."""
    dtypes = {"predicted": np.int64, "losses": np.float64, "above": np.int64, "confidence": np.float64}
    found: dict[str, Any] = {
        name: torch.cat([batch.each[name] for batch in batches]).cpu().numpy().astype(dtype)
        for name, dtype in dtypes.items()
    }
    # Where a model overflows, its logits are no numbers.
    return Outcomes(**found, logits=_logits(batches) if np.all(np.isfinite(found["losses"])) else None)


def _logits(batches: Sequence[Told]) -> KeptLogits:
    values = torch.cat([batch.values for batch in batches]).cpu().numpy().astype(np.float32)
    classes = [batch.classes for batch in batches if batch.classes is not None]
    rest = [batch.rest for batch in batches if batch.rest is not None]
    return KeptLogits(
        values,
        torch.cat(classes).cpu().numpy() if classes else None,
        torch.cat(rest).cpu().numpy().astype(np.float32) if rest else None,
        batches[0].class_count,
    )


def _inside(given: Any) -> tuple[Tensor | None, str]:
    parts = _parts(given)
    if isinstance(parts.get(LOGITS), Tensor):
        return parts[LOGITS], f"its {LOGITS} are taken"
    tensors = [part for part in parts.values() if isinstance(part, Tensor)]
    if isinstance(given, (tuple, list)) and tensors:
        others = names(str(list(each.shape[1:])) for each in tensors[1:])
        left = f", {list(tensors[0].shape[1:])} a sample, and the others are not used ({others})" if others else ""
        return tensors[0], f"its first tensor is taken as the {LOGITS}{left}"
    if isinstance(given, Mapping) and len(tensors) == 1:
        return tensors[0], f"its only tensor is taken as the {LOGITS}"
    return None, ""


def _parts(given: Any) -> dict[str, Any]:
    """What it declares that it is made of, by name or number."""
    if isinstance(given, Mapping):
        return {str(name): part for name, part in given.items()}
    if isinstance(given, (tuple, list)):
        declared = getattr(given, "_fields", range(len(given)))
        return {str(name): part for name, part in zip(declared, given, strict=True)}
    if is_dataclass(given) and not isinstance(given, type):
        return {each.name: getattr(given, each.name, None) for each in fields(given)}
    return {}


def _described(given: Any) -> str:
    parts = [f"{key}: {list(part.shape)}" for key, part in _parts(given).items() if isinstance(part, Tensor)]
    return f"{_kind(given)} with tensors {names(parts)}" if parts else _kind(given)


def _kind(given: Any) -> str:
    name = type(given).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _advice(given: Any) -> str:
    if isinstance(getattr(given, LOGITS, None), Tensor):
        return f"; it has an attribute {LOGITS}: let predict return that, or a dict or a dataclass with it"
    return ""
