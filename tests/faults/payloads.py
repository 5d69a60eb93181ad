"""What a hostile file would run, were it let: each leaves a file behind that tells."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

# Beside the example, in the folder that a case runs in.
MARKER = "CODE_WAS_EXECUTED"
MODULE = "hostile_payload"
SOURCE = f"""\
open({MARKER!r}, "w").close()


def run(*args, **kwargs):
    open({MARKER!r}, "w").close()
"""


class Call:
    """A value that a pickle makes by calling a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._made = function, arguments

    def __reduce__(self) -> Any:
        return self._made


def calls() -> list[Any]:
    """Values whose unpickling would run code."""
    import builtins
    import os

    return [
        Call(builtins.exec, f"open({MARKER!r}, 'w').close()"),
        Call(os.system, f"touch {MARKER}"),
        Call(builtins.eval, f"open({MARKER!r}, 'w').close()"),
        Call(builtins.open, MARKER, "w"),
        Call(Path.touch, Path(MARKER)),
        Call(builtins.getattr, Call(builtins.__import__, MODULE), "run"),
    ]


def pickled() -> list[bytes]:
    """Pickles that would, the last through a module that is not imported yet."""
    protocols = [pickle.dumps(call, protocol) for call in calls() for protocol in (0, 2, 4)]
    return [*protocols, f"c{MODULE}\nrun\n(tR.".encode(), f"(i{MODULE}\nrun\n.".encode()]
