"""A search that nothing disturbs, which those by workers are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

import mixopt
from tests.workers.searches import options_of


@pytest.fixture(scope="session")
def undisturbed(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    mixopt.search(**options_of(clip_pool_template, folder))
    return folder
