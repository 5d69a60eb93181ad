"""Init: a pool.toml from what lies in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixopt.assemble.family import propose
from mixopt.errors import RunError, SpecError
from mixopt.files import write_text
from mixopt.listener import Listener
from mixopt.spec import POOL_FILE, StudySpec
from mixopt.spec.template import pool_template


def init(models: str | Path, *, force: bool = False, listener: Listener | None = None, **options: Any) -> Path:
    """Write the pool.toml of a folder: what was recognised, and as comments what remains to be filled in.

    Args:
        models: The pool's folder.
        force: Replace a pool.toml that is there.
        listener: Told what was recognised, and by what.
        **options: Fields of `mixopt.StudySpec` that are known already: ``family``, ``model``, ``base``.

    Returns:
        The file.

    Raises:
        MixoptError: No folder, no checkpoints in it, or a pool.toml that is there.
    """
    folder, heard = Path(models), listener or Listener()
    if not folder.is_dir():
        raise SpecError(f"{folder}: expected the folder with the checkpoints")
    path = folder / POOL_FILE
    if path.exists() and not force:
        raise RunError(f"{path}: already there; correct it, or --force to write it anew")
    given = {key: value for key, value in options.items() if value is not None}
    # What stands in a file that is written anew does not count.
    spec = StudySpec.model_validate({"models": folder, **given})
    found = propose(spec)
    heard.info(f"{found.family or 'no family'}: {found.reason}")
    write_text(path, pool_template(found))
    return path
