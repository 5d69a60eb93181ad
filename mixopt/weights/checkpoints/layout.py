"""What every layout of checkpoint files gives: the contract, and the value that comes of reading one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from mixopt.weights.checkpoints.wrappers import AUTO, Weights


@dataclass(frozen=True)
class Checkpoint:
    """One opened checkpoint.

    Attributes:
        path: Where it came from.
        tensors: Name to tensor, on the CPU, without aliases. May be backed by the file: do not write to them.
        tied: Alias to the name in ``tensors`` that it shares its memory with.
        metadata: Text stored beside the tensors; of a pickle, what its trainer says of the model.
        ignored: Entries of the state dict that are not tensors.
        mapped: Whether the tensors lie in the file and are read when used, so that opening it cost next to nothing.
        notices: What was taken, left out or renamed while it was opened, as a user should know it.
        added: Names of constants that are the model's own, as the file has none.
        left_out: Names of weights, by the model's naming, that its family leaves out.
        renamed: Name in the file to the library's own in memory, where these differ.
    """

    path: Path
    tensors: dict[str, Tensor]
    tied: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    mapped: bool = False
    notices: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


class Layout(Protocol):
    """The contract, which each layout's module obeys."""

    @property
    def SUFFIXES(self) -> tuple[str, ...]:  # noqa: N802 (a module's constant)
        """How the names of its files end."""

    def matches(self, path: Path) -> bool:
        """Whether a path is a checkpoint of this layout, by its name; told without opening it."""

    def read(self, path: Path, weights: Weights = AUTO) -> Checkpoint:
        """Open one; runs no code from the file.

        Args:
            path: The file.
            weights: Which of several sets of weights in it.

        Raises:
            CheckpointError: Damaged, truncated, or not what its name says.
        """
