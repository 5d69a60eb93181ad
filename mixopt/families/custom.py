"""Any model, by import path: ``package.module:function``.

The function is called as ``function(model=..., classnames=..., templates=...)`` (only with those of the three that
it takes) and returns ``(module, predict)`` or ``(module, predict, preprocess)``:

* ``module``: a ``torch.nn.Module`` whose state dict has the checkpoints' names;
* ``predict(module)``: gives the function from images ``[b, 3, h, w]`` to logits ``[b, n_classes]``; called once
  per mix. For a plain classifier it is ``lambda module: module``;
* ``preprocess``: a `mixopt.Preprocess`; without one, images are scaled to 0..1 and must all have one size.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from mixopt.errors import SpecError
from mixopt.families import FamilyOptions
from mixopt.scoring.evaluator import Predict
from mixopt.values.groups import depth_order
from mixopt.values.samples import Preprocess
from mixopt.weights import checkpoints

PLAIN = Preprocess(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), lambda image: image, "scaled to 0..1")


class Custom:
    """The family of one user's function; see `mixopt.families.Family`."""

    def __init__(self, options: FamilyOptions) -> None:
        self._options = options
        self._function = _import(options.name)
        self._source = _source_hash(self._function)
        _, self._predict, self._preprocess = self._call()

    @property
    def classnames(self) -> tuple[str, ...] | None:
        """The user's class names, if any."""
        return self._options.classnames

    @property
    def preprocess(self) -> Preprocess:
        """What the function returned, or plain scaling to 0..1."""
        return self._preprocess

    def build(self) -> nn.Module:
        """A new module from the function."""
        return self._call()[0]

    def predict(self, module: nn.Module, fixed: frozenset[str]) -> Predict:
        """The function's own predictor."""
        return self._predict(module)

    def depth(self, names: Iterable[str]) -> list[str]:
        """Depth order as far as names tell."""
        return depth_order(names)

    def read(self, path: Path) -> checkpoints.Checkpoint:
        """Plain state dicts."""
        return checkpoints.read(path)

    def identity(self) -> dict[str, Any]:
        """The import path and a hash of the file it is in, so that an edited function is not taken for the old."""
        options = self._options
        return {
            "name": options.name,
            "model": options.model,
            "classnames": None if options.classnames is None else list(options.classnames),
            "templates": None if options.templates is None else list(options.templates),
            "source": self._source,
        }

    def companions(self) -> dict[str, str]:
        """Nothing: the user's own code loads the saved model."""
        return {}

    def _call(self) -> tuple[nn.Module, Callable[[nn.Module], Predict], Preprocess]:
        options = self._options
        offered = {"model": options.model, "classnames": options.classnames, "templates": options.templates}
        taken = inspect.signature(self._function).parameters
        wide = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
        made = self._function(**{key: value for key, value in offered.items() if wide or key in taken})
        if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], nn.Module):
            raise SpecError(
                f"--family {options.name}: expected (module, predict) or (module, predict, preprocess), "
                f"found {type(made).__name__}"
            )
        module, predict, *rest = made
        preprocess = rest[0] if rest else PLAIN
        if not callable(predict) or not isinstance(preprocess, Preprocess):
            raise SpecError(f"--family {options.name}: predict must be callable and preprocess a mixopt.Preprocess")
        return module, predict, preprocess


def open_family(options: FamilyOptions) -> Custom:
    """Open the family.

    Raises:
        SpecError: The function cannot be imported or returns something else.
    """
    return Custom(options)


def _import(name: str) -> Callable[..., Any]:
    path, _, attribute = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # an installed command does not see the user's folder otherwise
    try:
        function = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"--family {name}: cannot import it ({error}); expected package.module:function, importable from "
            f"{Path.cwd()} or installed"
        ) from error
    if not callable(function):
        raise SpecError(f"--family {name}: expected a function, found a {type(function).__name__}")
    found: Callable[..., Any] = function
    return found


def _source_hash(function: Callable[..., Any]) -> str:
    try:
        return hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()
    except (TypeError, OSError):
        return "no source file"
