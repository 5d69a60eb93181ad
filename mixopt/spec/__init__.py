"""The options of a run: each stands once, in `options`; flags, TOML keys, help and the reference are made of it."""

from mixopt.spec.checks import AUTO, FAMILIES
from mixopt.spec.data import DataSpec
from mixopt.spec.files import POOL_FILE, load_spec
from mixopt.spec.study import StudySpec

__all__ = ["AUTO", "FAMILIES", "POOL_FILE", "DataSpec", "StudySpec", "load_spec"]
