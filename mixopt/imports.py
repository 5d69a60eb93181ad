"""Functions that a user names by import path, ``package.module:function``."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixopt.errors import SpecError

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_import_path(text: str) -> bool:
    """Whether a text has the form ``package.module:function``."""
    return _IMPORT_PATH.fullmatch(text) is not None


def import_function(name: str, option: str) -> Callable[..., Any]:
    """The function of an import path, from an installed package or the current folder.

    Args:
        name: ``package.module:function``.
        option: Where it was named, for messages.

    Raises:
        SpecError: It cannot be imported, or is no function.
    """
    if not is_import_path(name):
        raise SpecError(f"{option} {name}: expected package.module:function")
    path, _, attribute = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # an installed command does not see the user's folder otherwise
    try:
        function = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"{option} {name}: cannot import it ({error}); expected package.module:function, importable from "
            f"{Path.cwd()} or installed"
        ) from error
    if not callable(function):
        raise SpecError(f"{option} {name}: expected a function, found a {type(function).__name__}")
    found: Callable[..., Any] = function
    return found


def check_takes(function: Callable[..., Any], name: str, *arguments: str, **named: str) -> None:
    """Find out before it is called whether a user's function takes what it is called with.

    Args:
        function: The function.
        name: Its import path, and the option that named it, for messages.
        *arguments: What each positional argument is.
        **named: The same of those by name.

    Raises:
        SpecError: It does not.
    """
    try:
        inspect.signature(function).bind(*arguments, **named)
    except (TypeError, ValueError) as error:
        wanted = ", ".join([*arguments, *named])
        raise SpecError(f"{name}: expected a function that is called with ({wanted}): {error}") from error


def source_hash(function: Callable[..., Any]) -> str:
    """A hash of the file that a function is in: an edited function is not taken for the old."""
    try:
        return hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()
    except (TypeError, OSError):
        return "no source file"
