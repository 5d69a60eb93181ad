"""mixopt: finds the best weight mix of a folder of fine-tuned checkpoints.

The verbs are in `mixopt.runs.run` (``search``, ``compare``, ``build``, ``evaluate``, ``inspect``,
``report``), the Optuna side in `mixopt.study`. What is listed here is public; it is imported when it is first used.
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
    from mixopt.listener import Listener
    from mixopt.scoring.objective import Objective
    from mixopt.scoring.score import Score
    from mixopt.spaces.simplex import Simplex
    from mixopt.spec import StudySpec, load_spec
    from mixopt.values.groups import Groups, make_groups
    from mixopt.values.mix import Mix, Recipe, combine, constant, one_hot
    from mixopt.values.samples import Encoding, Preprocess, Samples
    from mixopt.weights.pool import Pool, open_pool

_PLACES = {
    "Encoding": "values.samples",
    "Groups": "values.groups",
    "Listener": "listener",
    "Mix": "values.mix",
    "Objective": "scoring.objective",
    "Pool": "weights.pool",
    "Preprocess": "values.samples",
    "Recipe": "values.mix",
    "Samples": "values.samples",
    "Score": "scoring.score",
    "Simplex": "spaces.simplex",
    "StudySpec": "spec",
    "combine": "values.mix",
    "constant": "values.mix",
    "load_spec": "spec",
    "make_groups": "values.groups",
    "one_hot": "values.mix",
    "open_objective": "assemble",
    "open_pool": "weights.pool",
}

__all__ = [
    "CheckpointError",
    "DataError",
    "Encoding",
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
    "Samples",
    "Score",
    "ScoreError",
    "Simplex",
    "SpecError",
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
