"""Models that end in a layer of one row per class: how many classes a checkpoint has, told from its shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import nn

from mixopt.errors import SpecError, names
from mixopt.memory import available_memory, gigabytes

Shapes = Mapping[str, tuple[int, ...]]
# Told where images are enlarged.
ENLARGED = "smaller ones are enlarged; if the model was fine-tuned at another size, say it with --image-size"
_PROBES = 8


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Tensor name to shape of a module, which may be without memory."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def head_names(few: Shapes, many: Shapes) -> frozenset[str]:
    """The tensors that grow with the number of classes, from one architecture's shapes at two such numbers."""
    return frozenset(name for name in few if few[name] != many.get(name))


def under_names(found: Shapes, expected: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """A checkpoint's shapes by the model's names: without the prefix under which most of those stand."""
    ours = frozenset(expected)
    probes = sorted(ours, key=lambda name: (-len(name), name))[:_PROBES]
    prefixes = Counter({"": 0})
    for name in found:
        prefixes.update(name.removesuffix(probe) for probe in probes if name == probe or name.endswith(f".{probe}"))
    prefix = max(sorted(prefixes, key=len), key=lambda each: prefixes[each])
    return {name.removeprefix(prefix): shape for name, shape in found.items() if name.startswith(prefix)}


def count_classes(
    fitted: Shapes, heads: frozenset[str], said: int | None, classnames: tuple[str, ...] | None, where: str
) -> int:
    """The number of classes.

    Args:
        fitted: From `under_names`; empty where no checkpoint is known.
        heads: From `head_names`.
        said: What a config says, if there is one.
        classnames: The user's class names, if any.
        where: The model, for messages.

    Raises:
        SpecError: Nothing tells it, or two of these tell different numbers.
    """
    rows = {name: fitted[name][0] for name in sorted(heads) if fitted.get(name)}
    named = None if classnames is None else len(classnames)
    if len(set(rows.values())) > 1:
        shown = names(f"{name} has {count} rows" for name, count in rows.items())
        raise SpecError(f"{where}: the checkpoint has heads of several sizes ({shown}); expected one number of classes")
    told = {"its head": next(iter(rows.values()), None), "its config": said, "classnames": named}
    counts = {source: count for source, count in told.items() if count is not None}
    if not counts:
        raise SpecError(
            f"{where}: the number of classes is not known, as the checkpoint has no tensor by the name of the model's "
            f"head ({names(sorted(heads), 3)}); correct model, or set classnames"
        )
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} by {source}" for source, count in counts.items())
        raise SpecError(f"{where}: the number of classes is in doubt: {shown}; correct what is wrong")
    return next(iter(counts.values()))


def check_memory(shapes: Shapes, where: str) -> None:
    """Refuse a model that would take more memory than there is, before any of it is made.

    Raises:
        SpecError: It would.
    """
    needed = 0
    for shape in shapes.values():
        count = 4
        for size in shape:
            count *= size
        needed += count
    if needed > (free := available_memory()) > 0:
        raise SpecError(
            f"{where}: a model of this form needs {gigabytes(needed)} of memory, and {gigabytes(free)} can be had"
        )
