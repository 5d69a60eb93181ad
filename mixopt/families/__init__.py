"""Model families: how to build a model, what it wants of records, how it turns them into logits.

A family here is one module with ``open_family(options) -> Family``; its name goes into `mixopt.spec.FAMILIES`. Any
other is named by import path, ``package.module:function``, see `mixopt.families.custom`.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict
from torch import nn

from mixopt.errors import SpecError, about, short, unknown
from mixopt.scoring.evaluator import Predict
from mixopt.spec import FAMILIES
from mixopt.untrusted import refusing
from mixopt.untrusted.values import validated
from mixopt.values.samples import Encoding
from mixopt.weights.checkpoints import Checkpoint


@dataclass(frozen=True)
class FamilyOptions:
    """What a user says about the model.

    Attributes:
        name: A family of `FAMILIES`, or ``package.module:function``.
        model: A registered architecture, a config file, a config as a mapping, or whatever the family takes.
        classnames: Class names in the order of the labels.
        templates: Prompts with ``{}`` for the class name.
        folder: What relative paths are relative to.
        shapes: Tensor name to shape of the first ingredient, as its file has them, so that a family can tell the size
            of the head; empty where a recipe describes the family.
        image_size: The height and width that images are brought to, in pixels; None for the model's own.
    """

    name: str
    model: str | Mapping[str, Any] | None
    classnames: tuple[str, ...] | None
    templates: tuple[str, ...] | None
    folder: Path
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    image_size: int | None = None


class Family(Protocol):
    """The contract of a model family."""

    @property
    def encoding(self) -> Encoding:
        """What the model wants of its records; for images see `mixopt.families.image_encoding.image_encoding`."""

    @property
    def classnames(self) -> Sequence[str] | None:
        """Class names in the order of the logits, where the family knows them."""

    def build(self) -> nn.Module:
        """A new model with any weights."""

    def predict(self, module: nn.Module, fixed: frozenset[str]) -> Predict:
        """The function from what the encoding collates to logits ``[b, n_classes]``; called once per mix.

        Args:
            module: A model that `build` made, with the weights to use.
            fixed: Names of tensors that are the same at every call for this module; what depends on them alone
                may be kept from call to call.
        """

    def depth(self, names: Iterable[str]) -> list[str]:
        """Tensor names in depth order."""

    def rename(self, name: str) -> str:
        """The module's name for a tensor that a checkpoint of this family may call otherwise; else the same name."""

    def identity(self) -> dict[str, Any]:
        """What makes the model again, as plain JSON values: `FamilyOptions` but its folder and shapes.

        The image size stands in it only where one was asked for.
        """

    def companions(self) -> Mapping[str, str | bytes]:
        """File name to content of what must lie beside a saved model for others to load it."""


@runtime_checkable
class Telling(Protocol):
    """What a family may offer besides: something to say of how it understood a folder."""

    @property
    def notices(self) -> Sequence[str]:
        """What was taken, left out or assumed, as a user should know it."""


@runtime_checkable
class Compared(Protocol):
    """What a family may offer besides: a look at what lies beside a checkpoint, before anything is mixed."""

    def fitted(self, checkpoint: Checkpoint) -> Checkpoint:
        """A checkpoint, its tensors by the module's names, as the family's model means it.

        Called for every ingredient in order, the first one first; several times for each.

        Raises:
            CheckpointError: What lies beside it describes another model or other classes; lists all differences.
        """


@runtime_checkable
class Segmented(Protocol):
    """What a family may offer besides: mixes that differ in late layers alone then cost their late segments alone."""

    def segments(self, module: nn.Module) -> Sequence[frozenset[str]] | None:
        """The forward pass in segments: the names of the tensors that each depends on, beside what comes before.

        None where the model has no segments.
        """

    def predict_segments(self, module: nn.Module, fixed: frozenset[str]) -> Sequence[Predict]:
        """The segments' functions: `Family.predict` to the bit, one after another; each leaves its input as it is.

        Args:
            module: As for `Family.predict`, which this replaces where it is called.
            fixed: As for `Family.predict`.
        """


def open_family(options: FamilyOptions) -> Family:
    """The family by name.

    Raises:
        SpecError: An unknown name, or options that the family cannot use.
    """
    if ":" in options.name:
        module: Any = importlib.import_module("mixopt.families.custom")
    elif options.name in FAMILIES:
        module = importlib.import_module(f"mixopt.families.{options.name}")
    else:
        raise SpecError("--family: " + unknown("family", options.name, FAMILIES, ", or package.module:function"))
    family: Family = module.open_family(options)
    return family


def from_identity(identity: Mapping[str, Any], folder: Path, source: str, trusted: str | None = None) -> Family:
    """The family that a recipe describes.

    Args:
        identity: From `Family.identity`, as a file has it.
        folder: What relative paths are relative to.
        source: The file, for messages.
        trusted: The function that the user named; no other is imported, whatever the file says.

    Raises:
        SpecError: The description is not complete, or names a function that the user did not name.
    """
    with refusing(SpecError, source, found="the recipe does not describe its model family", cure="give --family"):
        described = validated(_Described, identity)
    check_trusted(described.name, source, trusted)
    with about(source):
        return open_family(
            FamilyOptions(
                described.name,
                described.model,
                described.classnames,
                described.templates,
                folder,
                image_size=described.image_size,
            )
        )


def check_trusted(name: str, source: str, trusted: str | None) -> None:
    """Refuse to import a function that only a file names.

    Args:
        name: The family's name in the file.
        source: The file.
        trusted: The function that the user named.

    Raises:
        SpecError: It is a function, and not that one.
    """
    if ":" in name and name != trusted:
        raise SpecError(
            f"{source}: names the function {short(repr(name))} as its model family; importing it would run code that "
            f"only this file asks for. If you know it, name it yourself: --family {short(shlex.quote(name))}"
        )


class _Described(BaseModel):
    """What a recipe says of its family, as `FamilyOptions` has it, and a hash of the source of a user's function."""

    model_config = ConfigDict(extra="forbid")

    name: str
    model: str | dict[str, Any] | None
    classnames: tuple[str, ...] | None
    templates: tuple[str, ...] | None
    image_size: int | None = None
    source: str = ""
