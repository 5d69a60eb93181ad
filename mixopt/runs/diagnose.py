"""Diagnose: why the mixes of a pool score as they do, without a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixopt.assemble import open_objective
from mixopt.diagnosis import Budget, diagnose_pool, known_of
from mixopt.files import write_text
from mixopt.listener import Listener
from mixopt.reporting import page as pages
from mixopt.reporting.diagnosis import Diagnosis
from mixopt.runs.replacing import check_replaceable
from mixopt.spec import load_spec

# Checkpoints on test splits and half-way mixes have at most so many samples together, a half each: 120 pairs of 16
# checkpoints on 150 each.
IMAGES = 36_000


def diagnose(
    models: str | Path,
    *,
    html: str | Path | None = None,
    force: bool = False,
    listener: Listener | None = None,
    **options: Any,
) -> Diagnosis:
    """Every checkpoint of a pool alone, and the mixes half-way between each two.

    Args:
        models: The pool's folder.
        html: Write a page of it, which stands alone, to this file.
        force: Replace that file also where mixopt did not write it.
        listener: Told about notices and progress.
        **options: Fields of `mixopt.StudySpec`.

    Raises:
        MixoptError: Bad input; what was scored is in the cache.
    """
    heard = listener or Listener()
    if html is not None and not force:
        check_replaceable(Path(html), ".html", [], "--html")
    spec = load_spec({"models": models, **options})
    objective = open_objective(spec, heard)
    found = diagnose_pool(objective, known_of(objective, spec.models), Budget(IMAGES), heard)
    if html is not None:
        write_text(Path(html), pages.pool_page(found, spec.models.resolve().name))
        heard.info(f"wrote {html}")
    return found
