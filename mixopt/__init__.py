"""mixopt: finds the best weight mix of a folder of fine-tuned checkpoints.

The verbs are ``search``, ``compare``, ``diagnose``, ``build``, ``evaluate``, ``init``, ``inspect``, ``report`` and
``log``, as the commands of the same names. What is listed here is public; it is imported when it is first used.
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
    from mixopt.runs.build import build
    from mixopt.runs.compare import compare
    from mixopt.runs.diagnose import diagnose
    from mixopt.runs.evaluate import evaluate
    from mixopt.runs.init import init
    from mixopt.runs.inspect import inspect
    from mixopt.runs.log import log
    from mixopt.runs.report import report
    from mixopt.runs.search import search
    from mixopt.scoring.objective import Objective
    from mixopt.scoring.score import Score
    from mixopt.spaces.simplex import Simplex
    from mixopt.spec import StudySpec, load_spec
    from mixopt.study import SurfaceSampler, optuna_objective
    from mixopt.values.groups import Groups, make_groups
    from mixopt.values.mix import Mix, combine, constant, one_hot
    from mixopt.values.recipe import Recipe
    from mixopt.values.samples import Encoding, Preprocess, Samples
    from mixopt.weights.pool import Pool, open_pool

# Where each name lives: what is imported when it is first used.
_PLACES = {
    "Encoding": "values.samples",
    "Groups": "values.groups",
    "Listener": "listener",
    "Mix": "values.mix",
    "Objective": "scoring.objective",
    "Pool": "weights.pool",
    "Preprocess": "values.samples",
    "Recipe": "values.recipe",
    "Samples": "values.samples",
    "Score": "scoring.score",
    "Simplex": "spaces.simplex",
    "StudySpec": "spec",
    "SurfaceSampler": "study",
    "build": "runs.build",
    "combine": "values.mix",
    "compare": "runs.compare",
    "constant": "values.mix",
    "diagnose": "runs.diagnose",
    "evaluate": "runs.evaluate",
    "init": "runs.init",
    "inspect": "runs.inspect",
    "load_spec": "spec",
    "log": "runs.log",
    "make_groups": "values.groups",
    "one_hot": "values.mix",
    "open_objective": "assemble",
    "open_pool": "weights.pool",
    "optuna_objective": "study",
    "report": "runs.report",
    "search": "runs.search",
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
    "SurfaceSampler",
    "__version__",
    "build",
    "combine",
    "compare",
    "constant",
    "diagnose",
    "evaluate",
    "init",
    "inspect",
    "load_spec",
    "log",
    "make_groups",
    "one_hot",
    "open_objective",
    "open_pool",
    "optuna_objective",
    "report",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'mixopt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mixopt.{_PLACES[name]}"), name)
