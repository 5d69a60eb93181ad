"""What can be wrong between the checkpoints of a pool. Each check gives all the problems it finds, as text."""

from __future__ import annotations

from collections.abc import Mapping

from mixopt.errors import names
from mixopt.weights import checkpoints
from mixopt.weights.reading import Contents


def misfits(contents: Mapping[str, Contents]) -> list[str]:
    """Keys, shapes, kinds and ties that differ from the first checkpoint's."""
    problems: list[str] = []
    if not contents:
        return problems
    first_name, first = next(iter(contents.items()))
    for name, other in contents.items():
        if missing := [tensor for tensor in first.shapes if tensor not in other.shapes]:
            problems.append(f"{name}: lacks {len(missing)} tensors that {first_name} has: {names(missing)}")
        if extra := [tensor for tensor in other.shapes if tensor not in first.shapes]:
            problems.append(f"{name}: has {len(extra)} tensors that {first_name} lacks: {names(extra)}")
        if other.tied != first.tied:
            problems.append(f"{name}: ties other tensors than {first_name} ({other.tied} and {first.tied})")
        for tensor in (each for each in first.shapes if each in other.shapes):
            if other.shapes[tensor] != first.shapes[tensor]:
                problems.append(
                    f"{name}: {tensor} has shape {list(other.shapes[tensor])}, "
                    f"expected {list(first.shapes[tensor])} as in {first_name}"
                )
            elif other.dtypes[tensor].is_floating_point != first.dtypes[tensor].is_floating_point:
                problems.append(
                    f"{name}: {tensor} is {other.dtypes[tensor]}, but {first.dtypes[tensor]} in {first_name}"
                )
            elif other.dtypes[tensor].is_complex:
                problems.append(f"{name}: {tensor} is complex; only real tensors can be mixed")
    return problems


def duplicates(contents: Mapping[str, Contents]) -> list[str]:
    """Checkpoints whose tensors are all the same under two names."""
    seen: dict[str, str] = {}
    problems = []
    for name, content in contents.items():
        twin = seen.setdefault(checkpoints.content_hash(content.hashes), name)
        if twin != name:
            problems.append(f"{name}: the same weights as {twin}; remove one of the two")
    return problems


def not_finite(contents: Mapping[str, Contents]) -> list[str]:
    """NaN anywhere; an infinity is legal only where all agree on it (an attention mask)."""
    problems = []
    for name, content in contents.items():
        problems += [
            f"{name}: tensor {tensor} holds NaN" for tensor in content.shapes if content.scans[tensor].holds_nan
        ]
        for tensor in content.shapes:
            if content.scans[tensor].holds_infinity and not identical(contents, tensor):
                problems.append(f"{name}: tensor {tensor} holds an infinite value")
    return problems


def identical(contents: Mapping[str, Contents], tensor: str) -> bool:
    """Whether a tensor has been read in all checkpoints and is the same in them."""
    hashes = {content.hash_of(tensor) for content in contents.values()}
    return len(hashes) == 1 and None not in hashes
