"""Any model, by import path: ``package.module:function``.

The function is called as ``function(model=..., classnames=..., templates=...)`` (only with those of the three that
it takes) and returns ``(module, predict)``, ``(module, predict, preprocess)`` or ``(module, predict, encoding)``:

* ``module``: a ``torch.nn.Module`` whose state dict has the checkpoints' names;
* ``predict(module)``: gives the function from a batch to logits ``[b, n_classes]``; called once per mix. A batch is
  images ``[b, 3, h, w]``, or what the encoding collates. For a plain classifier it is ``lambda module: module``. Logits
  in a mapping, a dataclass or a tuple are found too, see `mixopt.scoring.logits`;
* ``preprocess``, for images: a `mixopt.Preprocess`; without one, they are scaled to 0..1 and must all have one size;
* ``encoding``, for anything else: a `mixopt.Encoding`. It turns a record (an image ``[h, w, 3]`` uint8, or the fields
  of a line of a ``.jsonl`` file without its ``label``) into named arrays, once, and a batch of these, as tensors on the
  device, into what the model takes. A classifier of texts::

      def encode(record):
          return {"tokens": tokenizer(record["text"])}

      def collate(arrays):  # tokens [b, longest] with zeros behind the end, tokens_length [b]
          return arrays["tokens"], arrays["tokens_length"]

      def family(model, classnames):
          module = Classifier(model, len(classnames))
          return module, lambda module: lambda batch: module(*batch), mixopt.Encoding(encode, collate, "my tokens 1")

  Change the key whenever ``encode`` or ``collate`` change: what was encoded is kept under it. With ``--compile``, all
  that is collated must have the batch as its first axis, and texts keep the padding to the longest of their split.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from mixopt.errors import SpecError
from mixopt.families import FamilyOptions
from mixopt.families.image_encoding import image_encoding
from mixopt.imports import check_takes, import_function, source_hash
from mixopt.scoring.evaluator import Predict
from mixopt.values.groups import depth_order
from mixopt.values.samples import Encoding, Preprocess

PLAIN = Preprocess(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), lambda image: image, "scaled to 0..1")


class Custom:
    """The family of one user's function; see `mixopt.families.Family`."""

    def __init__(self, options: FamilyOptions) -> None:
        if options.image_size is not None:
            raise SpecError(f"--image-size: {options.name} says itself what size it takes; leave it out")
        self._options = options
        self._function = import_function(options.name, "--family")
        self._source = source_hash(self._function)
        _, self._predict, self._encoding = self._call()

    @property
    def classnames(self) -> tuple[str, ...] | None:
        """The user's class names, if any."""
        return self._options.classnames

    @property
    def encoding(self) -> Encoding:
        """What the function returned, or images that are plainly scaled to 0..1."""
        return self._encoding

    def build(self) -> nn.Module:
        """A new module from the function."""
        return self._call()[0]

    def predict(self, module: nn.Module, fixed: frozenset[str]) -> Predict:
        """The function's own predictor."""
        return self._predict(module)

    def depth(self, names: Iterable[str]) -> list[str]:
        """Depth order as far as names tell."""
        return depth_order(names)

    def rename(self, name: str) -> str:
        """The same."""
        return name

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

    def _call(self) -> tuple[nn.Module, Callable[[nn.Module], Predict], Encoding]:
        options = self._options
        offered = {"model": options.model, "classnames": options.classnames, "templates": options.templates}
        try:
            taken = inspect.signature(self._function).parameters
        except ValueError as error:
            raise SpecError(f"--family {options.name}: expected a function written in Python ({error})") from error
        wide = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
        given = {key: value for key, value in offered.items() if wide or key in taken}
        check_takes(self._function, f"--family {options.name}", **dict.fromkeys(given, ""))
        made = self._function(**given)
        if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], nn.Module):
            raise SpecError(
                f"--family {options.name}: expected (module, predict), (module, predict, preprocess) or "
                f"(module, predict, encoding), found {type(made).__name__}"
            )
        module, predict, *rest = made
        third = rest[0] if rest else PLAIN
        if not callable(predict) or not isinstance(third, (Preprocess, Encoding)):
            raise SpecError(
                f"--family {options.name}: predict must be callable, and what follows it a mixopt.Preprocess or a "
                "mixopt.Encoding"
            )
        return module, predict, image_encoding(third) if isinstance(third, Preprocess) else third


def open_family(options: FamilyOptions) -> Custom:
    """Open the family.

    Raises:
        SpecError: The function cannot be imported or returns something else.
    """
    return Custom(options)
