"""mixopt: finds the best weight mix of a folder of fine-tuned checkpoints.

The verbs are in `mixopt.run` (``search``, ``compare``, ``build``, ``evaluate``, ``inspect``,
``report``), the Optuna side in `mixopt.search`. What is listed here is public; it is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mixopt.errors import (
    CheckpointError,
    DataError,
    MixError,
    MixoptError,
    PoolError,
    RunError,
    ScoreError,
    SpecError,
)
from mixopt.version import __version__

if TYPE_CHECKING:
    from mixopt.assemble import open_objective
    from mixopt.groups import Groups, make_groups
    from mixopt.listener import Listener
    from mixopt.mix import Mix, Recipe, combine, constant, one_hot
    from mixopt.objective import Objective
    from mixopt.pool import Pool, open_pool
    from mixopt.score import Score
    from mixopt.spaces.simplex import Simplex
    from mixopt.spec import StudySpec, load_spec
    from mixopt.split import Preprocess, Split

_PLACES = {
    "Groups": "groups",
    "Listener": "listener",
    "Mix": "mix",
    "Objective": "objective",
    "Pool": "pool",
    "Preprocess": "split",
    "Recipe": "mix",
    "Score": "score",
    "Simplex": "spaces.simplex",
    "Split": "split",
    "StudySpec": "spec",
    "combine": "mix",
    "constant": "mix",
    "load_spec": "spec",
    "make_groups": "groups",
    "one_hot": "mix",
    "open_objective": "assemble",
    "open_pool": "pool",
}

__all__ = [
    "CheckpointError",
    "DataError",
    "Groups",
    "Listener",
    "Mix",
    "MixError",
    "MixoptError",
    "Objective",
    "Pool",
    "PoolError",
    "Preprocess",
    "Recipe",
    "RunError",
    "Score",
    "ScoreError",
    "Simplex",
    "SpecError",
    "Split",
    "StudySpec",
    "__version__",
    "combine",
    "constant",
    "load_spec",
    "make_groups",
    "one_hot",
    "open_objective",
    "open_pool",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'mixopt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mixopt.{_PLACES[name]}"), name)
