"""Everything that commands import, for the process that they are forked from; nothing of it is ever collected."""

import gc
import importlib

import torch

for name in (
    "alembic.command",
    "cmaes",
    "mixopt.cli",
    "mixopt.runs.build",
    "mixopt.runs.compare",
    "mixopt.runs.search",
    "optuna._gp.acqf",
    "optuna.storages._rdb.alembic.env",
    "optuna.storages._rdb.storage",
    "pytest",
    "scipy.stats",
    "sqlalchemy.dialects.sqlite",
    "tests.batchnorm_family",
    "tests.faults.child",
    "tests.tiny_family",
    "torch._dynamo",
    "torchvision.transforms.v2",
):
    try:
        importlib.import_module(name)
    except Exception:  # a command imports it by itself then, and tells what is wrong
        continue
torch.set_num_threads(1)
gc.collect()
gc.freeze()
