"""The options of a run: each stands once, in `StudySpec`; flags, TOML keys, help and the reference are made of it."""

from mixopt.spec.checks import AUTO
from mixopt.spec.fields import DataSpec
from mixopt.spec.files import POOL_FILE, load_spec, pool_template
from mixopt.spec.study import StudySpec

__all__ = ["AUTO", "POOL_FILE", "DataSpec", "StudySpec", "load_spec", "pool_template"]
