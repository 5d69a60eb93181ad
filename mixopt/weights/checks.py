"""What can be wrong between the checkpoints of a pool. Each check gives all the problems it finds, as text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mixopt.errors import names
from mixopt.weights import checkpoints
from mixopt.weights.reading import Contents

_COUNTER = re.compile(
    r"(^|[._])(num_batches_tracked|n_averaged|num_updates|updates|n_calls|steps?|count|counter|iterations?|iters?|epochs?)$"
)


def misfits(contents: Mapping[str, Contents]) -> list[str]:
    """Keys, shapes, kinds and ties that differ from the most usual ones."""
    problems: list[str] = []
    if not contents:
        return problems
    first_name = _most_usual(contents)
    first = contents[first_name]
    for name, other in contents.items():
        problems += _strange_names(name, other, first_name, first)
        if ties(other) != ties(first):
            problems.append(f"{name}: ties other tensors than {first_name} ({_shown(other)} and {_shown(first)})")
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


def _most_usual(contents: Mapping[str, Contents]) -> str:
    """The first checkpoint of the most common layout, so that the odd one is named and not all others."""
    layouts = {name: frozenset(content.shapes.items()) for name, content in contents.items()}
    counts = Counter(layouts.values())
    return max(layouts, key=lambda name: counts[layouts[name]])


def _strange_names(name: str, other: Contents, first_name: str, first: Contents) -> list[str]:
    """Tensors that one of two checkpoints lacks."""
    missing = [tensor for tensor in first.shapes if tensor not in other.shapes]
    extra = [tensor for tensor in other.shapes if tensor not in first.shapes]
    if missing and sorted(first.shapes[each] for each in missing) == sorted(other.shapes[each] for each in extra):
        return [
            f"{name}: has {len(extra)} tensors of the shapes of {first_name}'s under other names ({names(extra)} for "
            f"{names(missing)}); if they are the same part of the model, save it under the same names"
        ]
    problems = []
    if missing:
        problems.append(f"{name}: lacks {len(missing)} tensors that {first_name} has: {names(missing)}")
    if extra:
        problems.append(f"{name}: has {len(extra)} tensors that {first_name} lacks: {names(extra)}")
    return problems


def ties(content: Contents) -> frozenset[frozenset[str]]:
    """The names that share a tensor, whichever of them it is stored under."""
    shared: dict[str, set[str]] = {}
    for alias, name in content.tied.items():
        shared.setdefault(name, {name}).add(alias)
    return frozenset(map(frozenset, shared.values()))


def _shown(content: Contents) -> str:
    return "; ".join(" = ".join(sorted(each)) for each in sorted(ties(content), key=sorted)) or "none"


def likely_twins(contents: Mapping[str, Contents]) -> list[list[str]]:
    """Checkpoints that may hold the same weights under several names, by a few values of each tensor."""
    alike: dict[tuple[tuple[str, bytes, torch.dtype], ...], list[str]] = {}
    for name, content in contents.items():
        key = tuple((each, sample, content.dtypes[each]) for each, sample in sorted(content.samples.items()))
        alike.setdefault(key, []).append(name)
    return [each for each in alike.values() if len(each) > 1]


def twins(contents: Mapping[str, Contents], base: str | None) -> dict[str, str]:
    """Checkpoint to another one with the same weights, which stands for both: the base, or the first."""
    first: dict[str, str] = {}
    hashes = {name: checkpoints.content_hash(content.hashes) for name, content in contents.items()}
    for name in sorted(hashes, key=lambda each: each != base):
        first.setdefault(hashes[name], name)
    return {name: first[found] for name, found in hashes.items() if first[found] != name}


def unmixable(contents: Mapping[str, Contents], differing: Sequence[str]) -> list[str]:
    """Tensors that differ and are no weights of a kind that can be mixed, counters aside."""
    first = next(iter(contents.values()))
    whole = [name for name in differing if not first.dtypes[name].is_floating_point and not is_counter(first, name)]
    if not whole:
        return []
    kinds = names(sorted({str(first.dtypes[name]).removeprefix("torch.") for name in whole}))
    return [
        f"{len(whole)} tensors of {kinds} differ and cannot be mixed ({names(whole)}): no checkpoint's integers fit "
        "the other's weights. Save the checkpoints in floating point first, or leave out those that differ"
    ]


def _differ_in_integers(contents: Mapping[str, Contents]) -> bool:
    """Whether integers that count nothing differ between checkpoints of one layout, by a few bytes of each."""
    first = next(iter(contents.values()), None)
    return first is not None and any(
        len({content.samples[name] for content in contents.values()}) > 1
        for name, dtype in first.dtypes.items()
        if not dtype.is_floating_point and not is_counter(first, name)
    )


def is_counter(content: Contents, tensor: str) -> bool:
    """Whether a tensor counts steps or the like, on which no output of a model depends."""
    whole = not content.dtypes[tensor].is_floating_point and not content.shapes[tensor]
    return whole and _COUNTER.search(tensor) is not None


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


def of_the_rest(
    files: Mapping[str, Path], contents: Mapping[str, Contents], problems: Sequence[str], base: str | None
) -> str:
    """How to go on with the checkpoints that nothing is wrong with; empty where they do not make a pool."""
    starts = {name: (f"{name}: ", f"{path}: ", f"{path}/") for name, path in files.items()}
    bad = {name for name, start in starts.items() if any(each.startswith(start) for each in problems)}
    strays = [each for each in problems if not each.startswith(tuple(start for name in bad for start in starts[name]))]
    left = [name for name in files if name not in bad and name != base]
    good = {name: content for name, content in contents.items() if name not in bad}
    if strays or _differ_in_integers(good) or not bad or len(left) + (base is not None and base not in bad) < 2:
        return ""
    cures = ["leave --base out, or name another"] if base in bad else []
    cures += [f"--ingredients takes the other {len(left)} alone"] if bad - {base} else []
    return f"\nThe others agree with each other: {', and '.join(cures)}"
