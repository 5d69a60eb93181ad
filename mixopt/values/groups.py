"""Tensor names to layer groups: parameters that share one row of coefficients.

Works from names alone, so an unknown architecture groups sensibly; where names say too little, a TOML of regular
expressions says the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from mixopt.errors import SpecError, names, unknown
from mixopt.files import natural_key
from mixopt.untrusted import refusing
from mixopt.untrusted.texts import read_toml

SCHEMES = ("whole", "block", "tensor")

# A residual stage or a block whose number is part of the token: layer3, stage_2, encoder_layer_11.
_NUMBERED = re.compile(r"^(?:[a-z_]*[a-z]_)?(?:layer|stage|block|group)s?_?\d+$")
# Parts that come before the blocks, after them, and containers of numbers that are not blocks.
_STEM = re.compile(
    r"(^|[._])(stem|conv1|bn1|conv_?stem|patch_?embed\w*|\w*embeddings?|class_token|cls_token|dist_token|"
    r"register_tokens?|pos_embed\w*|ln_pre|norm_pre|conv_proj)([._]|$)"
)
_HEAD = re.compile(
    r"(^|[._])(head|heads|fc|fc_norm|classifier|classification_head|ln_post|ln_final|norm|proj|attn_?pool|pooler|"
    r"text_projection|logit_scale|logit_bias|output|lm_head)([._]|$)"
)


@dataclass(frozen=True)
class Groups:
    """Layer groups in order, each a name and its tensors.

    Attributes:
        items: ``(group name, tensor names)``; no tensor stands in two groups and no group is empty.
    """

    items: tuple[tuple[str, tuple[str, ...]], ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for group, tensors in self.items:
            if not tensors:
                raise SpecError(f"layer group {group!r} holds no tensor")
            if twice := seen & set(tensors):
                raise SpecError(f"layer group {group!r}: tensor {min(twice)} stands in another group too")
            seen |= set(tensors)
        if len(set(self.names)) != len(self.items):
            raise SpecError(f"two layer groups have the same name: {names(self.names)}")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> tuple[str, ...]:
        """The groups' names in order."""
        return tuple(name for name, _ in self.items)

    def index(self) -> dict[str, int]:
        """Tensor name to the number of its group."""
        return {tensor: number for number, (_, tensors) in enumerate(self.items) for tensor in tensors}

    def refine(self, other: Groups) -> Groups:
        """The coarsest groups that lie within both.

        Raises:
            SpecError: The two cover different tensors.
        """
        if self == other:
            return self
        first, second = self.index(), other.index()
        if set(first) != set(second):
            raise SpecError("layer groups over different tensors cannot be brought together")
        merged: dict[tuple[int, int], list[str]] = {}
        for tensor, number in first.items():
            merged.setdefault((number, second[tensor]), []).append(tensor)
        if len(merged) == len(self):
            return self
        if len(merged) == len(other):
            return other
        pairs = [(f"{self.names[one]}&{other.names[two]}", tuple(tensors)) for (one, two), tensors in merged.items()]
        return Groups(tuple(pairs))

    def as_dict(self) -> dict[str, list[str]]:
        """Group name to tensor names, in order."""
        return {name: list(tensors) for name, tensors in self.items}

    @classmethod
    def from_dict(cls, value: Mapping[str, Sequence[str]]) -> Groups:
        """Read what `as_dict` wrote, or any mapping of group names to tensor names."""
        return cls(tuple((name, tuple(tensors)) for name, tensors in value.items()))


_MOST_DIGITS = 10


def make_groups(scheme: str | int, sizes: Mapping[str, int]) -> Groups:
    """Put every mixed tensor in exactly one group.

    Args:
        scheme: ``whole`` (one group), ``block`` (one per transformer block or residual stage, and stem and head
            parts), ``tensor`` (one each), a number k (k contiguous groups of about equal parameter count along
            depth), or the path of a TOML file whose table ``[groups]`` maps names to regular expressions.
        sizes: Tensor name to number of parameters, in depth order.

    Raises:
        SpecError: An unknown scheme; more groups than tensors; a regular expression that is wrong, or that leaves
            a tensor out or in two groups.
    """
    text = str(scheme)
    if text.isdecimal() and len(text) < _MOST_DIGITS:
        return _segments(sizes, int(text))
    if text == "whole":
        return Groups((("whole", tuple(sizes)),))
    if text == "tensor":
        return Groups(tuple((name, (name,)) for name in sizes))
    if text == "block":
        return _collect(sizes, block_names(sizes))
    if text.endswith(".toml"):
        return _by_regex(Path(text), sizes)
    more = ", a number of groups, or a .toml file of regular expressions"
    raise SpecError("--groups: " + unknown("group scheme", text, SCHEMES, more))


def block_names(tensors: Iterable[str]) -> dict[str, str]:
    """Tensor name to the name of its block, stem or head, from the names alone.

    A block is named by its path up to its number (``visual.transformer.resblocks.3``, ``layer2``). What lies
    outside blocks goes to the stem or the head of its tower: by its name where that is telling, else by whether it
    comes before or after the tower's first block. Towers are told apart where the blocks have different roots.
    """
    ordered = list(tensors)
    blocks = {name: block for name in ordered if (block := _block_of(name)) is not None}
    towers = _towers(ordered, blocks)
    started: set[str] = set()
    result: dict[str, str] = {}
    for name in ordered:
        if name in blocks:
            result[name] = blocks[name]
            started.add(towers[name])
            continue
        tower = towers[name]
        part = "head" if _is_head(name, tower in started) else "stem"
        result[name] = f"{tower}.{part}" if tower else part
    return result


def depth_order(tensors: Iterable[str]) -> list[str]:
    """Names in depth order, as far as names tell: per tower the stem, the blocks by number, the head."""
    ordered = list(tensors)
    blocks = block_names(ordered)
    found = {name: block for name in ordered if (block := _block_of(name)) is not None}
    towers = _towers(ordered, found)
    first_seen = {tower: number for number, tower in reversed(list(enumerate(towers.values())))}

    def key(name: str) -> tuple[int, int, tuple[tuple[int, int, str], ...]]:
        part = 1 if name in found else 2 if blocks[name].endswith("head") else 0
        return first_seen[towers[name]], part, natural_key(blocks[name]) if part == 1 else ()

    return sorted(ordered, key=key)


def _block_of(name: str) -> str | None:
    tokens = name.split(".")
    for number, token in enumerate(tokens[:-1]):
        if number > 0 and token.isdigit() and not _outside(tokens[number - 1]):
            return ".".join(tokens[: number + 1])
        if _NUMBERED.match(token):
            return ".".join(tokens[: number + 1])
        if _outside(token):
            return None
    return None


def _outside(token: str) -> bool:
    """Whether a container's numbered children are parts of a stem or a head rather than blocks."""
    return bool(_STEM.search(token) or _HEAD.search(token))


def _towers(ordered: Sequence[str], blocks: Mapping[str, str]) -> dict[str, str]:
    """Tensor name to its tower: the first token shared with blocks, where blocks have more than one root.

    Tokens that all names begin with (a wrapper's ``module.``) tell nothing and are passed over.
    """
    tokens = {name: name.split(".") for name in ordered}
    levels = zip(*(each[:-1] for each in tokens.values()), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    root_of = {name: each[shared] for name, each in tokens.items()}
    roots = {root_of[name] for name, block in blocks.items() if len(block.split(".")) > shared + 1}
    loose = {root_of[name] for name in ordered if name not in blocks}
    named = roots & loose if len(roots) > 1 else set()
    return {name: (root if (root := root_of[name]) in named else "") for name in ordered}


def _is_head(name: str, after_blocks: bool) -> bool:
    stem, head = _STEM.search(name), _HEAD.search(name)
    if stem and head:  # the outer part decides: attnpool.positional_embedding, patch_embed.proj
        return head.start() < stem.start()
    return bool(head) or (after_blocks and not stem)


def _collect(sizes: Mapping[str, int], group_of: Mapping[str, str]) -> Groups:
    collected: dict[str, list[str]] = {}
    for name in sizes:
        collected.setdefault(group_of[name], []).append(name)
    return Groups(tuple((group, tuple(tensors)) for group, tensors in collected.items()))


def _segments(sizes: Mapping[str, int], count: int) -> Groups:
    """Cut the tensors, in depth order, where the running parameter count is nearest to each k-th part."""
    if not 1 <= count <= len(sizes):
        raise SpecError(f"--groups {count}: expected a number from 1 to {len(sizes)}, the tensors that are mixed")
    tensors = list(sizes)
    running = [0]
    for name in tensors:
        running.append(running[-1] + sizes[name])
    cuts = [0]
    for part in range(1, count):
        goal = running[-1] * part / count
        # Leave at least one tensor for this group and for each of those that follow.
        choices = range(cuts[-1] + 1, len(tensors) - (count - part) + 1)
        cuts.append(min(choices, key=lambda cut: abs(running[cut] - goal)))
    cuts.append(len(tensors))
    width = len(str(count - 1))
    return Groups(
        tuple((f"depth.{part:0{width}d}", tuple(tensors[cuts[part] : cuts[part + 1]])) for part in range(count))
    )


def _by_regex(path: Path, sizes: Mapping[str, int]) -> Groups:
    table = read_toml(path, SpecError)
    wanted = "expected a table [groups] of names and regular expressions"
    with refusing(SpecError, f"--groups {path}", found="no layer groups", cure=wanted, also=(re.error,)):
        patterns = {
            group: re.compile("|".join(f"(?:{text})" for text in ([value] if isinstance(value, str) else value)))
            for group, value in table["groups"].items()
        }
    group_of: dict[str, str] = {}
    problems = []
    for name in sizes:
        matching = [group for group, pattern in patterns.items() if pattern.search(name)]
        if len(matching) == 1:
            group_of[name] = matching[0]
        else:
            problems.append(f"{name} ({'none' if not matching else ' and '.join(matching)})")
    if problems:
        raise SpecError(
            f"--groups {path}: every mixed tensor must match exactly one group, but not {names(problems, 10)}"
        )
    return _collect(sizes, group_of)
